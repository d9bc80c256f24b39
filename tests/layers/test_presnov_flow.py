"""PresnovFlow: its two parts, the order of the splitting, and the change of the norm."""

import keras
import numpy as np
import pytest
from helpers import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, integrators, operators
from dynzoo.fields.sphere import signed_gradient_field, sphere_field
from dynzoo.layers.presnov_flow import PresnovFlow

IMAGE = (3, 3, 4)


def built(shape=(4,), operator=None, scale=0.5, weight_seed=0, **arguments):
    layer = PresnovFlow(operator or operators.Dense(5), **{"seed": 1, **arguments})
    layer.build((None, *shape))
    for i, w in enumerate(layer.weights):
        w.assign(normal(tuple(w.shape), weight_seed + i, scale))
    return layer


def lengths(x):
    return np.linalg.norm(np.asarray(x, dtype=np.float64), axis=-1)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.floats(0.1, 5.0), st.sampled_from(["relaxed_heun", "cayley"]))
def test_norm_changes_by_the_gradient_part_alone(seed, step_size, integrator):
    layer = built(weight_seed=seed, step_size=step_size, integrator=integrator, planes=1 + seed % 2)
    x = normal((5, 4), seed)
    turned = layer.call_float64(x)
    field = layer._gradient_field(0, np)
    # Lie with Euler: y = z + h grad U(z) with |z| = |x|; find z by the layer without its potential
    scales = layer.gradient_weights[0]["scales"]
    kept = backend.to_numpy(scales.value)
    scales.assign(np.zeros(5, "float32"))
    z = layer.call_float64(x)
    np.testing.assert_allclose(lengths(z), lengths(x), rtol=1e-12)
    z32 = backend.to_numpy(layer(x))
    np.testing.assert_allclose(lengths(z32), lengths(x), rtol=5e-7)
    scales.assign(kept)
    np.testing.assert_allclose(turned, z + step_size * field(z), atol=1e-10)
    change = np.abs(lengths(turned) - lengths(x))
    assert (change <= step_size * lengths(field(z)) + 1e-10).all()


def test_gradient_part_is_a_gradient():
    k, b, a = (normal(s, i).astype(np.float64) for i, s in enumerate([(4, 5), (5,), (5,)]))
    operator = operators.Dense(5)
    field = signed_gradient_field(
        operator.apply_float64, operator.adjoint_float64, np.tanh, k, b, a
    )
    x, step = normal((1, 4), 9).astype(np.float64), 1e-6

    def potential(x):
        return (a * np.logaddexp(x @ k + b, -(x @ k + b))).sum(-1)

    numeric = [
        (potential(x + step * e) - potential(x - step * e))[0] / (2 * step) for e in np.eye(4)
    ]
    np.testing.assert_allclose(field(x)[0], numeric, atol=1e-7)


@pytest.mark.parametrize(
    ("splitting", "gradient_integrator", "order"),
    [("lie", "euler", 1), ("lie", "heun", 1), ("strang", "heun", 2)],
)
@pytest.mark.parametrize("integrator", ["projected_heun", "cayley_midpoint"])
def test_order_of_the_splitting(splitting, gradient_integrator, order, integrator):
    x, time = normal((5, 4), 7).astype(np.float64), 1.0

    def end(steps):
        layer = built(
            steps=steps,
            step_size=time / steps,
            shared=True,
            integrator=integrator,
            splitting=splitting,
            gradient_integrator=gradient_integrator,
        )
        return layer, layer.call_float64(x)

    layer, coarse = end(20)
    sphere, gradient = sphere_field(layer._network(0, np)), layer._gradient_field(0, np)
    reference = x
    for _ in range(200):
        reference = integrators.RK4.step(lambda y: sphere(y) + gradient(y), reference, time / 200)
    errors = [np.abs(y - reference).max() for y in (coarse, end(40)[1])]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("splitting", ["lie", "strang"])
def test_float64_twin_and_compilation(splitting):
    layer = built(splitting=splitting, steps=2, step_size="learned", gradient_integrator="heun")
    x = normal((5, 4), 6)
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-5)
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), y, atol=1e-5)
    assert all(0 < h < 1 for h in layer.step_sizes())


def test_images():
    layer = built(IMAGE, operators.Conv(2), planes=2)
    x = normal((2, *IMAGE), 5)
    np.testing.assert_allclose(backend.to_numpy(layer(x)), layer.call_float64(x), atol=1e-5)
    assert layer(keras.Input(IMAGE)).shape == (None, *IMAGE)


def test_gradients_flow_to_every_weight_and_seeds_repeat():
    one, other = (PresnovFlow(operators.Dense(3), steps=2, seed=4) for _ in range(2))
    one.build((None, 4)), other.build((None, 4))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    layer = built(steps=2, step_size="learned", planes=2)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    model.train_on_batch(normal((8, 4), 1), normal((8, 4), 2))
    for weight, old in zip(model.weights, before, strict=True):
        moved = np.abs(backend.to_numpy(weight.value) - old)
        assert np.isfinite(moved).all() and moved.max() > 1e-6, weight.path


def test_guarantees_are_of_the_two_parts():
    found = [g.property for g in PresnovFlow(operators.Dense(5)).guarantees()]
    assert found == ["norm kept by the sphere part", "norm change bounded"]


def test_mixed_precision():
    layer = PresnovFlow(operators.Dense(5), seed=1, dtype="mixed_bfloat16")
    x = normal((5, 4))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    y = backend.to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"splitting": "yoshida"}, "`splitting` must be one of 'lie', 'strang'"),
        ({"gradient_integrator": "cayley"}, "`gradient_integrator` must be one of"),
        ({"integrator": "euler"}, "`integrator` must be one of"),
        ({"step_size": -1}, "`step_size` must be in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PresnovFlow(operators.Dense(3), **arguments)
