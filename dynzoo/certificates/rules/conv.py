"""Gain and float64 forward pass of Keras' convolutions, of any dimension.

All are ``spectral.convolutions.Axis`` along each axis: 'valid', 'same' and causal padding are
numbers of zeros before the image, depthwise kernels have a group for each channel, a separable
kernel is the product of its two, and a transposed convolution is the adjoint of a convolution from
its output to its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynzoo.backend import name
from dynzoo.certificates.rules.linear import Shape, channels_last, float64, refuse, same_padding
from dynzoo.spectral.convolutions import (
    Axis,
    correlate,
    correlate_adjoint,
    padded_conv_norm_float64,
    refuse_too_large,
)
from dynzoo.spectral.singular_values import ROUNDOFF, scaled_back, unit_entries_float64

__all__ = [
    "conv_axes",
    "depthwise_forward",
    "depthwise_gain",
    "depthwise_kernel",
    "forward",
    "gain",
    "separable_forward",
    "separable_gain",
    "transposed_axes",
    "transposed_forward",
    "transposed_gain",
]


def _sizes(layer: Any, shape: Shape) -> list[int]:
    """Pixels along each axis of a shape in the layer's data format."""
    sizes = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
    assert len(sizes) == layer.rank and None not in sizes
    return [int(n or 0) for n in sizes]


def conv_axes(layer: Any, shape: Shape) -> list[Axis]:
    """Geometry of a convolution on an input of this shape."""
    axes = []
    for n, k, stride, dilation in zip(
        _sizes(layer, shape), layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
    ):
        window = (k - 1) * dilation + 1
        before = after = 0
        if layer.padding == "same":
            before, after = same_padding(n, window, stride)
        elif layer.padding == "causal":
            before = window - 1
        outputs = (before + n + after - window) // stride + 1
        axes.append(Axis(n, outputs, stride, dilation, before))
    return axes


def transposed_axes(layer: Any, shape: Shape) -> list[Axis]:
    """Geometry of the convolution, from output to input, whose adjoint the layer is.

    The zeros before the image are what all three backends make of 'same' with the default or an
    explicit ``output_padding``: TensorFlow pads the convolution as 'same' for the layer's output
    size, JAX and PyTorch count from the other side and arrive at the same number.
    """
    inputs, outputs = _sizes(layer, shape), _sizes(layer, layer.compute_output_shape(shape))
    axes = []
    for i, stride in enumerate(layer.strides):
        dilation = layer.dilation_rate[i]
        window = (layer.kernel_size[i] - 1) * dilation + 1
        before = 0
        if layer.padding == "same":
            extra = window - stride
            if layer.output_padding is not None:
                extra = window - window % 2 - layer.output_padding[i]
            before = max(extra, 0) // 2
        axes.append(Axis(outputs[i], inputs[i], stride, dilation, before))
    return axes


def _check(
    layer: Any, shape: Shape, kernel: Sequence[int], axes: Sequence[Axis], groups: int = 1
) -> None:
    """Refuses what is too large, before any float64 copy is made, and a fault of Keras' own."""
    try:
        refuse_too_large(kernel, axes, groups)
    except ValueError as error:
        raise refuse(layer, f"{error}") from None
    if not layer.use_bias or layer.data_format == "channels_last" or name() != "tensorflow":
        return
    _, channels, *_, last = layer.compute_output_shape(shape)
    if channels == last > 1:
        raise refuse(
            layer,
            "on TensorFlow, Keras adds the bias of a channels_first convolution along the last "
            "axis where that is as long as there are channels; use another data format or size.",
        )


def _with_bias(layer: Any, y: np.ndarray) -> np.ndarray:
    return y + float64(layer.bias) if layer.use_bias else y


def _grouped(x: np.ndarray, kernels: Sequence[np.ndarray], axes: Sequence[Axis]) -> np.ndarray:
    parts = np.split(x, len(kernels), axis=-1)
    return np.concatenate(
        [correlate(part, kernel, axes) for part, kernel in zip(parts, kernels, strict=True)],
        axis=-1,
    )


# --- convolutions --------------------------------------------------------------------------


