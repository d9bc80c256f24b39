"""SoftmaxGradientFlow: the gradient of a log-sum-exp, its curvature, and the step it allows."""

import keras
import numpy as np
import pytest
from helpers import jacobian, norm, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from dynzoo import backend, certify, constraints
from dynzoo.fields.log_sum_exp import curvature_float64, softmax_gradient_float64
from dynzoo.layers import SoftmaxGradientFlow


def built(shape=(4,), keys=5, seed=0, scale=2.0, project=True, **arguments):
    """A flow with random weights, inside its constraint unless told otherwise."""
    layer = SoftmaxGradientFlow(keys, seed=1, **arguments)
    layer.build((None, *shape))
    for i, w in enumerate(layer.weights):
        w.assign(normal(tuple(w.shape), seed + i, scale))
    if project:
        constraints.project(layer)
    return layer


def weights(seed, keys=5, scale=1.0):
    kernel = normal((4, keys), seed, scale).astype(np.float64)
    return kernel, normal((keys,), seed + 1).astype(np.float64)


@pytest.mark.parametrize("beta", [0.3, 1.0, 6.0])
def test_the_field_is_the_gradient_of_the_log_sum_exp(beta):
    kernel, bias = weights(1)
    x = normal((4,), 3).astype(np.float64)
    slope = jacobian(lambda x: logsumexp(beta * x @ kernel + bias, axis=-1)[:, None] / beta, x)[0]
    np.testing.assert_allclose(softmax_gradient_float64(x, kernel, bias, beta), slope, atol=1e-8)


@settings(max_examples=20)
@given(st.integers(1, 6), st.sampled_from([0.2, 1.0, 8.0]), st.integers(0, 1000))
def test_curvature_is_never_above_its_bound(keys, beta, seed):
    kernel, bias = weights(seed, keys)
    limit = curvature_float64(kernel, beta)
    assert limit <= 0.5 * beta * norm(kernel) ** 2 * (1 + 1e-9)
    rng = np.random.default_rng(seed)
    for x in rng.normal(size=(4, 4)) * rng.choice([0.1, 1.0, 5.0], (4, 1)):
        hessian = jacobian(lambda x: softmax_gradient_float64(x, kernel, bias, beta), x)
        values = np.linalg.eigvalsh(0.5 * (hessian + hessian.T))
        assert np.abs(hessian - hessian.T).max() <= 1e-7 * (1 + beta)
        assert values[0] >= -1e-7 and values[-1] <= limit + 1e-6


def test_two_keys_attain_the_bound_and_the_step_limit_is_sharp():
    kernel, beta = normal((4, 2), 2).astype(np.float64), 3.0
    middle = np.zeros(4)  # as near to one key as to the other
    hessian = jacobian(lambda x: softmax_gradient_float64(x, kernel, 0.0, beta), middle)
    assert norm(hessian) == pytest.approx(curvature_float64(kernel, beta), rel=1e-6)
    # opposite keys make |K|^2 / 2 and D^2 / 4 the same: no larger step is 1-Lipschitz
    layer = SoftmaxGradientFlow(2, beta=beta, use_bias=False)
    layer.build((None, 4))
    layer.kernels[0].assign(np.outer([1.0, 0, 0, 0], [1.0, -1.0]) / np.sqrt(2))
    matrix = jacobian(layer.call_float64, middle)
    assert np.linalg.eigvalsh(matrix)[0] == pytest.approx(-1.0, abs=1e-6)
    assert layer.lipschitz_bound((None, 4)) == pytest.approx(1.0, abs=1e-6)
    assert layer.step_limit == pytest.approx(2 * 2 / beta)


def test_common_parts_of_the_keys_do_not_count():
    kernel = 100.0 + normal((4, 3), 1).astype(np.float64)
    assert curvature_float64(kernel, 1.0) <= 0.25 * 50.0
    assert curvature_float64(kernel[:, :1], 1.0) == 0.0


@settings(max_examples=15)
@given(
    st.sampled_from([0.3, 5.0]),
    st.sampled_from([0.7, 2.0]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_steps_are_non_expansive_and_bounded_outside_the_constraint(beta, max_norm, project, seed):
    layer = built(beta=beta, max_norm=max_norm, seed=seed, project=project, steps=2)
    bound = layer.lipschitz_bound((None, 4))
    assert bound <= 1 + 2e-4 or not project
    for point in normal((4, 4), seed + 5, 2.0):
        assert norm(jacobian(layer.call_float64, point)) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(4,), (6, 4), (None, 4), (3, 2, 4), (None, None, 4)])
def test_each_vector_moves_by_itself(shape):
    layer = built(shape, beta=2.0, steps=2)
    known = tuple(n or 5 for n in shape)
    x = normal((2, *known), 4)
    y = backend.to_numpy(layer(x))
    assert y.shape == x.shape and layer(keras.Input(shape)).shape == (None, *shape)
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-5)
    alone = layer.call_float64(x.reshape(-1, 4)).reshape(x.shape)
    np.testing.assert_allclose(y, alone, atol=1e-5)
    assert np.abs(y - x).max() > 0.1


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e8, 1e20, 1e30])
def test_inputs_of_any_size(size):
    layer = built(beta=3.0)
    x = normal((8, 4), 3) * np.float32(size)
    y = backend.to_numpy(layer(x)).astype(np.float64)
    assert np.isfinite(y).all()
    before = np.linalg.norm(x[:4].astype(np.float64) - x[4:], axis=1)
    after = np.linalg.norm(y[:4] - y[4:], axis=1)
    assert (after <= before * (1 + 1e-5) + 1e-5).all()


def test_certificate_and_gradients():
    layer = built((6, 4), step_size="learned", steps=2)
    inputs = [keras.Input((6, 4)), layer, keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential(inputs)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    model.train_on_batch(normal((8, 6, 4), 1), normal((8, 3), 2))
    for weight, old in zip(model.weights, before, strict=True):
        assert np.abs(backend.to_numpy(weight.value) - old).max() > 1e-8, weight.path
    certificate = certify(model)
    assert certificate.rounding_bound.measured == ()
    kernel = model.layers[-1].get_weights()[0]
    assert certificate.lipschitz <= norm(kernel) * (1 + 1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": 0}, "`keys` must be a positive integer. Received: keys=0"),
        ({"beta": 0}, r"`beta` must be in \(0, inf\). Received: beta=0"),
        ({"step_size": 4.5}, r"`step_size` must be in \(0, 4\], or 'maximal' or 'learned'"),
        ({"beta": 2.0, "step_size": 2.5}, r"`step_size` must be in \(0, 2\]"),
        ({"max_norm": -1}, "`max_norm` must be in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxGradientFlow(**{"keys": 3, **arguments})
