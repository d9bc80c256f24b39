"""Images between their pixels, and their gray values, in NumPy."""

from __future__ import annotations

import numpy as np

__all__ = ["LUMINANCE", "sample"]

# Shares of red, green and blue in the gray value (ITU-R BT.601).
LUMINANCE = np.array([0.299, 0.587, 0.114])


def sample(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
    """Images at real positions, by bilinear interpolation.

    Args:
        x: Array of shape (n, h, w, channels).
        rows: Array of shape (n, h', w'), in pixels.
        columns: Array of the same shape.
        mode: Beyond the border the image is reflected, about the centre of the outermost pixel
            (`"mirror"`) or about its edge (`"reflect"`).
    """
    image = np.arange(len(x))[:, None, None]
    top, left = np.floor(rows), np.floor(columns)
    lower, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(int), left.astype(int)
    i = [_fold(top + k, x.shape[1], mode) for k in (0, 1)]
    j = [_fold(left + k, x.shape[2], mode) for k in (0, 1)]
    upper_line = x[image, i[0], j[0]] * (1 - right) + x[image, i[0], j[1]] * right
    lower_line = x[image, i[1], j[0]] * (1 - right) + x[image, i[1], j[1]] * right
    return upper_line * (1 - lower) + lower_line * lower


def _fold(index: np.ndarray, size: int, mode: str) -> np.ndarray:
    if mode == "mirror":
        period = max(2 * (size - 1), 1)  # a single pixel is its own reflection
        index = np.mod(index, period)
        return np.minimum(index, period - index)
    index = np.mod(index, 2 * size)
    return np.minimum(index, 2 * size - 1 - index)
