"""Convolutions and pooling of channels-first frameworks as Keras' layers.

Their padding is a number of zeros on each side. Keras' "valid" and "same" are used where they mean
the same for the size at hand; elsewhere a padding or cropping layer comes before or after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from dynzoo.certificates.rules.linear import same_padding
from dynzoo.convert.network import Network, Tensor

__all__ = ["Geometry", "adaptive_pool", "average_pool", "conv", "conv_transpose", "max_pool"]

kl = keras.layers
Pads = Sequence[tuple[int, int]]


class Geometry(NamedTuple):
    """How the window of a convolution moves, one entry a spatial axis.

    Attributes:
        strides: pixels from one window to the next.
        pads: zeros before and after the image.
        dilation: pixels from one tap to the next.
        groups: of channels that do not mix.
        more: rows at the end of a transposed convolution that no window reaches.
    """

    strides: Sequence[int]
    pads: Pads
    dilation: Sequence[int]
    groups: int = 1
    more: Sequence[int] = ()


class _Axis(NamedTuple):
    """One spatial axis: how many pixels, and what the window does."""

    size: int
    window: int
    stride: int
    before: int
    after: int

    @property
    def outputs(self) -> int:
        return (self.before + self.size + self.after - self.window) // self.stride + 1

    @property
    def is_valid(self) -> bool:
        """Whether it is Keras' padding="valid"."""
        return self.before == 0 and self.outputs == (self.size - self.window) // self.stride + 1

    @property
    def is_same(self) -> bool:
        """Whether it is Keras' padding="same"."""
        before, _ = same_padding(self.size, self.window, self.stride)
        return self.before == before and self.outputs == -(-self.size // self.stride)

    @property
    def zeros(self) -> tuple[int, int]:
        """What has to be added so that the windows without padding are these."""
        needed = (self.outputs - 1) * self.stride + self.window
        return self.before, max(needed - self.size - self.before, 0)


def _axes(net: Network, x: Tensor, windows: Any, strides: Any, pads: Pads) -> list[_Axis]:
    axes = [
        _Axis(n, int(k), int(s), int(a), int(b))
        for n, k, s, (a, b) in zip(x.shape[1:], windows, strides, pads, strict=True)
    ]
    if any(axis.outputs < 1 for axis in axes):
        raise net.refuse(f"its window is larger than its input of {x.shape[1:]} pixels.")
    return axes


def _padded(net: Network, x: Tensor, axes: Sequence[_Axis]) -> tuple[Tensor, str]:
    """The input, with zeros where Keras' own padding is another, and that padding."""
    if all(axis.is_valid for axis in axes):
        return x, "valid"
    if all(axis.is_same for axis in axes):
        return x, "same"
    return net.zeros_around(x, [axis.zeros for axis in axes]), "valid"


def _spaced(kernel: np.ndarray, dilation: Sequence[int]) -> np.ndarray:
    """A kernel with the zeros of its dilation written out; spatial axes first."""
    sizes = [(n - 1) * d + 1 for n, d in zip(kernel.shape, dilation, strict=False)]
    wide = np.zeros((*sizes, *kernel.shape[len(sizes) :]))
    wide[tuple(slice(None, None, int(d)) for d in dilation)] = kernel
    return wide


def conv(
    net: Network, x: Tensor, weight: np.ndarray, bias: np.ndarray | None, geometry: Geometry
) -> Tensor:
    """A convolution with a weight of shape (outputs, inputs / groups, ...)."""
    strides, pads, dilation, groups, _ = geometry
    spatial = weight.ndim - 2
    x = net.image(x, (spatial + 2,))
    channels = x.shape[0]
    if weight.shape[1] * groups != channels:
        raise net.refuse(f"it takes {weight.shape[1] * groups} channels, its input has {channels}.")
    kernel = np.asarray(weight, np.float64).transpose(*range(2, weight.ndim), 1, 0)
    if max(strides) > 1 and max(dilation) > 1:
        # Keras has no layer with both.
        kernel, dilation = _spaced(kernel, dilation), [1] * spatial
    windows = [(n - 1) * d + 1 for n, d in zip(kernel.shape, dilation, strict=False)]
    x, padding = _padded(net, x, _axes(net, x, windows, strides, pads))
    arguments: dict[str, Any] = {
        "kernel_size": kernel.shape[:spatial],
        "strides": tuple(int(s) for s in strides),
        "padding": padding,
        "dilation_rate": tuple(int(d) for d in dilation),
        "use_bias": bias is not None,
        "data_format": "channels_last",
    }
    filters = kernel.shape[-1]
    if groups == channels > 1 and len(set(strides)) == 1:
        cls = {1: kl.DepthwiseConv1D, 2: kl.DepthwiseConv2D}[spatial]
        kernel = kernel.reshape(*kernel.shape[:spatial], channels, filters // channels)
        arguments["depth_multiplier"] = filters // channels
    else:
        cls = {1: kl.Conv1D, 2: kl.Conv2D}[spatial]
        arguments |= {"filters": filters, "groups": int(groups)}
    weights = [kernel] if bias is None else [kernel, bias]
    return Tensor(net.layer(cls, x.keras, weights, **arguments), x.axes)


def conv_transpose(
    net: Network, x: Tensor, weight: np.ndarray, bias: np.ndarray | None, geometry: Geometry
) -> Tensor:
    """The adjoint of a convolution, with a weight of shape (inputs, outputs / groups, ...).

    Each group becomes a block of the kernel, as Keras' layer has none.
    """
    strides, pads, dilation, groups, more = geometry
    spatial = weight.ndim - 2
    x = net.image(x, (spatial + 2,))
    inputs, part = weight.shape[:2]
    dense = np.zeros((inputs, part * groups, *weight.shape[2:]))
    for g in range(groups):
        rows = slice(g * inputs // groups, (g + 1) * inputs // groups)
        dense[rows, g * part : (g + 1) * part] = weight[rows]
    kernel = _spaced(dense.transpose(*range(2, weight.ndim), 1, 0), dilation)
    sizes = x.shape[1:]
    outputs = [
        (n - 1) * s - a - b + k + m
        for n, s, (a, b), k, m in zip(sizes, strides, pads, kernel.shape, more, strict=False)
    ]
    same = all(
        out == n * s and a == max(k - s, 0) // 2
        for out, n, s, (a, _), k in zip(outputs, sizes, strides, pads, kernel.shape, strict=False)
    )
    if not same:
        # Zeros at the end of the kernel make the whole output at least as long as what is kept.
        full = [
            max(k, s, out + a - (n - 1) * s)
            for k, s, out, (a, _), n in zip(
                kernel.shape, strides, outputs, pads, sizes, strict=False
            )
        ]
        longer = [(0, f - k) for f, k in zip(full, kernel.shape, strict=False)]
        kernel = np.pad(kernel, [*longer, (0, 0), (0, 0)])
    cls = {1: kl.Conv1DTranspose, 2: kl.Conv2DTranspose}[spatial]
    y = net.layer(
        cls,
        x.keras,
        [kernel] if bias is None else [kernel, bias],
        filters=kernel.shape[-2],
        kernel_size=kernel.shape[:spatial],
        strides=tuple(int(s) for s in strides),
        padding="same" if same else "valid",
        use_bias=bias is not None,
        data_format="channels_last",
    )
    whole = Tensor(y, x.axes)
    if same:
        return whole
    crops = [
        (a, n - a - out) for n, (a, _), out in zip(whole.shape[1:], pads, outputs, strict=True)
    ]
    return net.cropped(whole, crops)


def _rounded_up(net: Network, x: Tensor, windows: Any, strides: Any, pads: Pads) -> Pads:
    """Padding with which the last, incomplete window counts (`ceil_mode`)."""
    wider = []
    for axis in _axes(net, x, windows, strides, pads):
        span = axis.before + axis.size + axis.after - axis.window
        outputs = -(-span // axis.stride) + 1
        # A window that would start in the padding after the image is left out.
        if (outputs - 1) * axis.stride >= axis.size + axis.before:
            outputs -= 1
        needed = (outputs - 1) * axis.stride + axis.window - axis.size - axis.before
        wider.append((axis.before, max(needed, axis.after)))
    return wider


def max_pool(
    net: Network, x: Tensor, windows: Any, strides: Any, pads: Pads, ceil_mode: bool
) -> Tensor:
    """The largest value of each window; what lies outside the image is never it."""
    x = net.image(x)
    if ceil_mode:
        pads = _rounded_up(net, x, windows, strides, pads)
    axes = _axes(net, x, windows, strides, pads)
    fits = all(a.is_valid for a in axes) or all(a.is_same for a in axes)
    if not fits and not x.nonnegative:
        raise net.refuse(
            "its padding is not Keras' padding='same' at this size, and zeros in its place need an "
            "input that is not negative, such as that of a ReLU."
        )
    x, padding = _padded(net, x, axes)
    cls = {1: kl.MaxPooling1D, 2: kl.MaxPooling2D}[len(axes)]
    return _pool(net, x, cls, axes, padding)


def _pool(net: Network, x: Tensor, cls: type, axes: Sequence[_Axis], padding: str) -> Tensor:
    sizes, steps = tuple(a.window for a in axes), tuple(a.stride for a in axes)
    y = net.layer(
        cls,
        x.keras,
        pool_size=sizes if len(axes) > 1 else sizes[0],
        strides=steps if len(axes) > 1 else steps[0],
        padding=padding,
        data_format="channels_last",
    )
    return Tensor(y, x.axes, nonnegative=x.nonnegative)


def average_pool(
    net: Network,
    x: Tensor,
    windows: Any,
    strides: Any,
    pads: Pads,
    ceil_mode: bool,
    zeros_count: bool,
) -> Tensor:
    """The mean of each window, over the zeros of the padding as well or not."""
    x = net.image(x)
    if ceil_mode and _rounded_up(net, x, windows, strides, pads) != list(pads):
        grown = _axes(net, x, windows, strides, _rounded_up(net, x, windows, strides, pads))
        if [a.outputs for a in grown] != [a.outputs for a in _axes(net, x, windows, strides, pads)]:
            raise net.refuse("its last window is not complete; only ceil_mode=False is known.")
    axes = _axes(net, x, windows, strides, pads)
    cls = {1: kl.AveragePooling1D, 2: kl.AveragePooling2D}[len(axes)]
    if all(a.is_valid for a in axes):
        return _pool(net, x, cls, axes, "valid")
    if not zeros_count:
        if not all(a.is_same and a.before == a.zeros[1] for a in axes):
            raise net.refuse(
                "count_include_pad=False is known only where the padding is that of "
                "padding='same' and equal on both sides."
            )
        return _pool(net, x, cls, axes, "same")
    x = net.zeros_around(x, [a.zeros for a in axes])
    return _pool(net, x, cls, axes, "valid")


def adaptive_pool(net: Network, x: Tensor, outputs: Sequence[int | None], largest: bool) -> Tensor:
    """The mean or largest value of each of so many equal parts of the image."""
    x = net.image(x)
    sizes = x.shape[1:]
    wanted = [n if out is None else int(out) for n, out in zip(sizes, outputs, strict=True)]
    if wanted == list(sizes):
        return x
    spatial = len(sizes)
    if math.prod(wanted) == 1:
        mean = {1: kl.GlobalAveragePooling1D, 2: kl.GlobalAveragePooling2D}[spatial]
        most = {1: kl.GlobalMaxPooling1D, 2: kl.GlobalMaxPooling2D}[spatial]
        y = net.layer(most if largest else mean, x.keras, keepdims=True)
        return Tensor(y, x.axes, nonnegative=x.nonnegative)
    if any(n % out for n, out in zip(sizes, wanted, strict=True)):
        raise net.refuse(
            f"its output size {tuple(wanted)} does not divide its input of {tuple(sizes)} pixels."
        )
    windows = [n // out for n, out in zip(sizes, wanted, strict=True)]
    pads = [(0, 0)] * spatial
    if largest:
        return max_pool(net, x, windows, windows, pads, False)
    return average_pool(net, x, windows, windows, pads, False, True)
