"""GradientFlow: what it guarantees, on random weights and the worst inputs found."""

import keras
import numpy as np
import pytest
from helpers import jacobian, norm, normal, worst_gain
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, constraints, integrators, operators
from dynzoo.fields.gradient import contractive_factor
from dynzoo.layers import GradientFlow

IMAGE = (3, 3, 4)
OPERATORS = {
    "dense": (lambda: operators.Dense(4), (6,)),
    "pointwise": (lambda: operators.Pointwise(3), IMAGE),
    "shifted": (lambda: operators.ShiftedPointwise(3), IMAGE),
    "shifted_zero": (lambda: operators.ShiftedPointwise(3, "zero"), IMAGE),
    "conv": (lambda: operators.Conv(2), IMAGE),
    "conv_circular_even": (lambda: operators.Conv(2, 2, "circular"), IMAGE),
}


def built(operator, shape, seed=0, scale=2.0, project=True, **arguments):
    """A flow with random kernels and biases, inside its constraint unless told otherwise."""
    layer = GradientFlow(operator, seed=1, **arguments)
    layer.build((None, *shape))
    for i, kernel in enumerate(layer.kernels):
        kernel.assign(normal(tuple(kernel.shape), seed + i, scale))
    for i, bias in enumerate(layer.biases):
        bias.assign(normal(tuple(bias.shape), seed + 100 + i, 0.3))
    for i, raw in enumerate(layer.raw_steps):
        raw.assign(float(i - 1))
    if project:
        constraints.project(layer)
    return layer


def measured(layer, shape, **arguments):
    return worst_gain(layer.call_float64, shape, **arguments)


def float32_gain(layer, shape, seed=5, count=16):
    """Gain of the backend's own pass between points so far apart that rounding is no matter."""
    x, y = normal((count, *shape), seed), normal((count, *shape), seed + 1)
    fx, fy = (backend.to_numpy(layer(a)).astype(np.float64).reshape(count, -1) for a in (x, y))
    before = np.linalg.norm((x.astype(np.float64) - y).reshape(count, -1), axis=1)
    return float((np.linalg.norm(fx - fy, axis=1) / before).max())


@pytest.mark.parametrize("name", OPERATORS)
def test_contractive_for_every_operator(name):
    make, shape = OPERATORS[name]
    layer = built(make(), shape, steps=2)
    bound = layer.lipschitz_bound((None, *shape))
    assert bound <= 1 + 4e-5
    assert measured(layer, shape) <= min(bound, 1 + 1e-5) + 1e-8
    assert float32_gain(layer, shape) <= 1 + 1e-5


@pytest.mark.parametrize("integrator", integrators.names())
@pytest.mark.parametrize("activation", ["relu", "half_leaky_relu", "tanh", "linear"])
def test_contractive_for_every_integrator(integrator, activation):
    for constraint, step_size in (("spectral_norm", "maximal"), ("orthonormal", 1.3)):
        layer = built(
            operators.Dense(6),
            (5,),
            integrator=integrator,
            activation=activation,
            constraint=constraint,
            step_size=step_size,
        )
        bound = layer.lipschitz_bound((None, 5))
        assert bound <= 1 + 4e-5
        assert measured(layer, (5,), points=2) <= bound + 1e-8


@settings(max_examples=10)
@given(st.floats(0.05, 3.0), st.floats(0.1, 2.0), st.sampled_from(integrators.names()))
def test_bound_holds_with_any_step_and_norm(step_size, scale, integrator):
    # nothing bounds A here, so steps may expand, and the stated bound must say by how much
    layer = built(
        operators.Dense(4),
        (4,),
        scale=scale,
        project=False,
        constraint=None,
        step_size=step_size,
        integrator=integrator,
        activation="leaky_relu",
    )
    assert measured(layer, (4,), points=2) <= layer.lipschitz_bound((None, 4)) * (1 + 1e-7)


def test_max_norm_sets_the_largest_step():
    layer = built(operators.Dense(4), (4,), constraint="spectral_norm", max_norm=0.5)
    assert layer.step_sizes() == [8.0]
    assert norm(backend.to_numpy(layer.kernels[0].value)) == pytest.approx(0.5, rel=1e-4)
    assert measured(layer, (4,)) <= 1 + 1e-5
    wide = built(operators.Dense(4), (4,), constraint="spectral_norm", max_norm=2.0)
    assert wide.step_sizes() == [0.5] and measured(wide, (4,)) <= 1 + 1e-5


def test_slope_and_smallest_singular_value_give_a_strict_contraction():
    layer = built(operators.Dense(6), (4,), activation="half_leaky_relu", step_size=1.0)
    # orthonormal, injective: slopes in [1/2, 1] leave eigenvalues in [0, 1/2]
    assert layer.lipschitz_bound((None, 4)) == pytest.approx(0.5, abs=1e-4)
    assert measured(layer, (4,)) <= 0.5 + 1e-4
    assert contractive_factor(1.5, 1.0, 0.5, 0.5) == pytest.approx(0.8125)
    assert contractive_factor(3.0, 1.0, 0.0, 0.0) == 2.0


