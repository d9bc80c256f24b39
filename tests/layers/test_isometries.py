"""The plumbing without weights: permutations, embeddings, translations; shapes and errors."""

import keras
import numpy as np
import pytest
from helpers import normal, unrolled, worst_gain
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, layers

IMAGE = (4, 6, 8)
LAYERS = {
    "max_min": (lambda: layers.MaxMin(), IMAGE),
    "max_min_vector": (lambda: layers.MaxMin(), (6,)),
    "beta_abs": (lambda: layers.BetaAbs(), IMAGE),
    "beta_abs_all": (lambda: layers.BetaAbs(1.0), (5,)),
    "space_to_depth": (lambda: layers.SpaceToDepth(2), (4, 6, 3)),
    "channel_padding": (lambda: layers.ChannelPadding(10), (4, 4, 3)),
    "shift": (lambda: layers.SpatialShift(), IMAGE),
    "shift_back": (lambda: layers.SpatialShift(reverse=True, fraction=1.0), IMAGE),
    "shift_zero": (lambda: layers.SpatialShift(padding="zero", fraction=0.75), IMAGE),
    "max_min_shift": (lambda: layers.MaxMinShift(), IMAGE),
    "max_min_shift_back": (lambda: layers.MaxMinShift(reverse=True, fraction=1.0), IMAGE),
    "max_min_shift_zero": (lambda: layers.MaxMinShift(padding="zero", fraction=0.25), (4, 6, 32)),
    "mean_shift": (lambda: layers.MeanShift([0.1, 0.5, 0.7]), (4, 4, 3)),
}
every = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())


@every
def test_float64_twin_shape_and_compilation(make, shape):
    layer, x = make(), normal((3, *shape))
    y = backend.to_numpy(layer(x))
    twin = layer.call_float64(x)
    assert twin.dtype == np.float64
    np.testing.assert_allclose(y, twin, atol=1e-6)
    assert y.shape == layer.compute_output_shape((3, *shape))
    assert layer(keras.Input(shape)).shape == (None, *y.shape[1:])
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), y, atol=1e-6)


@every
def test_keeps_distances(make, shape):
    layer = make()
    layer(np.zeros((1, *shape), "float32"))
    x, y = (normal((20, *shape), seed).astype(np.float64) for seed in (1, 2))
    before = np.linalg.norm((x - y).reshape(20, -1), axis=1)
    moved = (layer.call_float64(x) - layer.call_float64(y)).reshape(20, -1)
    after = np.linalg.norm(moved, axis=1)
    assert (after <= before * (1 + 1e-12)).all()
    folds = isinstance(layer, layers.MaxMin | layers.BetaAbs)
    if not (folds or getattr(layer, "padding", "") == "zero"):
        np.testing.assert_allclose(after, before, rtol=1e-12)
    if folds and getattr(layer, "padding", "") != "zero":
        np.testing.assert_allclose(
            np.linalg.norm(layer.call_float64(x)), np.linalg.norm(x), rtol=1e-12
        )
    assert worst_gain(layer.call_float64, shape, points=1) <= 1 + 1e-7
    assert layer.lipschitz_bound((None, *shape)) == 1.0


@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("reverse", [False, True])
def test_max_min_shift_is_the_two_in_turn(reverse, fraction, padding):
    x = normal((2, 4, 6, 16))
    shift = layers.SpatialShift(reverse=reverse, padding=padding, fraction=fraction)
    joined = layers.MaxMinShift(reverse=reverse, padding=padding, fraction=fraction)
    expected = backend.to_numpy(shift(layers.MaxMin()(x)))
    np.testing.assert_array_equal(backend.to_numpy(joined(x)), expected)


@settings(max_examples=10)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6))
def test_max_min_sorts_channel_i_against_i_plus_half(values):
    x = np.array([values], "float32")
    y = backend.to_numpy(layers.MaxMin()(x))
    a, b = x[:, :3], x[:, 3:]
    expected = np.concatenate([np.maximum(a, b), np.minimum(a, b)], axis=1)
    np.testing.assert_allclose(y, expected, atol=1e-6 * max(1.0, np.abs(x).max()))


