"""FirstIntegralFlow: discrete gradients are exact, the integral is kept, orders of the steps."""

import keras
import numpy as np
import pytest
from helpers import jacobian, normal
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, operators
from dynzoo.layers.first_integral_flow import FirstIntegralFlow

IMAGE = (3, 3, 4)
METHODS = ["discrete_gradient", "relaxed_heun", "projected_heun", "projected_rk4"]
MATRIX = [[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]]


def built(shape=(4,), operator=None, scale=0.5, weight_seed=0, **arguments):
    layer = FirstIntegralFlow(operator or operators.Dense(5), **{"seed": 1, **arguments})
    layer.build((None, *shape))
    for i, w in enumerate(layer.weights):
        w.assign(normal(tuple(w.shape), weight_seed + i, scale))
    return layer


def drift(layer, x, y):
    """Change of the integral from x to y relative to the size of its terms."""
    before, after = layer.integral_float64(x), layer.integral_float64(y)
    return float(np.max(np.abs(after - before) / (1 + np.abs(before))))


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from(["quadratic", "convex"]))
def test_gradient_and_discrete_gradient_are_exact(seed, kind):
    layer = built(weight_seed=seed, integral=kind, scale=1.0)
    integral = layer._integral(4, np)
    x, y = (normal((3, 4), seed + i).astype(np.float64) for i in (1, 2))
    secant = (integral.discrete_gradient(x, y) * (y - x)).sum(-1)
    np.testing.assert_allclose(secant, integral.value(y) - integral.value(x), atol=1e-10)
    np.testing.assert_allclose(
        integral.discrete_gradient(x, y), integral.discrete_gradient(y, x), atol=1e-12
    )
    numeric = jacobian(lambda v: integral.value(v), x[0])
    np.testing.assert_allclose(integral.gradient(x)[0], numeric[0], atol=1e-7)
    np.testing.assert_allclose(integral.discrete_gradient(x, x), integral.gradient(x), atol=1e-12)
    np.testing.assert_allclose(layer.integral_float64(x), integral.value(x))


@settings(max_examples=15)
@given(
    st.integers(0, 1000),
    st.sampled_from([0.05, 1.0, 10.0]),
    st.sampled_from([None, 2]),
    st.floats(0.1, 2.0),
)
def test_quadratic_integral_is_kept_for_any_weights_and_step(seed, step_size, planes, scale):
    layer = built(weight_seed=seed, step_size=step_size, planes=planes, scale=scale, steps=2)
    x = normal((6, 4), seed)
    assert layer.integral_drift(x) <= 1e-10
    assert layer.step_residual(x) <= 1e-8
    y = backend.to_numpy(layer(x))
    assert np.abs(y - x).max() > 1e-4
    assert drift(layer, x, y) <= 1e-5


@settings(max_examples=15)
@example(86, "relaxed_heun", "quadratic", 0.1875)
@given(
    st.integers(0, 1000),
    st.sampled_from(METHODS),
    st.sampled_from(["quadratic", "convex"]),
    st.floats(0.02, 0.2),
)
def test_integral_is_kept_by_moderate_steps(seed, integrator, kind, step_size):
    layer = built(
        weight_seed=seed, integral=kind, integrator=integrator, step_size=step_size, steps=3
    )
    x = normal((6, 4), seed)
    # what the Newton steps of the others leave (6e-7 in the example) is within the promise
    promised = 1e-9 if integrator == "discrete_gradient" else 3 * layer.guarantees()[0].value
    assert layer.integral_drift(x) <= promised
    y = backend.to_numpy(layer(x))
    assert drift(layer, x, y) <= max(3e-6, promised)
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-4)


@pytest.mark.parametrize("kind", ["quadratic", "convex"])
def test_over_a_hundred_float32_steps(kind):
    layer = FirstIntegralFlow(
        operators.Dense(5),
        integral=kind,
        steps=100,
        shared=True,
        step_size=0.2,
        seed=1,
        iterations=3,
    )
    x = normal((6, 4), 3)
    y = backend.to_numpy(layer(x))
    assert drift(layer, x, y) <= 5e-6 and np.abs(y - x).max() > 0.1


def test_residual_falls_with_iterations_and_integral_does_not_need_them():
    x = normal((6, 4), 5)
    layers = [built(integral="convex", step_size=0.2, iterations=n) for n in (1, 3, 8)]
    residuals = [layer.step_residual(x) for layer in layers]
    assert 1e-5 < residuals[0] and residuals[1] < 0.1 * residuals[0]
    assert residuals[2] < 0.01 * residuals[1]
    assert all(layer.integral_drift(x) < 1e-8 for layer in layers[1:])
    with pytest.raises(ValueError, match="needs integrator='discrete_gradient'"):
        built(integrator="relaxed_heun").step_residual(x)


