"""VolumePreservingFlow: det = 1, the explicit inverse, and gradients through depth."""

import math

import keras
import numpy as np
import pytest
from helpers import jacobian, norm, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, constraints, integrators, operators
from dynzoo.integrators import splitting
from dynzoo.layers.volume_preserving_flow import VolumePreservingFlow

IMAGE = (3, 3, 4)
ACTIVATIONS = ["tanh", "softplus", "sigmoid", "linear"]


def built(operator=None, shape=(6,), seed=0, scale=2.0, project=True, **arguments):
    """A flow with random weights, inside its constraint unless told otherwise."""
    operator = operator or operators.Dense(shape[-1] // 2)
    layer = VolumePreservingFlow(operator, seed=1, **arguments)
    layer.build((None, *shape))
    for i, kernel in enumerate(layer.kernels):
        kernel.assign(normal(tuple(kernel.shape), seed + i, scale))
    for i, bias in enumerate(layer.biases):
        bias.assign(normal(tuple(bias.shape), seed + 100 + i, 0.3))
    if project:
        constraints.project(layer)
    return layer


@settings(max_examples=25)
@given(
    st.sampled_from(splitting.names()),
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.floats(0.01, 1.0),
    st.floats(0.1, 1.5),
    st.integers(0, 1000),
)
def test_volume_inverse_and_bound(integrator, activation, second_order, step_size, scale, seed):
    layer = built(
        seed=seed,
        scale=scale,
        project=False,
        constraint=None,
        integrator=integrator,
        activation=activation,
        second_order=second_order,
        step_size=step_size,
        steps=2,
    )
    x = normal((6,), seed + 7)
    m = jacobian(layer.call_float64, x)
    values = np.linalg.svd(m, compute_uv=False)
    rounding = 1e-8 * values.max()
    assert np.linalg.det(m) == pytest.approx(1.0, abs=1e-7 * values.max() ** 3)
    bound = layer.lipschitz_bound((None, 6))
    assert values.max() <= bound * (1 + 1e-7) and values.min() >= 1 / bound - rounding
    back = layer.inverse_float64(layer.call_float64(x[None]))
    np.testing.assert_allclose(back[0], x, atol=1e-12 * bound)


@pytest.mark.parametrize("integrator", splitting.names())
@pytest.mark.parametrize("second_order", [False, True])
def test_float32_volume_and_inverse(integrator, second_order):
    layer = built(steps=2, step_size=0.4, integrator=integrator, second_order=second_order)
    x = normal((5, 6), 6)
    y = layer(x)
    np.testing.assert_allclose(backend.to_numpy(y), layer.call_float64(x), atol=5e-6)
    np.testing.assert_allclose(backend.to_numpy(layer.inverse(y)), x, atol=5e-6)
    np.testing.assert_allclose(backend.to_numpy(layer(layer.inverse(x))), x, atol=5e-6)
    gradient = backend.value_and_grad(lambda z, w: ops.sum(layer(z) * w))
    # six copies of one point against the basis: the rows of the Jacobian
    points = ops.convert_to_tensor(np.repeat(x[:1], 6, axis=0))
    _, rows = gradient(points, ops.convert_to_tensor(np.eye(6, dtype="float32")))
    m = backend.to_numpy(rows).astype(np.float64)
    assert np.linalg.det(m) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(m, jacobian(layer.call_float64, x[0]), atol=1e-5)


def test_published_step():
    layer = built(step_size=0.3)
    a, b = (backend.to_numpy(k.value).astype(np.float64) for k in layer.kernels)
    ab, bb = (backend.to_numpy(k.value).astype(np.float64) for k in layer.biases)
    x, v = np.split(normal((4, 6), 2).astype(np.float64), 2, axis=1)
    new_x = x + 0.3 * np.tanh(v @ a + ab)
    new_v = v + 0.3 * np.tanh(new_x @ b + bb)
    found = layer.call_float64(np.concatenate([x, v], axis=1))
    np.testing.assert_allclose(found, np.concatenate([new_x, new_v], axis=1), atol=1e-13)


@pytest.mark.parametrize("second_order", [False, True])
def test_gradients_through_100_layers(second_order):
    """Factor B of the docstring: below 2.72 for 100 steps of 0.01 with max_norm 1."""
    layer = built(shape=(4,), steps=100, step_size=0.01, second_order=second_order)
    assert layer.gradient_factor < math.exp(1.0) * (1 + 1e-4)
    x, w = normal((8, 4), 1), normal((8, 4), 2)
    if not second_order:  # the backend's own gradient
        gradient = backend.value_and_grad(lambda z, w: ops.sum(layer(z) * w))
        _, g = gradient(ops.convert_to_tensor(x), ops.convert_to_tensor(w))
        ratio = np.linalg.norm(backend.to_numpy(g), axis=1) / np.linalg.norm(w, axis=1)
        assert ratio.max() <= layer.gradient_factor and ratio.min() >= 1 / layer.gradient_factor
    values = np.linalg.svd(jacobian(layer.call_float64, x[0]), compute_uv=False)
    assert values.max() <= layer.gradient_factor and values.min() >= 1 / layer.gradient_factor
    assert values.max() > 1.05  # the bound is about something


def test_gradient_factor_is_nearly_attained():
    # x' = v, v' = x grows by e in unit time, the bound of a hundred steps but for O(h)
    layer = built(shape=(4,), steps=100, step_size=0.01, activation="linear", shared=True)
    for kernel in layer.kernels:
        kernel.assign(np.eye(2))
    gain = norm(jacobian(layer.call_float64, normal((4,), 1)))
    assert 0.98 * layer.gradient_factor <= gain <= layer.gradient_factor


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("integrator", splitting.names())
def test_layer_integrates_its_field(integrator, second_order):
    exact = normal((4, 6), 3).astype(np.float64)
    results, x = [], exact
    for steps in (4, 8):
        layer = built(
            shared=True,
            steps=steps,
            step_size=1 / steps,
            scale=1.0,
            integrator=integrator,
            second_order=second_order,
        )
        results.append(layer.call_float64(x))
    for _ in range(100):
        exact = integrators.get("rk4").step(layer.field_float64, exact, 0.01)
    errors = [np.linalg.norm(r - exact) for r in results]
    order = splitting.get(integrator).order
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5)


