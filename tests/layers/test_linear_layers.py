"""Orthonormal maps, offsets, pooling and the head: norms of the unrolled maps, twins, errors."""

import keras
import numpy as np
import pytest
from helpers import jacobian, norm, normal, unrolled
from keras import ops

from dynzoo import backend, constraints, layers

LAYERS = {
    "dense_narrow": (lambda: layers.OrthonormalDense(4, seed=1), (7,)),
    "dense_wide": (lambda: layers.OrthonormalDense(9, use_bias=True, seed=1), (5,)),
    "pointwise": (lambda: layers.OrthonormalPointwise(3, projection_steps=4, seed=2), (2, 3, 5)),
    "offset": (lambda: layers.PositionOffset(), (2, 3, 4)),
    "pooling": (lambda: layers.ScaledAveragePooling2D(2), (4, 6, 2)),
    "head": (lambda: layers.UnitRowDense(3, seed=3), (6,)),
    "head_without_bias": (lambda: layers.UnitRowDense(3, use_bias=False, seed=3), (6,)),
}
every = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())


def scrambled(make, shape):
    """The layer with random weights, which no constraint has seen."""
    layer = make()
    layer.build((None, *shape))
    layer.set_weights([normal(w.shape, i, 0.7) for i, w in enumerate(layer.get_weights())])
    return layer


@every
def test_float64_twin_shape_and_bound(make, shape):
    layer, x = scrambled(make, shape), normal((3, *shape), 5)
    y = backend.to_numpy(layer(x))
    twin = layer.call_float64(x)
    assert twin.dtype == np.float64
    np.testing.assert_allclose(y, twin, atol=1e-5)
    assert y.shape == layer.compute_output_shape((3, *shape))
    assert make()(keras.Input(shape)).shape == (None, *y.shape[1:])
    truth = norm(unrolled(layer, shape))
    assert layer.lipschitz_bound((None, *shape)) == pytest.approx(truth, rel=1e-5)


@every
def test_one_lipschitz_once_projected(make, shape):
    layer = scrambled(make, shape)
    constraints.project(layer)
    if not isinstance(layer, layers.UnitRowDense):
        assert layer.lipschitz_bound((None, *shape)) <= 1 + 1e-5
        assert norm(unrolled(layer, shape)) <= 1 + 1e-5


@pytest.mark.parametrize("name", ["dense_narrow", "dense_wide", "pointwise"])
def test_orthonormal_from_the_start_and_after_an_update(name):
    make, shape = LAYERS[name]
    layer = make()
    model = keras.Sequential([keras.Input(shape), layer, keras.layers.Flatten()])
    for update in range(2):
        kernel = backend.to_numpy(layer.kernel.value).astype(np.float64)
        gram = kernel @ kernel.T if kernel.shape[0] < kernel.shape[1] else kernel.T @ kernel
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5 if update == 0 else 0.05)
        assert norm(kernel) <= 1 + 1e-5
        model.compile(keras.optimizers.SGD(0.1), "mse")
        x = normal((4, *shape))
        model.train_on_batch(x, normal(model(x).shape, 1))


def test_a_wide_map_is_an_isometric_embedding():
    layer = scrambled(*LAYERS["dense_wide"])
    constraints.project(layer)
    matrix = unrolled(layer, (5,))
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(5), atol=1e-5)


def test_dense_works_on_the_last_axis_of_anything():
    layer = layers.OrthonormalDense(4, use_bias=True)
    x = normal((2, 3, 5, 7))
    np.testing.assert_allclose(backend.to_numpy(layer(x)), layer.call_float64(x), atol=1e-5)
    assert layer.compute_output_shape((None, 3, 5, 7)) == (None, 3, 5, 4)


def test_pointwise_for_every_image_size():
    inputs = keras.Input((None, None, 5))
    layer = layers.OrthonormalPointwise(3)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 3)
    for size in ((2, 3), (4, 4)):
        x = normal((2, *size, 5))
        np.testing.assert_allclose(backend.to_numpy(model(x)), layer.call_float64(x), atol=1e-5)


def test_position_offset_is_a_translation_that_learns():
    layer = layers.PositionOffset()
    x = normal((2, 2, 3, 4))
    np.testing.assert_array_equal(backend.to_numpy(layer(x)), x)
    layer.offset.assign(normal((2, 3, 4), 1))
    np.testing.assert_allclose(
        backend.to_numpy(layer(x)) - x, [normal((2, 3, 4), 1)] * 2, atol=1e-6
    )
    np.testing.assert_array_equal(unrolled(layer, (2, 3, 4)).round(5), np.eye(24))
    assert len(layer.trainable_weights) == 1


