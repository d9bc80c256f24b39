"""Every layer says what it promises, and says it as data."""

import json
from pathlib import Path

import keras
import pytest
from helpers import load_script

from dynzoo import layers
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
