"""Input gradients, compilation and fresh weights on whichever backend runs."""

import gc
import logging
import time
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from dynzoo import backend
from dynzoo.inference.passes import compiled


def _model(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(7, activation="tanh"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *layers])


def _objective(model):
    return lambda x: ops.sum(ops.sin(model(x, training=False)))


def test_name_and_version():
    assert backend.name() == keras.backend.backend()
    assert backend.version()[0].isdigit()
    assert backend.compiles() == (backend.name() != "torch")


def test_gradient_agrees_with_finite_differences():
    model = _model()
    x = np.random.default_rng(0).uniform(size=(4, 5)).astype("float32")
    grad = backend.to_numpy(backend.value_and_grad(_objective(model))(ops.convert_to_tensor(x))[1])
    w = [np.asarray(v, dtype=np.float64) for v in model.get_weights()]

    def value(x: np.ndarray) -> float:
        return float(np.sin(np.tanh(x @ w[0] + w[1]) @ w[2] + w[3]).sum())

    for i, j in np.ndindex(x.shape):
        e = np.zeros(x.shape)
        e[i, j] = 1e-5
        assert grad[i, j] == pytest.approx((value(x + e) - value(x - e)) / 2e-5, abs=2e-5)


@pytest.mark.parametrize("with_aux", [False, True])
def test_value_aux_and_further_arguments(with_aux):
    def fn(x, scale):
        value = scale * ops.sum(x * x)
        return (value, {"norm": ops.sum(x)}) if with_aux else value

    x = ops.convert_to_tensor(np.array([[1.0, 2.0]], dtype="float32"))
    (value, aux), grad = backend.value_and_grad(fn)(x, ops.convert_to_tensor(3.0))
    assert float(value) == 15.0
    assert backend.to_numpy(grad).tolist() == [[6.0, 12.0]]
    assert (float(aux["norm"]) == 3.0) if with_aux else (aux is None)


def test_gradient_of_a_constant_is_zero():
    for fn in (lambda x: ops.sum(ops.ones((2,))), lambda x: ops.sum(ops.zeros_like(x))):
        grad = backend.value_and_grad(fn)(ops.ones((1, 3)))[1]
        assert backend.to_numpy(grad).tolist() == [[0.0, 0.0, 0.0]]


def test_weights_accumulate_no_gradient():
    model = _model()
    (value, _), grad = backend.value_and_grad(_objective(model))(ops.ones((2, 5)))
    assert np.abs(backend.to_numpy(grad)).max() > 0
    if backend.name() == "torch":
        assert all(v.value.grad is None for v in model.variables)
        assert not value.requires_grad and not grad.requires_grad


def test_gradient_works_where_gradients_are_off():
    model = _model()
    run = backend.without_grad(backend.value_and_grad(_objective(model)))
    assert np.abs(backend.to_numpy(run(ops.ones((2, 5)))[1])).max() > 0


def test_jit_traces_once_for_a_shape():
    traces = []

    @backend.jit
    def double(x):
        traces.append(1)
        return 2 * x

    for k in range(4):
        assert float(double(ops.convert_to_tensor(float(k)))) == 2.0 * k
    assert len(traces) == (1 if backend.compiles() else 4)


def test_jit_traces_each_shape_once_and_in_silence(caplog):
    """TensorFlow logs a warning of a function that it has traced anew five times."""
    traces = []

    @backend.jit
    def total(x, others):
        traces.append(1)
        return ops.sum(x) + ops.sum(others[0])

    tensorflow = logging.getLogger("tensorflow")
    tensorflow.addHandler(caplog.handler)
    try:
        for n in (*range(1, 9), *range(1, 9)):
            assert float(total(ops.ones((n,)), [ops.ones((3, n))])) == 4.0 * n
    finally:
        tensorflow.removeHandler(caplog.handler)
    assert len(traces) == (8 if backend.compiles() else 16)
    assert not caplog.records


def test_compiled_function_sees_new_weights_without_a_new_trace():
    model, traces = _model(), []

    def make(infer):
        def run(weights, x):
            traces.append(1)
            return infer(weights, x)

        return run

    x = np.random.default_rng(1).uniform(size=(3, 5)).astype("float32")
    for seed in range(3):
        model.set_weights(_model(seed).get_weights())
        out = backend.to_numpy(compiled(model, "test", make)(ops.convert_to_tensor(x)))
        w = model.get_weights()
        np.testing.assert_allclose(
            out, np.tanh(x @ w[0] + w[1]) @ w[2] + w[3], rtol=1e-4, atol=1e-5
        )
    assert len(traces) == (1 if backend.compiles() else 3)


def test_compiled_function_keeps_no_model_alive():
    model = _model()
    compiled(model, "test", lambda infer: infer)(ops.ones((1, 5)))
    reference = weakref.ref(model)
    del model
    keras.backend.clear_session()
    # More than once: a collection that another thread has under way makes this one do nothing.
    for _ in range(20):
        gc.collect()
        if reference() is None:
            break
        time.sleep(0.05)
    held = reference()
    assert held is None, [f"{type(r)}: {str(r)[:300]}" for r in gc.get_referrers(held)]


def test_inference_leaves_out_dropout():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dropout(0.9)])
    x = ops.ones((2, 5))
    out = backend.inference(model)(backend.weights_of(model), x)
    assert backend.to_numpy(out).tolist() == [[1.0] * 5] * 2
