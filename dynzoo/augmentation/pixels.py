"""Images between their pixels, and their gray values, in NumPy or in the backend's operations."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from keras import ops

__all__ = ["LUMINANCE", "cast", "sample"]

# Shares of red, green and blue in the gray value (ITU-R BT.601).
LUMINANCE = np.array([0.299, 0.587, 0.114])


def cast(x: Any, dtype: str, xp: ModuleType) -> Any:
    """An array or a tensor in another type, for which NumPy and ``keras.ops`` share no function."""
    return x.astype(dtype) if xp is np else ops.cast(x, dtype)


def sample(x: Any, rows: Any, columns: Any, mode: str, xp: ModuleType = np) -> Any:
    """Images at real positions, by bilinear interpolation.

    Args:
        x: array of shape (n, h, w, channels).
        rows: array of shape (n, h', w'), in pixels.
        columns: array of the same shape.
        mode: beyond the border the image is reflected, about the centre of the outermost pixel
            (``"mirror"``) or about its edge (``"reflect"``).
        xp: ``numpy``, or ``keras.ops`` for tensors and compiled functions.
    """
    height, width, channels = x.shape[1:]
    pixels = xp.reshape(x, (-1, channels))
    whole = "int64" if xp is np else "int32"  # JAX has no more by default
    first = xp.arange(xp.shape(x)[0], dtype=whole)[:, None, None] * (height * width)
    top, left = xp.floor(rows), xp.floor(columns)
    lower, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = cast(top, whole, xp), cast(left, whole, xp)
    i = [first + _fold(top + k, height, mode, xp) * width for k in (0, 1)]
    j = [_fold(left + k, width, mode, xp) for k in (0, 1)]

    def line(k: int) -> Any:
        a, b = (xp.take(pixels, i[k] + column, axis=0) for column in j)
        return a * (1 - right) + b * right

    return line(0) * (1 - lower) + line(1) * lower


def _fold(index: Any, size: int, mode: str, xp: ModuleType) -> Any:
    if mode == "mirror":
        period = max(2 * (size - 1), 1)  # a single pixel is its own reflection
        index = xp.mod(index, period)
        return xp.minimum(index, period - index)
    index = xp.mod(index, 2 * size)
    return xp.minimum(index, 2 * size - 1 - index)