@pytest.mark.parametrize("kind", ["quadratic", "convex"])
@pytest.mark.parametrize("integrator", METHODS)
def test_order_of_convergence(kind, integrator):
    x, time = normal((5, 4), 7), 0.5

    def end(name, steps):
        layer = built(
            integral=kind,
            integrator=name,
            steps=steps,
            step_size=time / steps,
            shared=True,
            iterations=8,
        )
        return layer.call_float64(x)

    reference = end("projected_rk4", 200)
    order = {"projected_rk4": 4}.get(integrator, 2)
    errors = [np.abs(end(integrator, n) - reference).max() for n in (20, 40)]
    measured = np.log2(errors[0] / errors[1])
    if (kind, integrator) == ("convex", "relaxed_heun"):
        assert measured >= 0.8  # order 1 in general; the leading error term may be small
    else:
        assert measured == pytest.approx(order, abs=0.4)


def test_given_integral():
    layer = built((3,), matrix=MATRIX, vector=[0.1, -0.2, 0.3], step_size=0.7, steps=2)
    x = normal((6, 3), 2)
    expected = 0.5 * np.einsum("bi,ij,bj->b", x, MATRIX, x) + x @ [0.1, -0.2, 0.3]
    np.testing.assert_allclose(layer.integral_float64(x), expected, atol=1e-6)
    y = backend.to_numpy(layer(x))
    value = 0.5 * np.einsum("bi,ij,bj->b", y, MATRIX, y) + y @ [0.1, -0.2, 0.3]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-6)
    assert {w.name.split("_")[0] for w in layer.weights} == {"kernel", "bias", "out"}


@pytest.mark.parametrize(
    ("kind", "integrator"), [("convex", METHODS[0]), ("quadratic", METHODS[1])]
)
def test_float64_twin_and_compilation(kind, integrator):
    layer = built(
        integral=kind, integrator=integrator, steps=2, step_size="learned", max_step=0.3, planes=2
    )
    x = normal((6, 4), 6)
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=2e-5)
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), y, atol=1e-5)


def test_images_keep_the_integral_of_each_pixel():
    layer = built(IMAGE, operators.Conv(2), planes=2, integral="convex", step_size=0.2)
    x = normal((2, *IMAGE), 5)
    y = backend.to_numpy(layer(x))
    assert layer.integral_float64(y).shape == (2, 3, 3) and drift(layer, x, y) <= 3e-6
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-4)
    assert layer(keras.Input(IMAGE)).shape == (None, *IMAGE)


@pytest.mark.parametrize(
    ("kind", "integrator"), [("convex", METHODS[0]), ("quadratic", METHODS[1])]
)
def test_gradients_flow_to_every_weight(kind, integrator):
    layer = built(integral=kind, integrator=integrator, steps=2, step_size="learned", planes=2)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    model.train_on_batch(normal((8, 4), 1), normal((8, 4), 2))
    for weight, old in zip(model.weights, before, strict=True):
        moved = np.abs(backend.to_numpy(weight.value) - old)
        assert np.isfinite(moved).all() and moved.max() > 1e-7, weight.path


def test_guarantee_says_what_it_rests_on():
    convex = FirstIntegralFlow(operators.Dense(3), "convex", integrator="projected_heun")
    assert "iterations" in convex.guarantees()[0].condition
    assert "any finite weights" in built().guarantees()[0].condition


def test_mixed_precision():
    layer = FirstIntegralFlow(operators.Dense(5), step_size=0.2, seed=1, dtype="mixed_bfloat16")
    x = normal((6, 4))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    y = backend.to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"integral": "cubic"}, "`integral` must be one of 'quadratic', 'convex'"),
        ({"matrix": [[1.0, 2.0], [0.0, 1.0]]}, "`matrix` must be a symmetric positive definite"),
        ({"matrix": [[1.0, 0.0], [0.0, -1.0]]}, "`matrix` must be a symmetric positive definite"),
        ({"matrix": [1.0]}, "`matrix` must be a symmetric positive definite"),
        ({"vector": [float("inf")]}, "`vector` must be in"),
        ({"integral_units": 0}, "`integral_units` must be a positive integer"),
        ({"iterations": 0}, "`iterations` must be a positive integer"),
        ({"integrator": "cayley"}, "`integrator` must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FirstIntegralFlow(operators.Dense(3), **arguments)


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="`matrix` must have 4 rows"):
        FirstIntegralFlow(operators.Dense(3), matrix=MATRIX).build((None, 4))
