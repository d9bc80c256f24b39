"""Certificates of random graphs, attacked; and that the graphs reach every rule there is.

DYNZOO_FUZZ_GRAPHS sets how many graphs the slow test draws (1,000), DYNZOO_FUZZ_START the first
seed. A failure names its seeds: `run(seed, dtype)` tries one again.
"""

import contextlib
import os

import keras
import numpy as np
import pytest
from certificate_attacks import examine
from keras import layers as kl
from keras import ops
from random_graphs import (
    DYNZOO,
    JOIN_PIECES,
    LAYERS,
    OPERATION_PIECES,
    PIECES,
    RANDOM,
    random_graph,
)

from dynzoo import backend, layers, operators
from dynzoo.certificates import certify, forward_float64
from dynzoo.certificates.operations import TensorCall
from dynzoo.certificates.rules import joins
from dynzoo.certificates.rules import operations as operation_rules
from dynzoo.certificates.rules import table as rules

# Keras wonders at softmaxes over one entry, which are drawn here too.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FAST, CHUNK = (12 if backend.name() == "jax" else 40), 20
GRAPHS = int(os.environ.get("DYNZOO_FUZZ_GRAPHS", "1000"))
START = int(os.environ.get("DYNZOO_FUZZ_START", "100000"))

# In a table, but not grown, and why.
UNGROWN = {kl.InputLayer: "every graph has one", TensorCall: "what each bare operation is read as"}


def dtypes():
    wide = backend.to_numpy(ops.convert_to_tensor(np.ones(1), "float64")).dtype == np.float64
    return ["float32", "float64"] if wide else ["float32"]


def run(seed, dtype, piece=None):
    model, distribution = random_graph(seed, dtype, piece)
    return examine(model, seed, distribution in RANDOM)


def assert_unrefuted(seeds):
    """No violation, and not so many refusals that they hide something."""
    kinds, broken, refused = dtypes(), [], []
    for seed in seeds:
        dtype = kinds[seed % len(kinds)]
        outcome = run(seed, dtype)
        broken += [f"seed {seed}, {dtype}: {text}" for text in outcome.violations]
        if outcome.refused:
            refused.append(f"seed {seed}, {dtype}: {outcome.refused}")
    assert not broken, "\n".join(broken)
    assert len(refused) <= max(2, 0.1 * len(seeds)), "\n".join(refused)


@pytest.mark.parametrize("start", range(0, FAST, CHUNK))
def test_no_certificate_is_refuted(start):
    assert_unrefuted(range(start, min(start + CHUNK, FAST)))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(START, START + GRAPHS, 100))
def test_no_certificate_of_many_is_refuted(start):
    assert_unrefuted(range(start, min(start + 100, START + GRAPHS)))


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_no_certificate_with_this_piece_is_refuted(piece):
    outcomes = [run(seed, "float32", piece) for seed in range(4)]
    assert not any(outcome.violations for outcome in outcomes), outcomes
    assert not all(outcome.refused for outcome in outcomes), outcomes


def test_every_rule_is_grown():
    public = [getattr(layers, name) for name in dir(layers)]
    bounded = {cls for cls in public if hasattr(cls, "lipschitz_bound")}
    assert set(rules.RULES) - set(LAYERS) - set(UNGROWN) == set()
    assert set(joins.JOINS) - set(JOIN_PIECES) - set(UNGROWN) == set()
    assert set(operation_rules.OPERATION_RULES) - set(OPERATION_PIECES) == set()
    assert bounded - set(DYNZOO) == set()


@pytest.mark.slow
def test_pieces_are_what_they_are_called():
    """The graph of each piece holds the layer or the operation of that name."""
    for piece in PIECES:
        if piece in ("shared", "nested", "residual"):
            continue
        found = set()
        for seed in range(4):
            with contextlib.suppress(ValueError):  # some settings of a piece are refused
                table = certify(random_graph(seed, "float32", piece)[0]).layers
                found |= {row.class_name for row in table}
        assert piece.rpartition(".")[2].replace("TrueDivide", "Divide") in {
            name.replace("TrueDivide", "Divide") for name in found
        }, piece


def test_the_same_seed_gives_the_same_graph():
    first, second = (random_graph(3)[0] for _ in range(2))
    x = np.random.default_rng(0).normal(size=(2, *first.input_shape[1:]))
    np.testing.assert_array_equal(forward_float64(first, x), forward_float64(second, x))


# --- the fuzzer sees what is wrong ------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 0.9])
def test_a_bound_that_is_too_small_is_refuted(monkeypatch, factor):
    right = rules.RULES[kl.Dense]
    short = right._replace(gain=lambda layer, shape: factor * right.gain(layer, shape))
    monkeypatch.setitem(rules.RULES, kl.Dense, short)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, kl.Rescaling(2.0)(kl.Dense(3)(inputs)))
    assert any("slope" in text for text in examine(model, 0, True).violations)


def test_radii_that_are_too_large_are_refuted(monkeypatch):
    from dynzoo.certificates import certificate

    radii = certificate.Certificate.radii

    def enlarged(self, *args, **kwargs):
        labels, found = radii(self, *args, **kwargs)
        return labels, 1.001 * found

    monkeypatch.setattr(certificate.Certificate, "radii", enlarged)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, kl.Dense(3)(inputs))
    assert any("within radius" in text for text in examine(model, 0, True).violations)


def test_a_rounding_bound_that_is_too_small_is_refuted(monkeypatch):
    from dynzoo.certificates import certificate

    monkeypatch.setattr(
        certificate.Certificate,
        "logit_error",
        lambda self, x, rounding=None: np.full(len(x), 1e-12),
    )
    inputs = keras.Input((6,))
    model = keras.Model(inputs, kl.Dense(3)(kl.Dense(20, "tanh")(inputs)))
    assert any("rounding" in text for text in examine(model, 0, True).violations)


# --- what it found ----------------------------------------------------------------------------


def test_bare_operations_that_cancel_are_certified():
    """Far from the reference as a whole, each step agrees: once a bare AttributeError."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kl.Dense(3)((inputs + 1e7) - 1e7))
    assert certify(model).lipschitz > 0


@pytest.mark.parametrize("operator", [operators.Dense(2), operators.Conv(2)], ids=["dense", "conv"])
def test_switching_flow_runs_in_float64(operator):
    """TensorFlow refuses sums of float64 and float32 tensors."""
    if "float64" not in dtypes():
        pytest.skip("float64 needs JAX_ENABLE_X64=1 on JAX")
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 2))
    layer = layers.SwitchingFlow(operator, mode="flexible", dtype="float64", seed=0)
    y = backend.to_numpy(layer(x if isinstance(operator, operators.Conv) else x[:, 0, 0]))
    assert y.dtype == np.float64
    expected = layer.call_float64(x if isinstance(operator, operators.Conv) else x[:, 0, 0])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