@pytest.mark.parametrize("integrator", integrators.names())
def test_expansive_within_its_bound_which_is_attained(integrator):
    layer = built(
        operators.Dense(3),
        (4,),
        direction="expansive",
        step_size=0.8,
        activation="linear",
        integrator=integrator,
    )
    bound = layer.lipschitz_bound((None, 4))
    gain = measured(layer, (4,))
    assert gain <= bound * (1 + 1e-7) and gain >= bound * (1 - 1e-4)
    if integrator == "euler":
        assert bound == pytest.approx(1.8, abs=1e-4)


def test_expansive_product_over_steps_and_learned_limit():
    layer = built(
        operators.Conv(2), IMAGE, direction="expansive", step_size="learned", max_step=0.5, steps=3
    )
    assert all(0 < h < 0.5 for h in layer.step_sizes())
    bound = layer.lipschitz_bound((None, *IMAGE))
    limit = np.prod([1 + h * (1 + 1e-5) ** 2 for h in layer.step_sizes()])
    assert measured(layer, IMAGE, points=1) <= bound <= limit * (1 + 1e-9)


@pytest.mark.parametrize("raw", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("direction", ["contractive", "expansive"])
def test_learned_step_stays_in_its_interval(raw, direction):
    layer = built(
        operators.Dense(4),
        (4,),
        step_size="learned",
        steps=2,
        shared=True,
        direction=direction,
        max_step=0.7,
    )
    layer.raw_steps[1].assign(raw)
    limit = 2.0 if direction == "contractive" else 0.7
    assert len(layer.raw_steps) == 2 and len(layer.kernels) == 1
    assert all(0 <= h <= limit for h in layer.step_sizes())
    bound = layer.lipschitz_bound((None, 4))
    assert measured(layer, (4,), points=1) <= bound * (1 + 1e-7)
    if direction == "contractive":
        assert bound <= 1 + 4e-5
    x = normal((3, 4), 9)
    np.testing.assert_allclose(backend.to_numpy(layer(x)), layer.call_float64(x), atol=1e-5)


def test_maximal_orthonormal_relu_step_is_an_orthogonal_map_of_tangents():
    for units, features in ((3, 6), (6, 6), (9, 6)):
        layer = built(operators.Dense(units), (features,), steps=2, scale=1.0)
        for seed in range(3):
            m = jacobian(layer.call_float64, normal((features,), seed))
            if units <= features:  # orthonormal rows
                np.testing.assert_allclose(m.T @ m, np.eye(features), atol=1e-5)
            else:
                assert norm(m) <= 1 + 1e-5
    shifted = built(operators.ShiftedPointwise(3), IMAGE)
    m = jacobian(shifted.call_float64, normal(IMAGE, 4))
    np.testing.assert_allclose(m.T @ m, np.eye(36), atol=1e-5)


def test_bug_injection_is_seen_by_bound_and_measurement():
    layer = built(operators.Dense(4), (4,), constraint=None, step_size=2.0, scale=1.0)
    kernel = normal((4, 4), 3)
    layer.kernels[0].assign(1.2 * kernel / norm(kernel))
    layer.biases[0].assign(np.full(4, 5.0))  # all rectifiers are on near zero
    assert layer.lipschitz_bound((None, 4)) == pytest.approx(2 * 1.44 - 1, abs=1e-4)
    assert measured(layer, (4,), scale=0.1) == pytest.approx(2 * 1.44 - 1, abs=1e-4)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("integrator", ["euler", "rk4"])
def test_float64_twin(name, integrator):
    make, shape = OPERATORS[name]
    layer = built(make(), shape, steps=2, step_size="learned", integrator=integrator)
    x = normal((4, *shape), 6)
    np.testing.assert_allclose(backend.to_numpy(layer(x)), layer.call_float64(x), atol=1e-5)
    assert layer.call_float64(x).dtype == np.float64


def test_shared_weights_are_an_autonomous_system():
    layer = built(operators.Dense(4), (4,), steps=3, shared=True)
    once = built(operators.Dense(4), (4,), steps=1)
    once.set_weights(layer.get_weights())
    assert len(layer.weights) == 2
    x = normal((3, 4), 2)
    expected = x
    for _ in range(3):
        expected = once.call_float64(expected)
    np.testing.assert_allclose(layer.call_float64(x), expected, atol=1e-12)
    np.testing.assert_allclose(backend.to_numpy(layer(x)), expected, atol=1e-5)


def test_starts_inside_its_constraint():
    for arguments in ({}, {"constraint": "spectral_norm", "max_norm": 0.5}):
        layer = GradientFlow(operators.Dense(4), seed=3, **arguments)
        layer.build((None, 6))
        size = norm(backend.to_numpy(layer.kernels[0].value))
        assert size == pytest.approx(layer.max_norm, rel=1e-5)
    # orthonormal rows have norm 1, whatever the other constraint would allow
    layer = GradientFlow(operators.Dense(4), max_norm=0.5)
    layer.build((None, 6))
    kernel = backend.to_numpy(layer.kernels[0].value)
    np.testing.assert_allclose(np.linalg.svd(kernel, compute_uv=False), 1.0, atol=1e-5)
    one, other = (GradientFlow(operators.Dense(3), steps=2, seed=s) for s in (4, 4))
    one.build((None, 5)), other.build((None, 5))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.get_weights()[0], one.get_weights()[2])