def gain(layer: Any, shape: Shape) -> float:
    """Bound of the operator norm at this image size."""
    axes = conv_axes(layer, shape)
    _check(layer, shape, layer.kernel.shape, axes, layer.groups)
    return padded_conv_norm_float64(float64(layer.kernel), axes, layer.groups)


def forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Strides, dilation, groups, padding and bias."""
    axes = conv_axes(layer, x.shape)
    kernels = np.split(float64(layer.kernel), layer.groups, axis=-1)
    return channels_last(
        layer, x, lambda images: _with_bias(layer, _grouped(images, kernels, axes))
    )


def depthwise_kernel(kernel: np.ndarray) -> np.ndarray:
    """(..., channels, m) as a kernel with one group a channel: (..., 1, channels * m)."""
    return kernel.reshape(*kernel.shape[:-2], 1, -1)


def depthwise_gain(layer: Any, shape: Shape) -> float:
    """As ``gain``, with one group for each input channel."""
    axes, kernel_shape = conv_axes(layer, shape), tuple(layer.kernel.shape)
    channels, multiplier = kernel_shape[-2:]
    _check(layer, shape, (*kernel_shape[:-2], 1, channels * multiplier), axes, channels)
    return padded_conv_norm_float64(depthwise_kernel(float64(layer.kernel)), axes, channels)


def _depthwise(x: np.ndarray, kernel: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """Channel c of the input makes the outputs c*m, ..., c*m + m - 1."""
    return _grouped(x, np.split(kernel, kernel.shape[-2], axis=-2), axes)


def depthwise_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Channel c of the input makes the outputs c*m, ..., c*m + m - 1."""
    axes, kernel = conv_axes(layer, x.shape), float64(layer.kernel)
    return channels_last(
        layer, x, lambda images: _with_bias(layer, _depthwise(images, kernel, axes))
    )


def separable_gain(layer: Any, shape: Shape) -> float:
    """The norm of the one convolution that both steps make, not the product of their norms."""
    axes, kernel_shape = conv_axes(layer, shape), tuple(layer.depthwise_kernel.shape)
    _check(layer, shape, (*kernel_shape[:-1], layer.filters), axes)
    depthwise, exponent = unit_entries_float64(float64(layer.depthwise_kernel))
    pointwise, other = unit_entries_float64(float64(layer.pointwise_kernel))
    channels, multiplier = kernel_shape[-2:]
    pointwise = pointwise.reshape(channels, multiplier, layer.filters)

    def product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.einsum("...cm,cmf->...cf", first, second)

    norm = padded_conv_norm_float64(product(depthwise, pointwise), axes)
    # Each entry is rounded by this share of the sum of sizes; a map is not larger than sqrt(taps)
    # times the Frobenius norm of its kernel.
    sizes = float(np.linalg.norm(product(np.abs(depthwise), np.abs(pointwise))))
    rounded = ROUNDOFF * (multiplier + 2) * math.sqrt(math.prod(layer.kernel_size)) * sizes
    return scaled_back(scaled_back(norm + rounded, exponent), other)


def separable_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """The depthwise step, then the pointwise one."""
    axes, kernel = conv_axes(layer, x.shape), float64(layer.depthwise_kernel)
    pointwise = float64(layer.pointwise_kernel).reshape(-1, layer.filters)
    return channels_last(
        layer, x, lambda images: _with_bias(layer, _depthwise(images, kernel, axes) @ pointwise)
    )


# --- transposed ----------------------------------------------------------------------------


def transposed_gain(layer: Any, shape: Shape) -> float:
    """The norm of the convolution whose adjoint the layer is."""
    axes = transposed_axes(layer, shape)
    _check(layer, shape, layer.kernel.shape, axes)
    return padded_conv_norm_float64(float64(layer.kernel), axes)


def transposed_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """The adjoint of that convolution, and the bias."""
    axes, kernel = transposed_axes(layer, x.shape), float64(layer.kernel)
    return channels_last(
        layer, x, lambda images: _with_bias(layer, correlate_adjoint(images, kernel, axes))
    )
