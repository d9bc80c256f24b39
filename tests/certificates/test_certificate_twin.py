"""The graph that is certified is the one that Keras runs, and a difference names its cause."""

import gc

import keras
import numpy as np
import pytest
from certificate_models import CLASSES, assert_sound, classifier, images, randomize
from keras import layers as kl

from dynzoo.backend import to_numpy
from dynzoo.certificates import (
    ReferenceMismatchError,
    certify,
    compiled_inference,
    forward_float64,
    graph,
    twin,
)

SCALES = (100.0, 0.1, 1.0)


def inner_model(names, form):
    """Scales each of its inputs by a number of its own and puts them beside each other."""
    inputs = [keras.Input((3,), name=name) for name in names]
    parts = [kl.Rescaling(s)(x) for s, x in zip(SCALES, inputs, strict=False)]
    structure = {
        "list": inputs,
        "tuple": tuple(inputs),
        "dict": dict(zip(names, inputs, strict=True)),
        "nested": {"a": [inputs[0]], "b": inputs[1:]},
    }[form]
    return keras.Model(structure, kl.Concatenate()(parts), name="inner")


def branches(x, n):
    return [kl.Rescaling(s)(x) for s in (1.0, 0.01, 0.02)[:n]]


def agrees(model):
    x = images(4, model.input_shape[1:])
    np.testing.assert_allclose(
        forward_float64(model, x), to_numpy(model(x, training=False)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("form", "call"),
    [(f, c) for f in ("list", "tuple", "dict") for c in ("list", "tuple", "dict")]
    + [("nested", "nested")],
)
@pytest.mark.parametrize("names", [("zz", "aa"), ("zz", "mm", "aa")], ids=["two", "three"])
def test_the_inputs_of_a_nested_model_are_matched_as_keras_does(names, form, call):
    inner, x = inner_model(names, form), keras.Input((3,))
    parts = branches(x, len(names))
    given = {
        "list": parts,
        "tuple": tuple(parts),
        "dict": dict(zip(names, parts, strict=True)),
        "nested": {"a": [parts[0]], "b": parts[1:]},
    }[call]
    if form == "dict" and call != "dict":
        with pytest.raises((ValueError, UserWarning), match="structure"):
            certify(keras.Model(x, inner(given)))
        return
    model = keras.Model(x, inner(given))
    products = np.array(SCALES[: len(names)]) * np.array((1.0, 0.01, 0.02)[: len(names)])
    assert certify(model).lipschitz == pytest.approx(np.linalg.norm(products), rel=1e-9)
    agrees(model)


def test_a_dict_goes_through_two_levels_of_models():
    middle_inputs = [keras.Input((3,), name=name) for name in ("yy", "bb")]
    inner = inner_model(("zz", "aa"), "list")
    middle = keras.Model(
        middle_inputs, inner({"aa": middle_inputs[0], "zz": middle_inputs[1]}), name="middle"
    )
    x = keras.Input((3,))
    small, large = kl.Rescaling(0.01)(x), kl.Rescaling(1.0)(x)
    model = keras.Model(x, middle({"yy": small, "bb": large}))
    assert certify(model).lipschitz == pytest.approx(np.hypot(100.0, 0.001), rel=1e-9)
    agrees(model)
    other = keras.Model(x, middle({"yy": large, "bb": small}))
    assert certify(other).lipschitz == pytest.approx(np.hypot(1.0, 0.1), rel=1e-9)
    agrees(other)


def test_further_entries_of_a_dict_are_left_aside_as_keras_does():
    inner, x = inner_model(("zz", "aa"), "list"), keras.Input((3,))
    a, b = branches(x, 2)
    model = keras.Model(x, inner({"zz": a, "aa": b, "mm": kl.Rescaling(5.0)(x)}))
    assert certify(model).lipschitz == pytest.approx(100.0, rel=1e-6)
    agrees(model)


@pytest.mark.parametrize(("outer", "inner"), [((3,), (3, 1)), ((3, 1), (3,)), ((2, 3, 1), (2, 3))])
def test_a_nested_model_of_another_rank_is_certified(outer, inner):
    body = keras.Sequential([keras.Input(inner), kl.Flatten(), kl.Dense(CLASSES)], name="inner")
    x = keras.Input(outer)
    assert_sound(randomize(keras.Model(x, body(x))))


def wired_wrongly(monkeypatch):
    """Reads the inputs of a nested model in reverse, as a fault of `trace` would."""
    right = graph._inner_inputs
    monkeypatch.setattr(graph, "_inner_inputs", lambda *args: right(*args)[::-1])


def test_no_number_is_given_for_another_graph(monkeypatch):
    inner, x = inner_model(("zz", "aa"), "list"), keras.Input((3,))
    model = keras.Model(x, inner(branches(x, 2)))
    certify(model)
    wired_wrongly(monkeypatch)
    with pytest.raises(ReferenceMismatchError, match="does not run the graph") as error:
        certify(model)
    assert "TF32" not in str(error.value)


class Doubling(kl.Layer):
    """Its float64 twin is another function."""

    def call(self, x):
        return 2.0 * x

    def call_float64(self, x):
        return 2.1 * x

    def lipschitz_bound(self, input_shape):
        return 2.0


class Cutting(kl.Layer):
    """Its float64 twin has another shape."""

    def call(self, x):
        return x + 0.0

    def call_float64(self, x):
        return x[:, :-1]

    def lipschitz_bound(self, input_shape):
        return 1.0


def test_a_wrong_twin_is_named():
    model = classifier(kl.Conv2D(2, 2), Doubling(name="odd"), kl.Flatten(), kl.Dense(CLASSES))
    with pytest.raises(ReferenceMismatchError, match="'odd' of class `Doubling`.*0.*call_float64"):
        certify(model)
    model = classifier(kl.Flatten(), kl.Dense(CLASSES), Cutting(name="odd"))
    with pytest.raises(ReferenceMismatchError, match="'odd'.*the shape"):
        certify(model)


def test_reduced_precision_is_named_only_where_it_is_measured(monkeypatch):
    model = classifier(kl.Flatten(), Doubling(name="odd"), kl.Dense(CLASSES))
    with pytest.raises(ReferenceMismatchError) as error:
        certify(model)
    assert "TF32" not in str(error.value)
    monkeypatch.setattr(twin, "factor_unit", lambda dtype: 2.0**-11)
    with pytest.raises(ReferenceMismatchError, match="by 0.0005.*TF32 or bfloat16"):
        certify(model)


def test_rounding_that_the_network_enlarges_is_no_mismatch(monkeypatch):
    """Each step is right; float32 is far off at the end, which is what the margin is for."""
    model = keras.Sequential([keras.Input((1,)), kl.Dense(3), kl.Dense(2, use_bias=False)])
    # The numbers of the middle are rounded at 1e7 and cancel to about one.
    model.layers[0].set_weights([np.full((1, 3), 0.7, "float32"), np.full(3, 1e7 / 3, "float32")])
    model.layers[1].set_weights([np.array([[1.0, -1], [-3.0, 3], [2.0, -2]], "float32") / 7])
    x = twin.probes((1,), "float32")
    gap = np.abs(to_numpy(model(x)) - forward_float64(model, x)).max()
    assert gap > twin._CLOSE * np.abs(forward_float64(model, x)).max()
    explained = []
    explain = twin._explain
    monkeypatch.setattr(twin, "_explain", lambda *args: explained.append(explain(*args)))
    assert certify(model).lipschitz > 0
    assert explained  # it was looked at, step by step


def test_certify_compiles_once_for_a_model():
    """New weights reach what was compiled for the comparison before."""
    model = classifier(kl.Flatten(), kl.Dense(8, activation="relu"), kl.Dense(CLASSES))
    certify(model)
    known = compiled_inference._COMPILED
    compiled = known[model].once
    randomize(model, seed=5)
    certify(model)
    assert known[model].once is compiled
    count = len(known)
    del model, compiled
    gc.collect()
    assert len(known) < count