@pytest.mark.parametrize("direction", ["contractive", "expansive"])
def test_gradients_flow_to_every_weight(direction):
    layer = GradientFlow(
        operators.Dense(3), step_size="learned", steps=2, integrator="heun", direction=direction
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    # not at h = 1, where the slope of Heun's 1 - h + h^2 / 2 vanishes
    for raw in layer.raw_steps:
        raw.assign(0.5)
    before = model.get_weights()
    model.train_on_batch(normal((8, 4), 1), normal((8, 4), 2))
    for weight, old in zip(model.weights, before, strict=True):
        assert np.abs(backend.to_numpy(weight.value) - old).max() > 1e-6, weight.path


def test_mixed_precision_stays_close():
    layer = GradientFlow(
        operators.Pointwise(3), step_size="learned", seed=1, dtype="mixed_bfloat16"
    )
    x = normal((2, *IMAGE))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    y = backend.to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=0.1)
    assert layer.kernels[0].dtype == "float32"


@pytest.mark.parametrize("activation", ["gelu", "silu", "maxmin", lambda x: x])
def test_activations_outside_the_slope_range_are_refused(activation):
    with pytest.raises(ValueError, match="`activation` must have slopes"):
        GradientFlow(operators.Dense(3), activation=activation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 2.1}, r"`step_size` must be in \(0, 2\].*step_size=2.1"),
        ({"step_size": 0}, "`step_size` must be in"),
        ({"step_size": -0.5}, "`step_size` must be in"),
        ({"step_size": float("nan")}, "`step_size` must be in"),
        ({"step_size": float("inf"), "constraint": None}, r"`step_size` must be in \(0, inf\)"),
        ({"step_size": None}, "`step_size` must be in.*step_size=None"),
        ({"step_size": "large"}, "`step_size` must be in.*step_size='large'"),
        ({"step_size": True}, "`step_size` must be in"),
        ({"step_size": 2.0, "integrator": "rk4"}, "`step_size` must be in"),
        ({"step_size": 0.6, "constraint": "spectral_norm", "max_norm": 2.0}, r"\(0, 0.5\]"),
        ({"constraint": None}, "`step_size` must be a positive number"),
        ({"constraint": None, "step_size": "learned"}, "`step_size` must be a positive number"),
        ({"direction": "expansive"}, "`step_size` must be a positive number"),
        ({"direction": "sideways"}, "`direction` must be"),
        ({"constraint": "unit"}, "`constraint` must be"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"steps": 1.0}, "`steps` must be a positive integer"),
        ({"max_norm": 0.0}, "`max_norm` must be in"),
        ({"max_step": float("inf")}, "`max_step` must be in"),
        ({"integrator": "rk5"}, "`integrator` must be one of"),
        ({"operator": keras.layers.Dense(3)}, "`operator` must be a dynzoo operator"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GradientFlow(**{"operator": operators.Dense(3), **arguments})


def test_orthonormal_convolution_is_refused():
    with pytest.raises(ValueError, match="`constraint` must be"):
        GradientFlow(operators.Conv(2), constraint="orthonormal").build((None, *IMAGE))


def test_keras_own_initializers_and_constraints():
    dense = operators.Dense(4)
    layer = GradientFlow(dense, kernel_initializer=keras.initializers.Constant(3.0))
    layer.build((None, 6))
    assert layer.lipschitz_bound((None, 6)) <= 1.0 + 1e-4  # brought within the constraint
    layer = GradientFlow(dense, constraint=keras.constraints.MaxNorm(1.0), step_size=0.5)
    layer.build((None, 6))
    assert isinstance(layer.kernels[0].constraint, keras.constraints.MaxNorm)
    assert [g.property for g in layer.guarantees()] == ["gradient field"]  # nothing bounds A
    again = GradientFlow.from_config(layer.get_config())
    assert isinstance(again.kernel_constraint, keras.constraints.MaxNorm)
    with pytest.raises(ValueError, match="`step_size` must be a positive number"):
        GradientFlow(dense, constraint=keras.constraints.MaxNorm(1.0))
    word = GradientFlow(dense, constraint=constraints.Orthonormal(5))
    assert (word.constraint, word.projection_steps) == ("orthonormal", 5)
    word = GradientFlow(dense, constraint=constraints.SpectralNorm(0.5))
    assert (word.constraint, word.max_norm) == ("spectral_norm", 0.5)
