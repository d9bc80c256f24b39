"""Gain and float64 forward pass of the standard Keras layers that are affine maps with weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from dynzoo import spectral
from dynzoo.backend import to_numpy
from dynzoo.certificates.errors import UncertifiableLayerError

__all__ = [
    "batchnorm_forward",
    "batchnorm_gain",
    "channels_last",
    "dense_forward",
    "dense_gain",
    "float64",
    "normalization_forward",
    "normalization_gain",
    "refuse",
    "rescaling_forward",
    "rescaling_gain",
    "same_padding",
    "spatial",
]

Shape = tuple[int | None, ...]


def float64(value: Any) -> np.ndarray:
    """A Keras variable, tensor or number as a float64 array."""
    return to_numpy(value).astype(np.float64)


def refuse(layer: Any, reason: str) -> UncertifiableLayerError:
    """The error for a layer whose class is known but whose configuration is not."""
    return UncertifiableLayerError(layer.name, type(layer).__name__, reason)


def spatial(layer: Any, shape: Shape) -> tuple[int, int]:
    """Height and width of an image shape in the layer's data format."""
    height, width = shape[1:3] if layer.data_format == "channels_last" else shape[2:4]
    assert height is not None and width is not None
    return height, width


def channels_last(layer: Any, x: np.ndarray, function: Any) -> np.ndarray:
    """Runs a function of NHWC images on images in the layer's data format."""
    if layer.data_format == "channels_last":
        return function(x)
    return np.moveaxis(function(np.moveaxis(x, 1, -1)), -1, 1)


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis for 'same' padding: the odd one goes after."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


# --- Dense ---------------------------------------------------------------------------------


def dense_gain(layer: Any, shape: Shape) -> float:
    """Spectral norm of the kernel."""
    return spectral.dense_norm_float64(float64(layer.kernel))


def dense_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """x W + b over the last axis."""
    y = x @ float64(layer.kernel)
    return y + float64(layer.bias) if layer.use_bias else y


# --- scale and shift -----------------------------------------------------------------------


def _along(layer: Any, values: np.ndarray, ndim: int) -> np.ndarray:
    shape = [1] * ndim
    shape[layer.axis] = -1
    return values.reshape(shape)


def _batchnorm_scale(layer: Any) -> np.ndarray:
    variance = float64(layer.moving_variance) + layer.epsilon
    if not np.all(variance > 0):
        raise refuse(layer, "its moving variance plus epsilon is not positive.")
    gamma = float64(layer.gamma) if layer.scale else 1.0
    return gamma / np.sqrt(variance)


def batchnorm_gain(layer: Any, shape: Shape) -> float:
    """max |gamma / sqrt(variance + epsilon)| with the moving variance."""
    if layer.axis % len(shape) == 0:
        raise refuse(layer, "it normalises along the batch axis.")
    return float(np.max(np.abs(_batchnorm_scale(layer)))) * (1 + 1e-14)


def batchnorm_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Inference: moving mean and variance."""
    scale = _batchnorm_scale(layer)
    offset = float64(layer.beta) if layer.center else np.zeros(x.shape[layer.axis])
    mean = _along(layer, float64(layer.moving_mean), x.ndim)
    return (x - mean) * _along(layer, scale, x.ndim) + _along(layer, offset, x.ndim)


def _check_broadcast(layer: Any, shape: Shape, *values: np.ndarray) -> None:
    """The values may be spread over the input, never the input over them."""
    inner = tuple(n for n in shape[1:] if n is not None)
    for value in values:
        if value.ndim > len(inner) and value.shape[: value.ndim - len(inner)] != (1,) * (
            value.ndim - len(inner)
        ):
            raise refuse(layer, "its scale or offset varies along the batch axis.")
        tail = value.shape[-len(inner) :] if inner else ()
        if np.broadcast_shapes(tail, inner) != inner:
            raise refuse(layer, "its scale or offset makes the output larger than the input.")


def rescaling_gain(layer: Any, shape: Shape) -> float:
    """max |scale|."""
    scale, offset = np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    _check_broadcast(layer, shape, scale, offset)
    return float(np.max(np.abs(scale)))


def rescaling_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """x * scale + offset."""
    return x * np.asarray(layer.scale, np.float64) + np.asarray(layer.offset, np.float64)


def _normalization_parts(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    deviation = np.maximum(np.sqrt(float64(layer.variance)), keras.config.epsilon())
    return float64(layer.mean), deviation if layer.invert else 1.0 / deviation


def normalization_gain(layer: Any, shape: Shape) -> float:
    """max 1 / deviation (or max deviation for the inverse)."""
    mean, scale = _normalization_parts(layer)
    _check_broadcast(layer, shape, mean, scale)
    return float(np.max(scale)) * (1 + 1e-14)


def normalization_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """(x - mean) / deviation, or its inverse."""
    mean, scale = _normalization_parts(layer)
    return x * scale + mean if layer.invert else (x - mean) * scale
