"""Gain and float64 forward pass of Keras' pooling, padding, cropping and up-sampling layers.

The same rules serve one, two and three spatial axes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dynzoo import backend
from dynzoo.certificates.rules.image import along_axes, interpolation
from dynzoo.certificates.rules.linear import Shape, channels_last, refuse, same_padding

__all__ = [
    "average_pooling_forward",
    "average_pooling_gain",
    "averages",
    "cropping_forward",
    "global_average_forward",
    "global_average_gain",
    "global_max_forward",
    "max_pooling_forward",
    "max_pooling_gain",
    "pairs",
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


def _sizes(layer: Any, shape: Shape) -> tuple[int, ...]:
    """The spatial sizes, one to three."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return tuple(int(n or 1) for n in (shape[2:] if first else shape[1:-1]))


def _axis_windows(layer: Any, size: tuple[int, ...]) -> list[np.ndarray]:
    return [
        _windows(n, window, stride, layer.padding)
        for n, window, stride in zip(size, layer.pool_size, layer.strides, strict=True)
    ]


def max_pooling_gain(layer: Any, shape: Shape) -> float:
    """Square root of the largest number of windows that share a pixel: 1 if none overlap."""
    seen = _axis_windows(layer, _sizes(layer, shape))
    return math.sqrt(math.prod(int(w.sum(axis=0).max(initial=0)) for w in seen)) * (1 + 1e-15)


def max_pooling_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Largest value of each window, one axis after the other."""

    def pool(images: np.ndarray) -> np.ndarray:
        for axis, seen in enumerate(_axis_windows(layer, images.shape[1:-1]), start=1):
            columns = [images.take(np.flatnonzero(row), axis=axis).max(axis=axis) for row in seen]
            images = np.stack(columns, axis=axis)
        return images

    return channels_last(layer, x, pool)


def averages(layer: Any, size: tuple[int, ...]) -> list[np.ndarray]:
    """One averaging matrix for each axis.

    Windows that padding='same' cuts off average the pixels that they see. Only PyTorch, when the
    padding before and after differs on some axis, repeats the border pixels and averages them too.
    """
    seen = _axis_windows(layer, size)
    axes = list(zip(size, layer.pool_size, layer.strides, strict=True))
    pads = [same_padding(*axis) for axis in axes] if layer.padding == "same" else []
    if backend.name() == "torch" and any(before != after for before, after in pads):
        return [_repeated_border(*axis, pad[0]) for axis, pad in zip(axes, pads, strict=True)]
    return [windows / windows.sum(axis=1, keepdims=True) for windows in seen]


def _repeated_border(size: int, window: int, stride: int, before: int) -> np.ndarray:
    """Averages of whole windows over one axis whose first and last pixel go on outside."""
    matrix = np.zeros((-(-size // stride), size))
    for row in range(len(matrix)):
        places = np.clip(row * stride - before + np.arange(window), 0, size - 1)
        np.add.at(matrix[row], places, 1.0 / window)
    return matrix


def average_pooling_gain(layer: Any, shape: Shape) -> float:
    """Exact: the map is a tensor product of one averaging matrix for each axis."""
    matrices = averages(layer, _sizes(layer, shape))
    return math.prod(float(np.linalg.norm(m, ord=2)) for m in matrices) * (1 + 1e-12)


def average_pooling_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Mean of each window."""
    return channels_last(
        layer, x, lambda images: along_axes(images, averages(layer, images.shape[1:-1]))
    )


def global_average_gain(layer: Any, shape: Shape) -> float:
    """1 / sqrt(height * width)."""
    return 1.0 / math.sqrt(math.prod(_sizes(layer, shape))) * (1 + 1e-15)


def _global(layer: Any, x: np.ndarray, function: Any) -> np.ndarray:
    first = 1 if layer.data_format == "channels_last" else 2
    axes = tuple(range(first, first + x.ndim - 2))
    return function(x, axis=axes, keepdims=layer.keepdims)


def global_average_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Mean over all pixels."""
    return _global(layer, x, np.mean)


def global_max_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Maximum over all pixels."""
    return _global(layer, x, np.max)


def pairs(given: Any) -> list[tuple[int, int]]:
    """(before, after) of each axis; the 1D layers keep a single pair."""
    return [tuple(given)] if np.ndim(given[0]) == 0 else [tuple(pair) for pair in given]


def _spatially(layer: Any, x: np.ndarray, function: Any) -> np.ndarray:
    """As ``channels_last``, for layers of which the 1D one knows no data format."""
    return channels_last(layer, x, function) if hasattr(layer, "data_format") else function(x)


def zero_padding_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Zeros around each image."""
    pads = ((0, 0), *pairs(layer.padding), (0, 0))
    return _spatially(layer, x, lambda images: np.pad(images, pads))


def cropping_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """The middle of each image."""

    def crop(images: np.ndarray) -> np.ndarray:
        parts = [
            slice(before, size - after)
            for (before, after), size in zip(pairs(layer.cropping), images.shape[1:-1], strict=True)
        ]
        return images[tuple([slice(None), *parts])]

    return _spatially(layer, x, crop)


def _repeated(images: np.ndarray, factors: Any) -> np.ndarray:
    for axis, factor in enumerate(factors, start=1):
        images = images.repeat(factor, axis=axis)
    return images


def _upsampling(layer: Any, size: tuple[int, ...]) -> list[np.ndarray]:
    """One matrix for each axis."""
    matrices = []
    for n, factor in zip(size, layer.size, strict=True):
        matrix = interpolation(layer.interpolation, n, n * factor)
        if matrix is None:
            raise refuse(
                layer, f"only 'nearest' and 'bilinear' are known, not {layer.interpolation!r}."
            )
        matrices.append(matrix)
    return matrices


def upsampling_gain(layer: Any, shape: Shape) -> float:
    """Exact: a tensor product of one matrix for each axis; sqrt(prod(size)) for 'nearest'."""
    if getattr(layer, "interpolation", "nearest") == "nearest":
        return math.sqrt(math.prod(np.atleast_1d(layer.size).tolist())) * (1 + 1e-15)
    matrices = _upsampling(layer, _sizes(layer, shape))
    return math.prod(float(np.linalg.norm(m, ord=2)) for m in matrices) * (1 + 1e-12)


def upsampling_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Nearest-neighbour repetition, or bilinear interpolation."""
    if getattr(layer, "interpolation", "nearest") == "nearest":
        return _spatially(layer, x, lambda images: _repeated(images, np.atleast_1d(layer.size)))
    return _spatially(
        layer, x, lambda images: along_axes(images, _upsampling(layer, images.shape[1:-1]))
    )