def test_max_min_gradient_is_a_permutation():
    gradient = backend.value_and_grad(lambda x, w: ops.sum(layers.MaxMin()(x) * w))
    x, w = normal((1, 8), 1), normal((1, 8), 2)
    _, g = gradient(ops.convert_to_tensor(x), ops.convert_to_tensor(w))
    np.testing.assert_allclose(np.sort(backend.to_numpy(g)), np.sort(w), atol=1e-6)


def test_beta_abs_takes_the_first_share():
    x = np.array([[-1.0, 2.0, -3.0, -4.0]], "float32")
    for beta, expected in ((0.5, [1, 2, -3, -4]), (0.75, [1, 2, 3, -4]), (0.01, [1, 2, -3, -4])):
        np.testing.assert_array_equal(backend.to_numpy(layers.BetaAbs(beta)(x)), [expected])
    for beta in (0.0, 1.1):
        with pytest.raises(ValueError, match="`beta` must be in"):
            layers.BetaAbs(beta)


def test_max_min_is_beta_abs_between_two_rotations():
    # a, b -> (a + b) / sqrt 2, (a - b) / sqrt 2: max and min differ by |a - b|
    x = normal((5, 8)).astype(np.float64)
    half = np.eye(4) / np.sqrt(2)
    rotation = np.block([[half, -half], [half, half]])
    turned = layers.BetaAbs(0.5).call_float64(x @ rotation.T)
    np.testing.assert_allclose(turned @ rotation, layers.MaxMin().call_float64(x))


def test_space_to_depth_puts_a_block_into_channels():
    x = np.arange(2 * 4 * 2, dtype="float32").reshape(1, 2, 4, 2)
    y = backend.to_numpy(layers.SpaceToDepth(2)(x))
    assert y.shape == (1, 1, 2, 8)
    np.testing.assert_array_equal(y[0, 0, 1], x[0, :, 2:4].ravel())


@pytest.mark.parametrize("name", ["space_to_depth", "shift", "shift_back"])
def test_unrolled_matrix_is_a_permutation(name):
    make, shape = LAYERS[name]
    matrix = unrolled(make(), shape)
    assert set(np.unique(matrix)) == {0.0, 1.0}
    np.testing.assert_array_equal(matrix.T @ matrix, np.eye(len(matrix)))


def test_reversed_shift_is_the_adjoint_and_inverse():
    for padding in ("zero", "circular"):
        there = unrolled(layers.SpatialShift(padding=padding), IMAGE)
        back = unrolled(layers.SpatialShift(reverse=True, padding=padding), IMAGE)
        np.testing.assert_array_equal(back, there.T)
        if padding == "circular":
            np.testing.assert_array_equal(back @ there, np.eye(len(there)))


@pytest.mark.parametrize("padding", ["zero", "circular"])
def test_shift_of_an_image_of_one_pixel(padding):
    x = normal((2, 1, 1, 8))
    y = backend.to_numpy(layers.SpatialShift(padding=padding)(x))
    expected = x.copy()
    if padding == "zero":
        expected[..., 4:] = 0
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.MaxMin()(normal((2, 5))), "`MaxMin` needs an even number of channels"),
        (lambda: layers.SpaceToDepth(0), "`block_size` must be a positive integer"),
        (lambda: layers.SpaceToDepth(2.0), "`block_size` must be a positive integer"),
        (lambda: layers.SpaceToDepth(3)(normal((1, 4, 6, 1))), "divisible by block_size=3"),
        (lambda: layers.SpaceToDepth(2)(normal((1, 8))), "needs NHWC images"),
        (lambda: layers.SpaceToDepth(2)(keras.Input((None, 4, 1))), "divisible by block_size=2"),
        (lambda: layers.ChannelPadding(-1), "`channels` must be a positive integer"),
        (lambda: layers.ChannelPadding(3)(normal((1, 2, 2, 4))), "`channels` must be at least 4"),
        (lambda: layers.SpatialShift(fraction=0), "`fraction` must be in"),
        (lambda: layers.SpatialShift(padding="same"), "`padding` must be"),
        (lambda: layers.MeanShift([0.5, 0.5])(normal((1, 2, 2, 3))), "`mean` must have 3 entries"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
