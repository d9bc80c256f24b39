"""Gain and float64 forward pass of Keras' 2D pooling, padding and up-sampling layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dynzoo.certificates.linear_rules import Shape, channels_last, refuse, same_padding, spatial

__all__ = [
    "average_pooling_forward",
    "average_pooling_gain",
    "cropping_forward",
    "global_average_forward",
    "global_average_gain",
    "global_max_forward",
    "max_pooling_forward",
    "max_pooling_gain",
    "upsampling_forward",
    "upsampling_gain",
    "zero_padding_forward",
]


def _windows(size: int, window: int, stride: int, padding: str) -> np.ndarray:
    """Which positions of one axis each window sees: booleans (windows, size)."""
    before = same_padding(size, window, stride)[0] if padding == "same" else 0
    count = -(-size // stride) if padding == "same" else (size - window) // stride + 1
    starts = np.arange(count)[:, None] * stride - before
    positions = np.arange(size)[None, :]
    return (positions >= starts) & (positions < starts + window)


def _axis_windows(layer: Any, size: tuple[int, int]) -> list[np.ndarray]:
    return [
        _windows(n, window, stride, layer.padding)
        for n, window, stride in zip(size, layer.pool_size, layer.strides, strict=True)
    ]


def max_pooling_gain(layer: Any, shape: Shape) -> float:
    """Square root of the largest number of windows that share a pixel: 1 if none overlap."""
    seen = _axis_windows(layer, spatial(layer, shape))
    return math.sqrt(math.prod(int(w.sum(axis=0).max()) for w in seen))


def max_pooling_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Largest value of each window, one axis after the other."""

    def pool(images: np.ndarray) -> np.ndarray:
        for axis, seen in enumerate(_axis_windows(layer, images.shape[1:3]), start=1):
            columns = [images.take(np.flatnonzero(row), axis=axis).max(axis=axis) for row in seen]
            images = np.stack(columns, axis=axis)
        return images

    return channels_last(layer, x, pool)


def _averages(layer: Any, size: tuple[int, int]) -> list[np.ndarray]:
    seen = _axis_windows(layer, size)
    for windows, length in zip(seen, layer.pool_size, strict=True):
        if np.any(windows.sum(axis=1) != length):
            raise refuse(
                layer,
                "with padding='same' its border windows are cut off, and the backends average "
                "them differently; use padding='valid' (after ZeroPadding2D if need be).",
            )
    return [windows / windows.sum(axis=1, keepdims=True) for windows in seen]


def average_pooling_gain(layer: Any, shape: Shape) -> float:
    """Exact: the map is a tensor product of one averaging matrix for each axis."""
    matrices = _averages(layer, spatial(layer, shape))
    return math.prod(float(np.linalg.norm(m, ord=2)) for m in matrices) * (1 + 1e-12)


def average_pooling_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Mean of each window."""

    def pool(images: np.ndarray) -> np.ndarray:
        rows, columns = _averages(layer, images.shape[1:3])
        images = np.moveaxis(np.tensordot(rows, images, axes=(1, 1)), 0, 1)
        return np.moveaxis(np.tensordot(columns, images, axes=(1, 2)), 0, 2)

    return channels_last(layer, x, pool)


def global_average_gain(layer: Any, shape: Shape) -> float:
    """1 / sqrt(height * width)."""
    return 1.0 / math.sqrt(math.prod(spatial(layer, shape))) * (1 + 1e-15)


def _global(layer: Any, x: np.ndarray, function: Any) -> np.ndarray:
    axes = (1, 2) if layer.data_format == "channels_last" else (2, 3)
    return function(x, axis=axes, keepdims=layer.keepdims)


def global_average_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Mean over all pixels."""
    return _global(layer, x, np.mean)


def global_max_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Maximum over all pixels."""
    return _global(layer, x, np.max)


def zero_padding_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Zeros around each image."""
    pads = ((0, 0), *layer.padding, (0, 0))
    return channels_last(layer, x, lambda images: np.pad(images, pads))


def cropping_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """The middle of each image."""
    (top, bottom), (left, right) = layer.cropping

    def crop(images: np.ndarray) -> np.ndarray:
        return images[:, top : images.shape[1] - bottom, left : images.shape[2] - right]

    return channels_last(layer, x, crop)


def upsampling_gain(layer: Any, shape: Shape) -> float:
    """Each pixel is repeated prod(size) times."""
    if layer.interpolation != "nearest":
        raise refuse(layer, f"only interpolation='nearest' is known, not {layer.interpolation!r}.")
    return math.sqrt(math.prod(layer.size)) * (1 + 1e-15)


def upsampling_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Nearest-neighbour repetition."""
    rows, columns = layer.size
    return channels_last(layer, x, lambda im: im.repeat(rows, axis=1).repeat(columns, axis=2))