def test_the_field_has_no_divergence():
    layer = built(scale=1.0)
    m = jacobian(layer.field_float64, normal((6,), 4))
    np.testing.assert_allclose(np.diag(m), 0.0, atol=1e-9)


OPERATORS = {
    "pointwise": lambda: operators.Pointwise(2),
    "conv": lambda: operators.Conv(2),
    "shifted": lambda: operators.ShiftedPointwise(2),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_images(operator):
    layer = built(OPERATORS[operator](), IMAGE, steps=2, step_size=0.5)
    x = normal((2, *IMAGE), 1)
    y = layer(x)
    np.testing.assert_allclose(backend.to_numpy(y), layer.call_float64(x), atol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(layer.inverse(y)), x, atol=1e-5)
    m = jacobian(layer.call_float64, x[0])
    assert np.linalg.det(m) == pytest.approx(1.0, abs=1e-6)
    assert norm(m) <= layer.lipschitz_bound((None, *IMAGE))
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), backend.to_numpy(y), atol=1e-6)


def test_gradients_flow_to_every_weight():
    layer = VolumePreservingFlow(operators.Dense(2), step_size="learned", seed=1)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    before = model.get_weights()
    model.train_on_batch(normal((8, 4), 1), normal((8, 4), 2))
    for weight, old in zip(model.weights, before, strict=True):
        change = np.abs(backend.to_numpy(weight.value) - old).max()
        assert np.isfinite(change) and change > 1e-6, weight.path
    assert all(0 < h < 1 for h in layer.step_sizes())
    assert layer.lipschitz_bound((None, 4)) <= layer.gradient_factor


def test_mixed_precision_stays_close():
    layer = VolumePreservingFlow(operators.Dense(3), seed=1, dtype="mixed_bfloat16")
    x = normal((2, 6))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    found = backend.to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(found, layer.call_float64(x), atol=0.1)
    back = backend.to_numpy(ops.cast(layer.inverse(y), "float32"))
    np.testing.assert_allclose(back, x, atol=0.1)


def test_guarantees_follow_the_configuration():
    found = VolumePreservingFlow(operators.Dense(2)).guarantees()
    assert [g.property for g in found] == ["volume kept", "invertible", "gradient norm"]
    free = VolumePreservingFlow(operators.Dense(2), constraint=None)
    assert [g.property for g in free.guarantees()] == ["volume kept", "invertible"]
    assert free.gradient_factor == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0}, r"`step_size` must be in \(0, inf\), or 'learned'. .*step_size=0"),
        ({"step_size": "maximal"}, "`step_size` must be in.*step_size='maximal'"),
        ({"integrator": "rk4"}, "`integrator` must be one of 'symplectic_euler"),
        (
            {"constraint": "orthonormal"},
            "`constraint` must be 'spectral_norm', a Keras constraint or None",
        ),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"max_norm": 0.0}, "`max_norm` must be in"),
        ({"max_step": 0.0}, "`max_step` must be in"),
        ({"activation": "gelu"}, "`activation` must have slopes"),
        ({"operator": None}, "`operator` must be a dynzoo operator"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VolumePreservingFlow(**{"operator": operators.Dense(3), **arguments})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((None, 5), "`VolumePreservingFlow` needs an even number of features"),
        ((None, 8), "`operator` must have 4 outputs.*with 3 outputs"),
    ],
)
def test_bad_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        VolumePreservingFlow(operators.Dense(3)).build(shape)