@pytest.mark.parametrize("pool_size", [1, 2, 4])
def test_scaled_average_pooling_has_norm_one(pool_size):
    layer = layers.ScaledAveragePooling2D(pool_size)
    values = np.linalg.svd(unrolled(layer, (4, 4, 2)), compute_uv=False)
    np.testing.assert_allclose(values, 1.0, atol=1e-7)
    x = normal((1, 4, 4, 2))
    mean = backend.to_numpy(keras.layers.AveragePooling2D(pool_size)(x))
    np.testing.assert_allclose(backend.to_numpy(layer(x)), pool_size * mean, atol=1e-6)


@pytest.mark.parametrize("pool_size", [2, None])
def test_norm_pooling_gives_norms_of_blocks_and_keeps_distances_at_most(pool_size):
    layer, x = layers.L2Pooling2D(pool_size), normal((2, 4, 4, 3)).astype(np.float64)
    p = pool_size or 4
    y = layer.call_float64(x)
    blocks = [x[:, i : i + p, j : j + p] for i in range(0, 4, p) for j in range(0, 4, p)]
    norms = np.stack([np.linalg.norm(b, axis=(1, 2)) for b in blocks], axis=1)
    np.testing.assert_allclose(y.reshape(norms.shape), norms, atol=1e-5)
    for scale in (1e-6, 1e-3, 1.0):  # around the corner at zero, too
        m = jacobian(layer.call_float64, scale * x[0], 1e-4 * scale)
        assert 0.9 * min(1.0, scale / 1e-3) <= norm(m) <= 1 + 1e-6


def test_norm_pooling_has_a_gradient_at_zero():
    model = keras.Sequential([keras.Input((2, 2, 3)), layers.PositionOffset()])
    model.add(layers.L2Pooling2D())
    model.compile(keras.optimizers.SGD(1.0), lambda y, z: ops.sum(z))
    model.train_on_batch(np.zeros((1, 2, 2, 3)), np.zeros((1, 1, 1, 3)))
    np.testing.assert_array_equal(model.get_weights()[0], 0.0)


@pytest.mark.parametrize("name", ["head", "head_without_bias"])
def test_head_has_unit_rows(name):
    layer = scrambled(*LAYERS[name])
    rows = unrolled(layer, (6,))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(layer.effective_kernel(), rows.T, atol=1e-6)
    assert layer.effective_kernel().dtype == np.float64
    layer.kernel.assign(50 * layer.kernel.value)  # a scale changes nothing
    np.testing.assert_allclose(unrolled(layer, (6,)), rows, atol=1e-5)


def test_head_with_a_zero_row_is_finite():
    layer = scrambled(*LAYERS["head"])
    kernel = backend.to_numpy(layer.kernel.value).copy()
    kernel[:, 1] = 0.0
    layer.kernel.assign(kernel)
    x = normal((2, 6))
    y = backend.to_numpy(layer(x))
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-5)


def test_head_in_bfloat16_normalises_in_float32():
    layer = layers.UnitRowDense(4, dtype="mixed_bfloat16", seed=1)
    x = normal((3, 6))
    y = backend.to_numpy(ops.cast(layer(x), "float32"))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.OrthonormalDense(0), "`units` must be a positive integer"),
        (lambda: layers.OrthonormalDense(3, projection_steps=0), "`projection_steps` must be"),
        (lambda: layers.OrthonormalPointwise(3)(normal((2, 5))), "needs NHWC images"),
        (lambda: layers.PositionOffset()(keras.Input((None, 4, 2))), "needs a known image size"),
        (lambda: layers.ScaledAveragePooling2D(0), "`pool_size` must be a positive integer"),
        (lambda: layers.ScaledAveragePooling2D(3)(normal((1, 4, 3, 1))), "pool_size=3"),
        (lambda: layers.ScaledAveragePooling2D(2)(normal((1, 4))), "needs NHWC images"),
        (lambda: layers.L2Pooling2D(0), "`pool_size` must be a positive integer"),
        (lambda: layers.L2Pooling2D(3)(normal((1, 4, 3, 1))), "pool_size=3"),
        (lambda: layers.L2Pooling2D()(keras.Input((None, 4, 2))), "of known size"),
        (lambda: layers.UnitRowDense("ten"), "`units` must be a positive integer"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
