"""SphericalFlow: norms kept, skew matrices skew, orders of the steps; float32 over 100 steps."""

import keras
import numpy as np
import pytest
from helpers import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, layers, operators
from dynzoo.fields.skew import FullSkew, PlanesSkew, implicit_update
from dynzoo.integrators.projected import PROJECTED
from dynzoo.layers.spherical_flow import SPHERE_INTEGRATORS, SphericalFlow

NAMES = list(SPHERE_INTEGRATORS)
IMAGE = (3, 3, 4)


def built(shape=(4,), operator=None, scale=0.5, weight_seed=0, **arguments):
    """A flow with random weights of the given size."""
    layer = SphericalFlow(operator or operators.Dense(5), seed=1, **arguments)
    layer.build((None, *shape))
    for i, w in enumerate(layer.weights):
        w.assign(normal(tuple(w.shape), weight_seed + i, scale))
    return layer


def lengths(x):
    return np.linalg.norm(np.asarray(x, dtype=np.float64), axis=-1)


@settings(max_examples=12)
@given(
    st.sampled_from(NAMES),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([0.05, 1.0, 10.0]),
    st.floats(0.05, 3.0),
    st.integers(0, 1000),
)
def test_norm_is_kept_for_any_weights_and_step(integrator, planes, step_size, scale, seed):
    layer = built(
        integrator=integrator,
        planes=planes,
        step_size=step_size,
        scale=scale,
        weight_seed=seed,
        steps=2,
    )
    x = normal((6, 4), seed, 10.0 ** (seed % 5 - 2))
    y = layer.call_float64(x)
    np.testing.assert_allclose(lengths(y), lengths(x), rtol=1e-12)
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(lengths(y), lengths(x), rtol=5e-7)


@pytest.mark.parametrize("integrator", NAMES)
def test_norm_over_a_hundred_float32_steps(integrator):
    layer = SphericalFlow(
        operators.Dense(5), integrator=integrator, planes=2, steps=100, shared=True, step_size=0.5
    )
    x = normal((8, 4), 3)
    y = backend.to_numpy(layer(x))
    assert np.abs(lengths(y) / lengths(x) - 1).max() <= 1e-6
    assert np.abs(y - x).max() > 0.1  # it did move
    once = SphericalFlow(operators.Dense(5), integrator=integrator, planes=2, step_size=0.5)
    once.build((None, 4))
    once.set_weights(layer.get_weights())
    if integrator in ("projected_heun", "cayley"):
        z = x
        for _ in range(100):  # as 100 layers, without the renormalisation at a layer's end
            z = backend.to_numpy(once(z))
        assert np.abs(lengths(z) / lengths(x) - 1).max() <= 1e-6


@pytest.mark.parametrize("integrator", NAMES)
def test_order_of_convergence(integrator):
    x, time = normal((5, 4), 7), 1.0

    def end(name, steps):
        layer = SphericalFlow(
            operators.Dense(6),
            integrator=name,
            steps=steps,
            step_size=time / steps,
            shared=True,
            seed=4,
        )
        layer.build((None, 4))
        for i, w in enumerate(layer.weights):
            w.assign(normal(tuple(w.shape), i, 0.6))
        return layer.call_float64(x)

    reference = end("projected_rk4", 300)
    errors = [np.abs(end(integrator, n) - reference).max() for n in (20, 40)]
    order = np.log2(errors[0] / errors[1])
    assert order == pytest.approx(SPHERE_INTEGRATORS[integrator].order, abs=0.35)


def test_guards_where_the_field_vanishes():
    # an update that is rounding noise must not be thrown to the antipode by relaxation
    x = np.array([[1.0, 2.0, 2.0]], dtype="float32")
    for noise in (0.0, 1e-7, -1e-7):
        for method in PROJECTED.values():

            class Still:
                def __call__(self, y, noise=noise):
                    return self

                def apply(self, v, noise=noise):
                    return noise * v

            x_tensor = ops.convert_to_tensor(x)
            y = backend.to_numpy(method.sphere_step(Still(), x_tensor, 1.0, ops))
            np.testing.assert_allclose(y, x, rtol=1e-6)
    layer = built()
    np.testing.assert_array_equal(backend.to_numpy(layer(np.zeros((2, 4), "float32"))), 0.0)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([None, 2]), st.floats(0.1, 10.0))
