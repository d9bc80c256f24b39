"""Rotations, zooms and changes of color against their definitions."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from dynzoo.augmentation.distortions import color_jitter, rotate_and_zoom

pytestmark = pytest.mark.any_backend


def _images(n, h, w, c, seed=0):
    return np.random.default_rng(seed).random((n, h, w, c), dtype=np.float32)


def _reflected(position, size):
    while not 0 <= position <= size - 1:
        position = -position if position < 0 else 2 * (size - 1) - position
    return position


def _by_hand(x, angle, zoom):
    """One image, one pixel after the other, in float64."""
    height, width, channels = x.shape
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    out = np.empty(x.shape)
    for i in range(height):
        for j in range(width):
            down, right = (np.array([i, j]) - middle) / zoom
            # Counterclockwise as the image is seen: rows count downwards.
            row = middle[0] + np.cos(angle) * down + np.sin(angle) * right
            column = middle[1] - np.sin(angle) * down + np.cos(angle) * right
            row, column = _reflected(row, height), _reflected(column, width)
            top, left = int(row), int(column)
            a, b = row - top, column - left
            below, beside = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = (1 - b) * x[top, left].astype(float) + b * x[top, beside]
            lower = (1 - b) * x[below, left].astype(float) + b * x[below, beside]
            out[i, j] = (1 - a) * upper + a * lower
    return out


@given(
    h=st.integers(2, 7),
    w=st.integers(2, 7),
    c=st.integers(1, 4),
    angle=st.floats(-3.2, 3.2),
    zoom=st.floats(0.1, 3.0),
)
def test_rotation_and_zoom_are_bilinear_interpolation(h, w, c, angle, zoom):
    x = _images(2, h, w, c)
    y = rotate_and_zoom(x, np.array([angle, -angle / 3]), np.array([zoom, 1.0]))
    assert y.dtype == np.float32 and y.shape == x.shape
    np.testing.assert_allclose(y[0], _by_hand(x[0], angle, zoom), atol=2e-4)
    np.testing.assert_allclose(y[1], _by_hand(x[1], -angle / 3, 1.0), atol=2e-4)
    assert x.min() - 1e-6 <= y.min() and y.max() <= x.max() + 1e-6


def test_quarter_turns_are_those_of_numpy():
    x = _images(3, 8, 8, 3)
    y = rotate_and_zoom(x, np.pi / 2 * np.arange(3), np.ones(3))
    for k in range(3):
        np.testing.assert_allclose(y[k], np.rot90(x[k], k), atol=1e-5)


def test_a_single_row_can_be_enlarged():
    x = _images(1, 1, 5, 2)
    np.testing.assert_allclose(rotate_and_zoom(x, np.zeros(1), np.ones(1)), x, atol=1e-6)
    assert np.isfinite(rotate_and_zoom(x, np.ones(1), 2 * np.ones(1))).all()


@given(c=st.sampled_from([1, 3]), b=st.floats(0, 2), contrast=st.floats(0, 2), s=st.floats(0, 2))
def test_color_jitter_is_its_formula(c, b, contrast, s):
    x = _images(2, 4, 5, c)
    factors = np.array([[b, 1.0], [contrast, 1.0], [s, 1.0]])
    y = color_jitter(x, *factors)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y[1], x[1], atol=1e-6)

    def gray(image):
        return image @ [[0.299], [0.587], [0.114]] if c == 3 else image

    bright = b * x[0].astype(float)
    z = gray(bright).mean() + contrast * (bright - gray(bright).mean())
    expected = gray(z) + s * (z - gray(z)) if c == 3 else z
    np.testing.assert_allclose(y[0], np.clip(expected, 0, 1), atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4])
def test_images_without_three_colors_keep_their_saturation(channels):
    x = _images(2, 4, 4, channels)
    np.testing.assert_allclose(color_jitter(x, np.ones(2), np.ones(2), np.zeros(2)), x, atol=1e-6)
