"""What rounding adds in one call of a layer: a rule for each class, in terms of a `Budget`.

A rule takes the budget of the computed input (its size, no error yet) and the layer's Lipschitz
bound, and returns the budget of the computed output: the error that this layer alone adds. How
earlier errors grow is the business of the Lipschitz bound. A layer without a rule is measured, and
the certificate names it (`rounding_bound`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dynzoo import spectral
from dynzoo.certificates.rounding.floating_point import Budget
from dynzoo.certificates.rules.activations import KERAS_ACTIVATIONS
from dynzoo.certificates.rules.linear import float64, refuse
from dynzoo.certificates.rules.table import IDENTITY, activation_rule, rule_for

__all__ = ["ROUNDING", "Sizes", "activated", "biased", "matrix_product"]

kl = keras.layers

# Shape of one example: without the batch axis.
Sizes = tuple[int, ...]
Rounding = Callable[[Any, Sizes, Budget, float], Budget]

# Activations that choose between numbers they are given, and the roundings of simple others.
_EXACT = ("linear", "relu", "relu6", "hard_tanh")
_ROUNDINGS = {
    "leaky_relu": 2.0,
    "hard_sigmoid": 2.0,
    "soft_shrink": 2.0,
    "sparse_plus": 4.0,
    "sparse_sigmoid": 2.0,
    "hard_silu": 4.0,
    "softsign": 3.0,
}


def exact(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    """Moves and compares numbers."""
    return b


# --- matrices ------------------------------------------------------------------------------


def matrix_product(
    b: Budget,
    matrix: np.ndarray,
    positions: int = 1,
    windows: int = 1,
    norm: float | None = None,
) -> Budget:
    """A product with a matrix (terms, outputs) at each of some positions.

    Args:
        b: budget of the input.
        matrix: float64 array (terms, outputs).
        positions: at how many places it is applied.
        windows: in how many of the places an input takes part.
        norm: bound of the operator norm of every part of the map, if one is known; otherwise the
            matrix's norm times the root of ``windows``.
    """
    if norm is None:
        norm = spectral.dense_norm_float64(matrix) * math.sqrt(windows)
    return b.product(
        len(matrix),
        norm,
        frobenius=float(np.linalg.norm(matrix)) * math.sqrt(windows),
        outputs=matrix.shape[1] * positions,
        coherent=_is_coherent(matrix),
        independent=_distinct(matrix),
    )


def _distinct(matrix: np.ndarray) -> int:
    """Number of columns that count: copies of a sum round alike, and small ones hardly matter."""
    columns = np.ascontiguousarray(np.abs(matrix).T)
    squares = np.einsum("ij,ij->i", columns, columns)
    largest = float(squares.max(initial=0.0))
    alike = len({column.tobytes() for column in columns})
    return min(alike, int(squares.sum() / largest)) if largest > 0 else alike


def _is_coherent(matrix: np.ndarray) -> bool:
    """Whether a column has terms so alike in size that their roundings may all go one way.

    The independence of roundings rests on terms whose last digits differ. A mean, a binary kernel
    or a Hadamard matrix has none: on a constant image every addition rounds the same way.
    """
    if len(matrix) <= 16:
        return False
    sizes = np.abs(matrix)
    counts = np.maximum((sizes > 0).sum(axis=0), 1)
    mean = sizes.sum(axis=0) / counts
    square = (sizes**2).sum(axis=0) / counts
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.maximum(square - mean**2, 0.0)) / mean
    return bool(np.any((counts > 16) & ~(spread > 0.25)))


def biased(b: Budget, bias: Any, positions: int) -> Budget:
    """After a bias (or none) is added at each of some positions."""
    if bias is None:
        return b
    offset = float(np.linalg.norm(float64(bias))) * math.sqrt(positions)
    return b.mapped(1.0, offset).rounded()


def _dense(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    positions = math.prod(shape[:-1])
    output = (*shape[:-1], layer.units)
    y = matrix_product(b, float64(layer.kernel), positions, norm=_without(layer, output, gain))
    y = biased(y, layer.bias if layer.use_bias else None, positions)
    return activated(layer, output, y)


def _einsum(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    kernel, output = float64(layer.kernel), _output(layer, shape)
    terms, norm = math.prod(shape), _without(layer, output, gain)
    y = b.product(
        terms, norm, norm * math.sqrt(terms), math.prod(output), _is_coherent(kernel.reshape(-1, 1))
    )
    if layer.bias is not None:
        bias = float64(layer.bias)
        offset = float(np.linalg.norm(bias)) * math.sqrt(math.prod(output) / max(1, bias.size))
        y = y.mapped(1.0, offset).rounded()
    return activated(layer, output, y)


def _without(layer: Any, output: Sizes, gain: float) -> float:
    """The layer's gain without its activation."""
    slope = activation_rule(layer).gain(layer, (None, *output))
    if slope == 0.0:  # the activation forgets its input, and nothing can be divided by that
        return float(np.linalg.norm(float64(layer.kernel))) * math.sqrt(math.prod(output))
    return gain if slope == 1.0 else gain / slope * (1 + 1e-15)


