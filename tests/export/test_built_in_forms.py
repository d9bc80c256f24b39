"""Operations in other words: within the rounding that certificates count on, in each format."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special

import dynzoo
from dynzoo import backend, layers, operators
from dynzoo.export import exporter as export
from dynzoo.export import formats, runtimes
from dynzoo.export.built_in_forms import FORMS

UNIT = 2.0**-24
WRITABLE = [name for name, about in formats.FORMATS.items() if backend.name() in about.packages]


def _numbers():
    far = np.geomspace(1e-7, 1e6, 392)
    return np.concatenate([-far, [0.0, 88.0, 89.0, -89.0, -104.0, 1e-4, 300.0, -0.0], far])


X = _numbers().reshape(-1, 8).astype("float32")
# name -> what computes it in a graph, and in float64
CASES = {
    "Softplus": (ops.softplus, lambda x: np.logaddexp(x, 0.0)),
    "LogSigmoid": (ops.log_sigmoid, lambda x: -np.logaddexp(-x, 0.0)),
    "Celu": (
        lambda x: ops.celu(x, 0.7),
        lambda x: np.maximum(x, 0) + 0.7 * np.expm1(np.minimum(x, 0) / 0.7),
    ),
    "Gelu": (lambda x: ops.gelu(x, approximate=False), lambda x: x * special.ndtr(x)),
    "Erf": (ops.erf, special.erf),
    "Roll": (
        lambda x: ops.roll(ops.reshape(x, (-1, 2, 4)), (1, -3), (1, 2)),
        lambda x: np.roll(x.reshape(-1, 2, 4), (1, -3), (1, 2)),
    ),
    "Argmax": (
        lambda x: ops.cast(ops.argmax(x, axis=1, keepdims=True), "float32"),
        lambda x: x.argmax(axis=1)[:, None],
    ),
}


def error_in_units(found, x, exact):
    """Of the larger of argument, value and 1."""
    size = np.maximum(np.abs(exact), 1.0)
    if exact.shape == x.shape:
        size = np.maximum(size, np.abs(x))
    return float(np.max(np.abs(found.astype(np.float64) - exact) / size)) / UNIT


def test_every_form_is_tested():
    assert set(CASES) == set(FORMS)


@pytest.mark.parametrize("name", CASES)
def test_a_form_computes_the_function(name):
    node = CASES[name][0](keras.Input((8,)))._keras_history.operation
    while type(node).__name__ != name:  # behind a cast
        node = _before(node)
    found = backend.to_numpy(FORMS[name].function(node, ops.convert_to_tensor(_seen(name))))
    exact = CASES[name][1](X.astype(np.float64))
    assert error_in_units(found.reshape(exact.shape), X, exact) <= 8.0


def _before(operation):
    return operation._inbound_nodes[0].input_tensors[0]._keras_history.operation


def _seen(name):
    return X.reshape(-1, 2, 4) if name == "Roll" else X


@pytest.mark.parametrize("format", WRITABLE)
def test_no_written_operation_overflows_or_is_unknown_to_its_runtime(format, tmp_path):
    formats_or_skip(format)
    for name, (function, reference) in CASES.items():
        if name == "Argmax":
            continue  # no model to logits has it; its form is for those who build graphs by hand
        inputs = keras.Input((8,))
        model = keras.Model(inputs, ops.reshape(function(inputs), (-1, 8)))
        export.export_model(model, tmp_path / name, format, x=X[:1].astype("float32"))
        run, _ = runtimes.load(format, tmp_path / name / formats.FORMATS[format].file)
        exact = reference(X.astype(np.float64)).reshape(X.shape)
        assert error_in_units(run(X), X, exact) <= 16.0, name


def formats_or_skip(format):
    try:
        formats.check_available(format, backend.name(), run=True)
    except ValueError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("format", WRITABLE)
def test_layers_of_keras_and_flows_are_written_stably(format, tmp_path):
    formats_or_skip(format)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="softplus"),
            layers.GradientFlow(operators.Dense(8), activation="softplus"),
            keras.layers.Activation("log_sigmoid"),
            keras.layers.Activation(ops.erf),
            layers.UnitRowDense(3),
        ]
    )
    export.export_model(model, tmp_path / "exported", format)
    x = np.random.default_rng(0).normal(size=(20, 6), scale=1e4).astype("float32")
    run, _ = runtimes.load(format, tmp_path / "exported" / formats.FORMATS[format].file)
    gap = np.linalg.norm(run(x) - dynzoo.certificates.forward_float64(model, x), axis=1)
    assert np.all(gap <= dynzoo.certify(model).logit_error(x, "worst-case"))
    # The model's own layers are as they were.
    assert model.layers[0].activation is keras.activations.softplus


@pytest.mark.skipif(backend.name() != "tensorflow", reason="LiteRT is written on TensorFlow")
def test_the_check_finds_what_overflows_far_outside_of_the_images(tmp_path, monkeypatch):
    formats_or_skip("litert")
    monkeypatch.setattr(export, "use_built_in_forms", lambda *_: None)
    # The second has no certificate: it is compared with the model itself.
    for last in (layers.UnitRowDense(3), keras.layers.Dense(3, activation="softmax")):
        first = keras.layers.Dense(8, activation="softplus")
        model = keras.Sequential([keras.Input((6,)), first, last])
        with pytest.raises(export.ExportCheckError, match=r"images as large as \de\+0") as error:
            export.export_model(model, tmp_path / "exported", "litert")
        assert "\n" not in str(error.value)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, ops.erf(ops.roll(inputs, 1, axis=1)))
    with pytest.raises(ValueError, match=r"no built-in operation for Erf, Roll\.$"):
        export.export_model(model, tmp_path / "exported", "litert", check=False)
    assert list(tmp_path.iterdir()) == []
