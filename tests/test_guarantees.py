"""Every layer says what it promises, and says it as data."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import load_script

from dynzoo import layers, operators
from dynzoo.guarantee import Guarantee

PUBLIC = {
    name: getattr(layers, name)
    for name in dir(layers)
    if isinstance(getattr(layers, name), type)
    and issubclass(getattr(layers, name), keras.layers.Layer)
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_layer_has_guarantees(name):
    assert callable(getattr(PUBLIC[name], "guarantees", None))


def test_guarantee_prints_and_stores():
    g = Guarantee("1-Lipschitz", "each step", 1.0, "step <= 2", "paper")
    assert str(g) == "1-Lipschitz [1]: each step; step <= 2 (paper)"
    assert Guarantee(**json.loads(json.dumps(g.to_dict()))) == g
    assert str(Guarantee("norm kept", "always")) == "norm kept: always; by construction"


@pytest.mark.parametrize(
    ("arguments", "properties"),
    [
        ({}, ["gradient field", "1-Lipschitz", "orthogonal Jacobian"]),
        ({"step_size": 1.0}, ["gradient field", "1-Lipschitz"]),
        ({"activation": "tanh"}, ["gradient field", "1-Lipschitz"]),
        ({"constraint": None, "step_size": 1.0}, ["gradient field"]),
        ({"direction": "expansive", "step_size": 1.0}, ["gradient field", "Lipschitz"]),
    ],
)
def test_gradient_flow_promises_what_its_configuration_allows(arguments, properties):
    from dynzoo import operators

    found = layers.GradientFlow(operators.Dense(4), **arguments).guarantees()
    assert [g.property for g in found] == properties


def test_table_of_guarantees_is_up_to_date():
    module = load_script(Path(__file__).resolve().parents[1] / "docs" / "make_guarantees.py")
    assert module.PATH.read_text(encoding="utf-8") == module.table()


@pytest.mark.parametrize(
    ("operator", "shape", "promised"),
    [
        (operators.Dense(6), (6,), True),
        (operators.Dense(7), (6,), False),
        (operators.Pointwise(6), (4, 4, 6), True),
        (operators.Pointwise(9), (4, 4, 6), False),
        (operators.ShiftedPointwise(6), (4, 4, 6), True),
        (operators.ShiftedPointwise(9), (4, 4, 6), False),
        (operators.ShiftedPointwise(3, padding="zero"), (4, 4, 6), False),
    ],
)
def test_orthogonal_jacobians_only_where_rows_can_be_orthonormal(operator, shape, promised):
    """With more rows than channels, or pixels dropped, A A^T is not I: |Jv| < |v| somewhere."""
    flow = layers.GradientFlow(operator, seed=0)
    flow.build((None, *shape))
    # biases far from 0 switch every row on: the Jacobian is I - 2 A^T A
    flow.biases[0].assign(np.full(flow.biases[0].shape, 9.0, "float32"))
    assert ("orthogonal Jacobian" in {g.property for g in flow.guarantees()}) == promised
    x = np.random.default_rng(0).normal(size=(1, *shape))
    v = np.random.default_rng(1).normal(size=(1, *shape))
    image = (flow.call_float64(x + 1e-4 * v) - flow.call_float64(x - 1e-4 * v)) / 2e-4
    kept = np.linalg.norm(image) / np.linalg.norm(v)
    assert kept == pytest.approx(1.0, abs=1e-5) if promised else kept < 1 + 1e-5
