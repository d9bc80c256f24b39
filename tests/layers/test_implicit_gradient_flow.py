"""ImplicitGradientFlow: the resolvent, its residual, and bounds of iterations cut short."""

import keras
import numpy as np
import pytest
from helpers import jacobian, norm, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from dynzoo import backend, certify, constraints, operators
from dynzoo.integrators import ImplicitEuler
from dynzoo.layers import GradientFlow, ImplicitGradientFlow

IMAGE = (3, 3, 4)


def built(shape=(4,), operator=None, seed=0, scale=2.0, project=True, **arguments):
    """A flow with random weights, inside its constraint unless told otherwise."""
    layer = ImplicitGradientFlow(operator or operators.Dense(5), seed=1, **arguments)
    layer.build((None, *shape))
    for i, w in enumerate(layer.weights):
        w.assign(normal(tuple(w.shape), seed + i, scale))
    if project:
        constraints.project(layer)
    return layer


@pytest.mark.parametrize("step_size", [0.3, 3.0])
def test_it_is_the_proximal_map_of_the_potential(step_size):
    layer = built(activation="softplus", step_size=step_size, iterations=200)
    kernel, bias = (w.astype(np.float64) for w in layer.get_weights())

    def potential(u):  # whose derivative is the softplus, by the trapezoidal rule
        grid = np.linspace(-30.0, u, 4001, axis=-1)
        return np.trapezoid(np.logaddexp(0, grid), grid, axis=-1).sum()

    x = normal((4,), 3).astype(np.float64)
    z = layer.call_float64(x[None])[0]

    def goal(z):
        return 0.5 * np.sum((z - x) ** 2) + step_size * potential(z @ kernel + bias)

    best = minimize(goal, x, options={"gtol": 1e-8})
    np.testing.assert_allclose(z, best.x, atol=1e-4)
    assert goal(z) <= best.fun + 1e-8


@pytest.mark.parametrize("step_size", [0.5, 4.0])
def test_orthonormal_rows_make_it_an_explicit_step(step_size):
    implicit = built(operator=operators.Dense(3), step_size=step_size, iterations=200)
    explicit = GradientFlow(operators.Dense(3), step_size=step_size / (1 + step_size))
    explicit.build((None, 4))
    explicit.set_weights(implicit.get_weights())
    x = normal((40, 4), 3, 3.0)
    # as far as the projection leaves rows that are not quite orthonormal
    np.testing.assert_allclose(implicit.call_float64(x), explicit.call_float64(x), atol=2e-3)


@settings(max_examples=15)
@given(
    st.sampled_from(["relu", "tanh", "half_leaky_relu", "sigmoid"]),
    st.sampled_from([0.1, 2.0, 30.0, 1e4]),
    st.sampled_from([1, 2, 7]),
    st.integers(0, 1000),
)
def test_iterations_that_stop_early_are_covered(activation, step_size, iterations, seed):
    layer = built(
        activation=activation, step_size=step_size, iterations=iterations, seed=seed, steps=2
    )
    x = normal((5, 4), seed + 7, 2.0)
    bound = layer.lipschitz_bound((None, 4))
    assert bound <= 1.0 + 1e-4
    for point in x:
        assert norm(jacobian(layer.call_float64, point)) <= bound * (1 + 1e-6)
    (stated,) = (g.value for g in layer.guarantees() if g.property == "resolvent residual")
    residuals, sizes = layer.residual_float64(x)
    assert residuals.shape == (2, 5)
    assert (residuals <= (stated + 1e-5 * iterations) * sizes + 1e-12).all()
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-5)


@settings(max_examples=15)
@given(st.sampled_from([0.5, 2.0]), st.sampled_from([1, 3]), st.integers(0, 1000))
def test_small_steps_are_firmly_non_expansive_wherever_they_stop(step_size, iterations, seed):
    layer = built(step_size=step_size, iterations=iterations, seed=seed)
    assert "firmly non-expansive" in [g.property for g in layer.guarantees()]
    x, y = normal((2, 40, 4), seed + 3, 2.0).astype(np.float64)
    moved, apart = layer.call_float64(x) - layer.call_float64(y), x - y
    assert (np.sum(moved**2, axis=1) <= np.sum(moved * apart, axis=1) + 1e-4).all()


def test_large_steps_promise_the_resolvent_only_up_to_the_residual():
    found = [g.property for g in built(step_size=3.0).guarantees()]
    assert found == ["gradient field", "1-Lipschitz", "resolvent residual"]
    learned = ImplicitGradientFlow(operators.Dense(3), step_size="learned", max_step=2.0)
    assert learned.guarantees()[-1].property == "firmly non-expansive"


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_bound_of_kernels_outside_their_constraint(scale):
    # L is what the constraint allows: beyond it the iterations may diverge, and the bound says so
    layer = built(activation="linear", project=False, step_size=2.0, iterations=4)
    layer.kernels[0].assign(np.eye(4, 5) * scale)
    bound = layer.lipschitz_bound((None, 4))
    found = norm(jacobian(layer.call_float64, np.ones(4)))
    assert found <= bound * (1 + 1e-6)
    assert (bound > 1.0) == (scale > 1)
    if scale > 1:
        assert found == pytest.approx(bound, rel=0.2)  # nearly attained


def test_growth_bound_is_attained_by_linear_potentials():
    method = ImplicitEuler(iterations=5)
    for h, curvature, actual in [(0.5, 1.0, 1.0), (9.0, 1.0, 0.2), (3.0, 1.0, 4.0)]:
        share = method.share(h, curvature)
        value = method.step(lambda z, c=actual, s=share, h=h: s * h * c * z, 1.0, share)
        assert abs(value) <= method.growth_bound(h, curvature, actual, actual)
    # where the curvature is known to one number it contracts as the exact step does
    assert ImplicitEuler(60).growth_bound(2.0, 1.0, 0.5, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("operator", [operators.Pointwise(3), operators.Conv(2)])
def test_images(operator):
    layer = built(IMAGE, operator, step_size=5.0, steps=2)
    x = normal((2, *IMAGE), 5)
    np.testing.assert_allclose(backend.to_numpy(layer(x)), layer.call_float64(x), atol=1e-5)
    assert layer.lipschitz_bound((None, *IMAGE)) <= 1 + 1e-4


def test_certificate_and_gradients():
    layer = built(step_size="learned", steps=2)
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    model.train_on_batch(normal((8, 4), 1), normal((8, 3), 2))
    for weight, old in zip(model.weights, before, strict=True):
        assert np.abs(backend.to_numpy(weight.value) - old).max() > 1e-8, weight.path
    certificate = certify(model)
    assert certificate.rounding_bound.measured == ()
    kernel = model.layers[-1].get_weights()[0]
    assert certificate.lipschitz <= norm(kernel) * (1 + 1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0}, r"`step_size` must be in \(0, inf\), or 'learned'.*step_size=0"),
        ({"step_size": "maximal"}, "or 'learned'. Received: step_size='maximal'"),
        ({"iterations": 0}, "`iterations` must be a positive integer"),
        ({"constraint": None}, "`constraint` must be one of.*constraint=None"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImplicitGradientFlow(operators.Dense(3), **arguments)
