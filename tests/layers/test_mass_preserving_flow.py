"""MassPreservingFlow, SumLift, SumProjection: the weighted sum is kept."""

import keras
import numpy as np
import pytest
from helpers import norm, normal, unrolled
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, integrators, operators
from dynzoo.layers.mass_preserving_flow import MassPreservingFlow, SumLift, SumProjection

IMAGE = (3, 3, 4)
WEIGHTS = [1.0, -2.0, 0.0, 0.5]


def built(shape=(4,), operator=None, scale=0.5, weight_seed=0, **arguments):
    layer = MassPreservingFlow(operator or operators.Dense(5), **{"seed": 1, **arguments})
    layer.build((None, *shape))
    for i, w in enumerate(layer.weights):
        w.assign(normal(tuple(w.shape), weight_seed + i, scale))
    return layer


def invariant(x, weights):
    x = np.asarray(x, dtype=np.float64)
    return x.sum(-1) if weights is None else x @ np.asarray(weights)


@settings(max_examples=12)
@given(
    st.integers(0, 1000),
    st.sampled_from([0.05, 1.0, 10.0]),
    st.sampled_from(integrators.names()),
    st.sampled_from([None, 2]),
    st.sampled_from([None, WEIGHTS]),
)
def test_weighted_sum_is_kept_for_any_weights_and_step(
    seed, step_size, integrator, planes, weights
):
    layer = built(
        weight_seed=seed,
        step_size=step_size,
        integrator=integrator,
        planes=planes,
        weights=weights,
        steps=2,
    )
    x = normal((5, 4), seed)
    y = layer.call_float64(x)
    size = np.abs(y).max() + np.abs(x).max()
    assert np.abs(invariant(y, weights) - invariant(x, weights)).max() <= 1e-13 * size
    y = backend.to_numpy(layer(x))
    assert np.abs(y - x).max() > 1e-3
    assert np.abs(invariant(y, weights) - invariant(x, weights)).max() <= 4e-6 * size


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("planes", [None, 2])
def test_field_itself_is_tangent(weights, planes):
    # without the part of the code that takes out rounding
    layer = built(weights=weights, planes=planes)
    x = normal((5, 4), 3).astype(np.float64)
    c = np.ones(4) if weights is None else np.asarray(weights)
    f = layer._network(0, np)(x).apply(c)
    assert np.abs(f).max() > 0.1 and np.abs(f @ c).max() <= 1e-12


def test_order_is_that_of_the_integrator():
    x = normal((5, 4), 7)

    def end(name, steps):
        layer = built(integrator=name, steps=steps, step_size=1.0 / steps, shared=True)
        return layer.call_float64(x)

    reference = end("rk4", 200)
    for name, order in (("euler", 1), ("heun", 2)):
        errors = [np.abs(end(name, n) - reference).max() for n in (20, 40)]
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_float64_twin_and_compilation():
    layer = built(steps=2, step_size="learned", integrator="heun", weights=WEIGHTS)
    x = normal((5, 4), 6)
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-5)
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), y, atol=1e-5)


def test_images_keep_the_mass_of_each_pixel():
    layer = built(IMAGE, operators.Conv(2), planes=2)
    x = normal((2, *IMAGE), 5)
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(invariant(y, None), invariant(x, None), atol=1e-5)
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-5)
    assert layer(keras.Input(IMAGE)).shape == (None, *IMAGE)


def test_gradients_flow_to_every_weight():
    layer = built(steps=2, step_size="learned", planes=2, weights=WEIGHTS)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    model.train_on_batch(normal((8, 4), 1), normal((8, 4), 2))
    for weight, old in zip(model.weights, before, strict=True):
        moved = np.abs(backend.to_numpy(weight.value) - old)
        assert np.isfinite(moved).all() and moved.max() > 1e-6, weight.path


def test_lift_flow_projection_keep_the_sum_and_save(tmp_path):
    inputs = keras.Input((3,))
    x = SumLift(6)(inputs)
    x = MassPreservingFlow(operators.Dense(5), steps=2, seed=1)(x)
    x = SumProjection(4)(x)
    x = MassPreservingFlow(operators.Dense(5), planes=2, weights=[1, 1, 1, 1.0], seed=2)(x)
    model = keras.Model(inputs, SumProjection(3)(x))
    x = np.abs(normal((5, 3), 4))
    x /= x.sum(-1, keepdims=True)
    y = backend.to_numpy(model(x))
    np.testing.assert_allclose(y.sum(-1), 1.0, atol=2e-6)
    assert np.abs(y - x).max() > 0.01
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(backend.to_numpy(again(x)), y, atol=1e-6)
    for one, other in zip(model.layers, again.layers, strict=True):
        assert one.get_config() == other.get_config()


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(0, 1000), st.booleans())
def test_projection_keeps_the_weighted_sum_and_knows_its_norm(units, seed, ones):
    weights = None if ones else normal((5,), seed).tolist()
    layer = SumProjection(units, weights)
    layer.build((None, 5))
    x = normal((4, 5), seed + 1)
    kept = None if ones else weights[:units]
    np.testing.assert_allclose(
        invariant(layer.call_float64(x), kept), invariant(x, weights), atol=1e-9
    )
    matrix = layer.call_float64(np.eye(5)).T
    bound = layer.lipschitz_bound((None, 5))
    assert norm(matrix) <= bound <= norm(matrix) * (1 + 1e-9)


def test_projection_and_lift_by_hand():
    projection, lift = SumProjection(2), SumLift(5)
    y = backend.to_numpy(projection(np.array([[1.0, 2.0, 4.0]], "float32")))
    np.testing.assert_allclose(y, [[3.0, 4.0]])
    np.testing.assert_array_equal(unrolled(lift, (3,)), np.eye(5, 3))
    x = normal((2, 3, 3, 3))
    assert lift(x).shape == lift.compute_output_shape(x.shape) == (2, 3, 3, 5)
    np.testing.assert_array_equal(backend.to_numpy(lift(x)), lift.call_float64(x))
    assert lift.lipschitz_bound((None, 3)) == 1.0
    assert projection.compute_output_shape((None, 3)) == (None, 2)
    half = SumProjection(2, dtype="mixed_bfloat16")(np.ones((1, 3), "float32"))
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    assert len(lift.guarantees()) == 2 and len(projection.guarantees()) == 1


def test_mixed_precision_computes_in_float32():
    layer = MassPreservingFlow(operators.Dense(5), seed=1, dtype="mixed_bfloat16")
    x = normal((5, 4))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    np.testing.assert_allclose(
        backend.to_numpy(ops.cast(y, "float32")), layer.call_float64(x), atol=0.05
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MassPreservingFlow(operators.Dense(3), [0, 0.0]), "`weights` must not all be"),
        (lambda: MassPreservingFlow(operators.Dense(3), [1, np.nan]), "`weights` must be in"),
        (lambda: MassPreservingFlow(operators.Dense(3), integrator="cayley"), "`integrator` must"),
        (
            lambda: MassPreservingFlow(operators.Dense(3), [1.0, 2.0]).build((None, 3)),
            "`weights` must have 3 entries",
        ),
        (lambda: SumLift(0), "`units` must be a positive integer"),
        (lambda: SumLift(2).build((None, 3)), "`units` must be at least .*3"),
        (lambda: SumProjection(4).build((None, 3)), "`units` must be at most .*3"),
        (lambda: SumProjection(1, [0, 1.0]).build((None, 2)), "must not be zero on all kept"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