def _convolution(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    kernel = float64(layer.kernel)
    rank = kernel.ndim - 2
    output = _output(layer, shape)
    if type(layer) in (kl.DepthwiseConv1D, kl.DepthwiseConv2D):
        parts = [kernel[..., [c], :] for c in range(kernel.shape[rank])]
    else:
        parts = np.split(kernel, layer.groups, axis=-1)
    y = _parts(b, parts, rank, _windows(layer, kernel, rank), math.prod(output))
    return _finished(layer, output, y)


def _transposed(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    kernel = float64(layer.kernel)  # (..., outputs, inputs)
    rank = kernel.ndim - 2
    output = _output(layer, shape)
    windows = _windows(layer, kernel, rank)
    matrix = np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)
    spread = sum(
        spectral.dense_norm_float64(tap) for tap in kernel.reshape(-1, *kernel.shape[rank:])
    )
    own = spectral.dense_norm_float64(matrix) * math.sqrt(windows)
    y = b.product(
        windows * kernel.shape[-1],
        min(own, spread),
        float(np.linalg.norm(matrix)) * math.sqrt(windows),
        math.prod(output),
        _is_coherent(matrix),
    )
    return _finished(layer, output, y)


def _separable(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    depthwise, pointwise = float64(layer.depthwise_kernel), float64(layer.pointwise_kernel)
    rank = depthwise.ndim - 2
    output = _output(layer, shape)
    parts = [depthwise[..., [c], :] for c in range(depthwise.shape[rank])]
    positions = math.prod(output) // layer.filters
    channels = depthwise.shape[-1] * depthwise.shape[-2]
    y = _parts(b, parts, rank, _windows(layer, depthwise, rank), positions * channels)
    y = matrix_product(y, pointwise.reshape(-1, layer.filters), positions)
    return _finished(layer, output, y)


def _output(layer: Any, shape: Sizes) -> Sizes:
    return tuple(int(n) for n in layer.compute_output_shape((None, *shape))[1:])


def _windows(layer: Any, kernel: np.ndarray, rank: int) -> int:
    """In how many windows a pixel takes part, at most."""
    strides = np.broadcast_to(layer.strides, (rank,))
    dilated = np.broadcast_to(layer.dilation_rate, (rank,)) > 1
    return math.prod(
        int(k) if d else -(-int(k) // int(s))
        for k, s, d in zip(kernel.shape[:rank], strides, dilated, strict=True)
    )


def _finished(layer: Any, output: Sizes, b: Budget) -> Budget:
    """After the bias and the activation of a convolution."""
    channels = output[-1] if layer.data_format == "channels_last" else output[0]
    positions = math.prod(output) // max(1, channels)
    b = biased(b, layer.bias if layer.use_bias else None, positions)
    return activated(layer, output, b)


def _parts(b: Budget, parts: list[np.ndarray], rank: int, windows: int, outputs: int) -> Budget:
    """The groups of a convolution: the norm is that of the largest, the sums are alike."""
    matrices = [part.reshape(-1, part.shape[-1]) for part in parts]
    # Any part of the sum is at most the sum over its taps.
    spread = max(
        sum(spectral.dense_norm_float64(tap) for tap in part.reshape(-1, *part.shape[rank:]))
        for part in parts
    )
    own = max(spectral.dense_norm_float64(m) for m in matrices) * math.sqrt(windows)
    frobenius = max(float(np.linalg.norm(m)) for m in matrices) * math.sqrt(windows)
    coherent = any(_is_coherent(m) for m in matrices)
    return b.product(
        len(matrices[0]),
        min(own, spread),
        frobenius,
        outputs,
        coherent,
        min(map(_distinct, matrices)),
    )


# --- scale and shift -----------------------------------------------------------------------


def _scaled(b: Budget, scale: float, offset: float, times: float) -> Budget:
    """x * scale + offset, where both are computed in a few roundings."""
    y = b.mapped(scale, offset)
    return y.rounded(times)


def _spread(values: np.ndarray, shape: Sizes) -> float:
    """Norm of an array that is broadcast to the shape of an example."""
    values = np.asarray(values, np.float64)
    if values.ndim > len(shape):
        values = values.reshape(values.shape[values.ndim - len(shape) :])
    return float(np.linalg.norm(np.broadcast_to(values, shape)))


def _rescaling(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    scale = float(np.max(np.abs(np.asarray(layer.scale, np.float64))))
    return _scaled(b, scale, _spread(layer.offset, shape), 4.0)


def _batch_normalization(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    axis = layer.axis % (len(shape) + 1) - 1
    positions = math.prod(shape) // shape[axis]
    variance = float64(layer.moving_variance)
    total = variance + layer.epsilon
    scale = (float64(layer.gamma) if layer.scale else 1.0) / np.sqrt(total)
    # Numbers that cancel in the sum, or that are next to underflow, leave little of it.
    unit, tiny = b.arithmetic.unit, b.arithmetic.tiny
    loss = float(np.max((4 * unit * (np.abs(variance) + abs(layer.epsilon)) + tiny) / total))
    if not loss < 0.5:
        raise refuse(layer, "its moving variance plus epsilon is lost in rounding.")
    mean = float64(layer.moving_mean)
    beta = float64(layer.beta) if layer.center else 0.0 * mean
    # Some backends compute x * scale + (beta - mean * scale): both summands may be large.
    offset = math.sqrt(positions) * float(np.linalg.norm(np.abs(mean * scale) + np.abs(beta)))
    y = _scaled(b, float(np.max(np.abs(scale))), offset, 12.0)
    return y.disturbed(loss * y.computed) if loss > 16 * unit else y


def _normalization(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    deviation = np.maximum(np.sqrt(float64(layer.variance)), keras.config.epsilon())
    mean = float64(layer.mean)
    scale = deviation if layer.invert else 1.0 / deviation
    offset = _spread(mean if layer.invert else np.abs(mean * scale), shape)
    return _scaled(b, float(np.max(scale)), offset, 8.0)


# --- pooling -------------------------------------------------------------------------------


def _average_pooling(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    # Means of a constant image round the same way everywhere.
    terms = math.prod(np.atleast_1d(layer.pool_size).tolist())
    return b.product(terms + 1, gain, coherent=True)


def _global_average(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    channels = shape[-1] if layer.data_format == "channels_last" else shape[0]
    return b.product(math.prod(shape) // channels + 1, gain, coherent=True)


def _interpolated(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    """Nearest pixels, or means of four whose weights are computed from their places."""
    if layer.interpolation == "nearest":
        return b
    output = _output(layer, shape)
    longest = max(*shape, *output)
    y = b.mapped(max(1.0, gain))
    # A weight is off by the rounding of a coordinate; two weights of a pixel's neighbours are.
    return y.disturbed((16.0 + 8.0 * longest) * b.arithmetic.unit * y.computed)


# --- wrappers ------------------------------------------------------------------------------


def _wrapped(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    return ROUNDING[type(layer.layer)](layer.layer, shape, b, gain)


def _time_distributed(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    # Each of the steps may be as large as all together, and as far off.
    y = ROUNDING[type(layer.layer)](layer.layer, shape[1:], b, gain)
    root = math.sqrt(shape[0])
    return Budget(root * y.size, b.arithmetic, root * y.worst, root * y.probable, root * y.peak)


# --- activations ---------------------------------------------------------------------------


def activated(layer: Any, shape: Sizes, b: Budget) -> Budget:
    """After the layer's own activation.

    Raises:
        KeyError: if the activation is a layer without a rule.
    """
    activation = layer.activation
    if activation is None:
        return b
    if isinstance(activation, kl.Layer):
        gain = rule_for(activation).gain(activation, (None, *shape))
        return ROUNDING[type(activation)](activation, shape, b, gain)
    slope = KERAS_ACTIVATIONS[activation].bound((None, *shape))
    return function_rounding(activation.__name__, slope, shape, b)


def function_rounding(
    name: str, slope: float, shape: Sizes, b: Budget, start: float = 1.0
) -> Budget:
    """After an elementwise function (or a softmax) with this Lipschitz constant.

    Args:
        name: of the function.
        slope: its Lipschitz constant.
        shape: of one example.
        b: budget of the input.
        start: bound of its value at 0 and of what is added up there, if more than 1.
    """
    if name in _EXACT:
        return b.mapped(slope)
    if "softmax" in name:
        y = b.mapped(slope, math.sqrt(math.prod(shape)))
        extra = b.arithmetic.unit * (shape[-1] + 2 * b.arithmetic.library) * y.computed
        return y.disturbed(extra + 4.0 * b.arithmetic.unit * b.computed)
    # By default no function of the table is above 1 at zero; all are below that plus slope * |x|.
    offset = max(1.0, start) * math.sqrt(math.prod(shape))
    times = _ROUNDINGS.get(name, b.arithmetic.library)
    y = b.mapped(slope, offset)
    return y.rounded(times, relative_to=max(1.0, slope) * b.computed, offset=offset)


def _activation(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    return activated(layer, shape, b)


def _relu(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    # The slope and the ceiling are rounded as well as the product.
    slope = float(layer.negative_slope)
    if slope:
        return b.mapped(max(1.0, abs(slope))).rounded(2.0)
    return b if getattr(layer, "max_value", None) is None else b.rounded()


def _prelu(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    return b.mapped(max(1.0, float(np.max(np.abs(float64(layer.alpha)))))).rounded()


def _elu(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    # alpha * (exp(x) - 1), where the difference of numbers near 1 may be taken as it stands.
    alpha = abs(float(layer.alpha))
    return function_rounding("elu", max(1.0, alpha), shape, b, alpha)


def _softmax(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    return function_rounding("softmax", 0.5, (math.prod(shape),), b)


ROUNDING: dict[type, Rounding] = {
    kl.Dense: _dense,
    kl.Conv1D: _convolution,
    kl.Conv2D: _convolution,
    kl.Conv3D: _convolution,
    kl.Conv1DTranspose: _transposed,
    kl.Conv2DTranspose: _transposed,
    kl.Conv3DTranspose: _transposed,
    kl.SeparableConv1D: _separable,
    kl.SeparableConv2D: _separable,
    kl.DepthwiseConv1D: _convolution,
    kl.DepthwiseConv2D: _convolution,
    kl.Rescaling: _rescaling,
    kl.BatchNormalization: _batch_normalization,
    kl.Normalization: _normalization,
    kl.AveragePooling1D: _average_pooling,
    kl.AveragePooling2D: _average_pooling,
    kl.AveragePooling3D: _average_pooling,
    kl.GlobalAveragePooling1D: _global_average,
    kl.GlobalAveragePooling2D: _global_average,
    kl.GlobalAveragePooling3D: _global_average,
    kl.Activation: _activation,
    kl.ReLU: _relu,
    kl.LeakyReLU: _relu,
    kl.PReLU: _prelu,
    kl.ELU: _elu,
    kl.Softmax: _softmax,
    kl.EinsumDense: _einsum,
    kl.Resizing: _interpolated,
    kl.UpSampling2D: _interpolated,
    kl.SpectralNormalization: _wrapped,
    kl.TimeDistributed: _time_distributed,
    **dict.fromkeys(
        (
            *IDENTITY,
            kl.Flatten,
            kl.Reshape,
            kl.Permute,
            kl.RepeatVector,
            kl.MaxPooling1D,
            kl.MaxPooling2D,
            kl.MaxPooling3D,
            kl.GlobalMaxPooling1D,
            kl.GlobalMaxPooling2D,
            kl.GlobalMaxPooling3D,
            kl.ZeroPadding1D,
            kl.ZeroPadding2D,
            kl.ZeroPadding3D,
            kl.Cropping1D,
            kl.Cropping2D,
            kl.Cropping3D,
            kl.UpSampling1D,
            kl.UpSampling3D,
            kl.RandomCrop,
            kl.CenterCrop,
        ),
        exact,
    ),
}