def test_skew_matrices(seed, planes, step_size):
    layer = built(planes=planes, weight_seed=seed)
    x = normal((3, 4), seed).astype(np.float64)
    skew = layer._network(0, np)(x)
    assert isinstance(skew, FullSkew if planes is None else PlanesSkew)
    matrix = np.stack([skew.apply(e) for e in np.eye(4)], axis=-1)
    np.testing.assert_allclose(matrix, -np.swapaxes(matrix, 1, 2), atol=1e-12)
    v = normal((3, 4), seed + 1)
    np.testing.assert_allclose(skew.apply(v), np.einsum("bij,bj->bi", matrix, v), atol=1e-12)
    half = normal((4, 4), seed + 2).astype(np.float64)
    h = half @ half.T
    d = implicit_update(skew, step_size, v, lambda w: w.T @ h @ w)
    expected = step_size * skew.apply(v + 0.5 * d @ h)
    np.testing.assert_allclose(d, expected, atol=1e-9 * (1 + np.abs(d).max()))


@pytest.mark.parametrize("operator", ["pointwise", "conv"])
def test_images_keep_the_norm_of_each_pixel(operator):
    make = {"pointwise": operators.Pointwise(3), "conv": operators.Conv(2)}[operator]
    layer = built(IMAGE, make, integrator="cayley", planes=2, steps=2)
    x = normal((2, *IMAGE), 5)
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(lengths(y), lengths(x), rtol=1e-6)
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-5)
    assert np.abs(y - x).max() > 0.05
    assert layer(keras.Input(IMAGE)).shape == (None, *IMAGE)


@pytest.mark.parametrize("integrator", NAMES)
def test_float64_twin_and_compilation(integrator):
    layer = built(integrator=integrator, steps=2, step_size="learned", max_step=0.8)
    layer.raw_steps[1].assign(1.5)
    x = normal((6, 4), 6)
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=2e-5)
    assert layer.call_float64(x).dtype == np.float64
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), y, atol=1e-5)
    assert layer.step_sizes()[1] == pytest.approx(0.8 / (1 + np.exp(-layer_raw(layer, 1))))


def layer_raw(layer, i):
    return float(backend.to_numpy(layer.raw_steps[i].value))


@pytest.mark.parametrize(("integrator", "planes"), [("relaxed_heun", None), ("cayley", 2)])
def test_gradients_flow_to_every_weight(integrator, planes):
    layer = built(integrator=integrator, planes=planes, steps=2, step_size="learned")
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    model.train_on_batch(normal((8, 4), 1), normal((8, 4), 2))
    for weight, old in zip(model.weights, before, strict=True):
        moved = np.abs(backend.to_numpy(weight.value) - old)
        assert np.isfinite(moved).all() and moved.max() > 1e-6, weight.path


def test_seed_and_guarantees():
    one, other = (SphericalFlow(operators.Dense(3), steps=2, seed=4) for _ in range(2))
    one.build((None, 5)), other.build((None, 5))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    (guarantee,) = one.guarantees()
    assert guarantee.property == "norm kept" and guarantee.value == 1e-6
    assert len(built(steps=3, shared=True).weights) == 4


def test_mixed_precision_computes_in_float32():
    layer = SphericalFlow(operators.Dense(5), seed=1, dtype="mixed_bfloat16", steps=5)
    x = normal((6, 4))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    y = backend.to_numpy(ops.cast(y, "float32"))
    # only the cast of input and output loses digits, not the five steps
    np.testing.assert_allclose(lengths(y), lengths(x), rtol=2.0**-7)
    np.testing.assert_allclose(y, layer.call_float64(x), atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0}, r"`step_size` must be in \(0, inf\).*step_size=0"),
        ({"step_size": float("nan")}, "`step_size` must be in"),
        ({"step_size": "maximal"}, "`step_size` must be in.*step_size='maximal'"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"planes": 0}, "`planes` must be a positive integer"),
        ({"max_step": -1.0}, "`max_step` must be in"),
        ({"integrator": "rk4"}, "`integrator` must be one of"),
        ({"activation": "gelu"}, "`activation` must have slopes"),
        ({"operator": 3}, "`operator` must be a dynzoo operator"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SphericalFlow(**{"operator": operators.Dense(3), **arguments})


def test_one_feature_is_refused():
    with pytest.raises(ValueError, match="needs at least 2 features"):
        SphericalFlow(operators.Dense(3)).build((None, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda **a: layers.SphericalFlow(operators.Dense(4), integrator="cayley", **a),
        lambda **a: layers.SphericalFlow(operators.Dense(4), integrator="cayley_midpoint", **a),
        lambda **a: layers.FirstIntegralFlow(operators.Dense(4), **a),
        lambda **a: layers.PresnovFlow(operators.Dense(4), integrator="cayley", **a),
    ],
)
def test_solves_in_float64(make):
    """Keras on PyTorch gives products of float64 back in float32, which no solver takes."""
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only where a flag asks for it")
    flow, x = make(dtype="float64", seed=0), normal((3, 8), 1).astype("float64")
    y = backend.to_numpy(flow(ops.convert_to_tensor(x, dtype="float64")))
    np.testing.assert_allclose(y, flow.call_float64(x), atol=1e-5)
