"""How each supported layer is written as affine maps, sums and rectifiers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from dynzoo import activations, spectral
from dynzoo.certificates.graph import Program
from dynzoo.certificates.local.curves import capped_relu, curve_of, elu_curve, named_curve
from dynzoo.certificates.local.joins import JOINS
from dynzoo.certificates.local.operations import add_operation
from dynzoo.certificates.local.ops import (
    Affine,
    Curve,
    Sum,
    Unrolled,
    Window,
    dense,
    diagonal,
    gather,
    mix,
)
from dynzoo.certificates.operations import TensorCall, class_name
from dynzoo.certificates.rules import conv as conv_rules
from dynzoo.certificates.rules import linear, window
from dynzoo.certificates.rules.image import along_axes
from dynzoo.certificates.rules.linear import float64
from dynzoo.certificates.rules.table import is_identity, rule_for
from dynzoo.fields.gradient import contractive_factor
from dynzoo.layers.gradient_flow import GradientFlow
from dynzoo.layers.heads import UnitRowDense
from dynzoo.layers.implicit_gradient_flow import ImplicitGradientFlow, implicit_step_bounds
from dynzoo.layers.isometries import BetaAbs, ChannelPadding, MaxMin, MeanShift, SpaceToDepth
from dynzoo.layers.learned_scale import LearnedScale
from dynzoo.layers.linear import (
    OrthonormalDense,
    OrthonormalPointwise,
    PositionOffset,
    ScaledAveragePooling2D,
)
from dynzoo.layers.shifts import MaxMinShift, SpatialShift
from dynzoo.layers.switching_flow import SwitchingFlow
from dynzoo.operators import Conv
from dynzoo.operators.shift import shift_float64
from dynzoo.spectral.convolutions import Axis, correlate, correlate_adjoint

__all__ = ["unroll"]

kl = keras.layers
Shape = tuple[int, ...]

_FAR = 2.0**300
# Slope of the flat side; 1 is the identity.
_SLOPES = {"linear": 1.0, "relu": 0.0, "leaky_relu": 0.2, "half_leaky_relu": 0.5}
_FUNCTIONS = {
    None: 1.0,
    keras.activations.linear: 1.0,
    keras.activations.relu: 0.0,
    keras.activations.leaky_relu: 0.2,
    keras.ops.relu: 0.0,
    keras.ops.leaky_relu: 0.2,
}


def unroll(program: Program, curves: bool = False) -> Unrolled:
    """The nodes of a model; the last one makes the logits.

    Args:
        program: steps of the model.
        curves: allow activations that are not rectifiers.

    Raises:
        ValueError: at a layer that local bounds do not know, naming it.
    """
    unrolled, slots = Unrolled([program.input_shape], curves=curves), {0: 0}
    for step in program.steps:
        layer, inputs = step.layer, [slots[i] for i in step.inputs]
        if isinstance(layer, TensorCall):
            try:
                slots[step.output] = add_operation(unrolled, inputs, layer)
            except NotImplementedError:
                raise _unknown(
                    layer, "the operation, as it is called, is not one of those", curves
                ) from None
        elif is_identity(layer):
            slots[step.output] = inputs[0]
        elif type(layer) in JOINS:
            try:
                slots[step.output] = JOINS[type(layer)](unrolled, inputs, layer)
            except NotImplementedError as error:
                raise _unknown(layer, f"{error}", curves) from None
        elif type(layer) in _LAYERS:
            slots[step.output] = _LAYERS[type(layer)](unrolled, inputs[0], layer)
        else:
            raise _unknown(layer, "the class is not one of those", curves)
    if slots[program.output] != len(unrolled.shapes) - 1:
        # An identity or unused steps at the end: the logits must be the last slot.
        unrolled.add(Sum((1.0,)), [slots[program.output]])
    return unrolled


def _unknown(layer: Any, reason: str, curves: bool = False) -> ValueError:
    names = sorted({cls.__name__ for cls in (*_LAYERS, *JOINS)})
    which = "activations of single numbers" if curves else "piecewise linear activations"
    return ValueError(
        f"Layer '{layer.name}' of class `{class_name(layer)}` has no local bound: {reason}. "
        f"Local bounds know {', '.join(names)} with {which}, and sums, "
        "multiples by constants, slices, new orders and ReLU as bare operations; "
        "`dynzoo.certify(model)` gives the global bound."
    )


def _activated(unrolled: Unrolled, slot: int, layer: Any) -> int:
    activation = layer.activation
    if isinstance(activation, kl.Layer) and type(activation) in _ACTIVATION_LAYERS:
        return _LAYERS[type(activation)](unrolled, slot, activation)
    if (activation is None or callable(activation)) and activation in _FUNCTIONS:
        return unrolled.rectify(slot, _FUNCTIONS[activation])
    return _bent(unrolled, slot, layer, curve_of(activation))


def _bent(unrolled: Unrolled, slot: int, layer: Any, curve: Curve | None) -> int:
    """An activation that is no rectifier, where those are allowed."""
    if not unrolled.curves:
        raise _unknown(layer, "its activation is not piecewise linear with slopes in [0, 1]")
    if curve is None:
        raise _unknown(layer, "its activation is not in the table of curves", True)
    return unrolled.add(curve, [slot])


# --- standard layers -----------------------------------------------------------------------


def _dense(unrolled: Unrolled, slot: int, layer: Any) -> int:
    kernel = float64(layer.kernel)
    bias = float64(layer.bias) if layer.use_bias else 0.0
    inner = _over_channels(unrolled, slot, kernel, bias, linear.dense_gain(layer, ()))
    return _activated(unrolled, inner, layer)


def _over_channels(unrolled: Unrolled, slot: int, kernel: Any, bias: Any, norm: float) -> int:
    op = dense(kernel, bias, norm)
    if len(unrolled.shapes[slot]) == 3:
        height, width, _ = unrolled.shapes[slot]
        op = replace(op, window=Window(kernel[None, None], (_whole(height), _whole(width))))
    return unrolled.add(op, [slot])


def _whole(size: int) -> Axis:
    return Axis(size, size)


def _unit_rows(unrolled: Unrolled, slot: int, layer: Any) -> int:
    kernel = layer.effective_kernel()
    bias = float64(layer.bias) if layer.use_bias else 0.0
    return unrolled.add(dense(kernel, bias, spectral.dense_norm_float64(kernel)), [slot])


def _check_last(layer: Any) -> None:
    # The 1D paddings and croppings know no data format.
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _unknown(layer, "only data_format='channels_last' is supported")


def _conv(unrolled: Unrolled, slot: int, layer: Any) -> int:
    _check_last(layer)
    shape, kernel = unrolled.shapes[slot], float64(layer.kernel)
    gain, forward, groups = conv_rules.gain, conv_rules.forward, getattr(layer, "groups", 1)
    if type(layer) in (kl.DepthwiseConv1D, kl.DepthwiseConv2D):
        gain, forward = conv_rules.depthwise_gain, conv_rules.depthwise_forward
        groups, kernel = shape[-1], conv_rules.depthwise_kernel(kernel)
    axes = conv_rules.conv_axes(layer, (None, *shape))
    parts = np.split(kernel, groups, axis=-1)

    def adjoint(y: np.ndarray) -> np.ndarray:
        given = np.split(y, groups, axis=-1)
        found = [correlate_adjoint(g, k, axes) for g, k in zip(given, parts, strict=True)]
        return np.concatenate(found, axis=-1)

    filters = np.sqrt(np.sum(kernel**2, axis=tuple(range(kernel.ndim - 1))))
    window = Window(kernel, (axes[0], axes[1]), groups) if len(axes) == 2 else None
    norm = gain(layer, (None, *shape))
    op = mix(lambda x: forward(layer, x), adjoint, norm, filters, window)
    return _activated(unrolled, unrolled.add(op, [slot]), layer)


def _transposed(unrolled: Unrolled, slot: int, layer: Any) -> int:
    _check_last(layer)
    shape, kernel = unrolled.shapes[slot], float64(layer.kernel)
    axes = conv_rules.transposed_axes(layer, (None, *shape))
    # An output reads some of the taps: (taps..., outputs, inputs).
    rows = np.sqrt(np.sum(kernel**2, axis=(*range(kernel.ndim - 2), -1)))
    op = mix(
        lambda x: conv_rules.transposed_forward(layer, x),
        lambda y: correlate(y, kernel, axes),
        conv_rules.transposed_gain(layer, (None, *shape)),
        rows,
    )
    return _activated(unrolled, unrolled.add(op, [slot]), layer)


def _relu(unrolled: Unrolled, slot: int, layer: Any) -> int:
    slope = float(layer.negative_slope)
    most = getattr(layer, "max_value", None)
    if getattr(layer, "threshold", 0) != 0:
        raise _unknown(layer, "only slopes in [0, 1] without threshold and maximum are supported")
    if most is None and 0 <= slope <= 1:
        return unrolled.rectify(slot, slope)
    if not unrolled.curves:
        raise _unknown(layer, "only slopes in [0, 1] without threshold and maximum are supported")
    return unrolled.add(capped_relu(slope, math.inf if most is None else float(most)), [slot])


def _prelu(unrolled: Unrolled, slot: int, layer: Any) -> int:
    """a x + (1 - a) relu(x), with slopes a of any size and sign."""
    alpha = np.broadcast_to(float64(layer.alpha), unrolled.shapes[slot])
    parts = []
    for scale, source in ((alpha, slot), (1.0 - alpha, unrolled.rectify(slot, 0.0))):
        norm = float(np.abs(scale).max()) * (1 + 1e-12)
        parts.append(unrolled.add(diagonal(scale, scale.__mul__, norm), [source]))
    gain = rule_for(layer).gain(layer, (None, *alpha.shape))
    return unrolled.add(Sum((1.0, 1.0)), parts, (slot, gain * (1 + 1e-12)))


def _elu(unrolled: Unrolled, slot: int, layer: Any) -> int:
    return _bent(unrolled, slot, layer, elu_curve(float(layer.alpha)))


def _entrywise(unrolled: Unrolled, slot: int, layer: Any) -> int:
    """A layer that scales and shifts each entry by itself."""
    rule, shape = rule_for(layer), unrolled.shapes[slot]
    gain = rule.gain(layer, (None, *shape))
    # From far away, where the largest offset is nothing beside the smallest scale.
    ends = rule.forward(layer, np.stack([np.zeros(shape), np.full(shape, _FAR)]))
    scale = (ends[1] - ends[0]) / _FAR
    return unrolled.add(diagonal(scale, lambda x: rule.forward(layer, x), gain), [slot])


def _reshape(unrolled: Unrolled, slot: int, layer: Any) -> int:
    shape, forward = unrolled.shapes[slot], rule_for(layer).forward
    if getattr(layer, "data_format", None) == "channels_first":
        raise _unknown(layer, "only data_format='channels_last' is supported")
    op = gather(lambda x: forward(layer, x), lambda y: y.reshape(-1, *shape))
    return unrolled.add(op, [slot])


def _permute(unrolled: Unrolled, slot: int, layer: Any) -> int:
    back = np.argsort((0, *layer.dims))
    op = gather(lambda x: x.transpose(0, *layer.dims), lambda y: y.transpose(*back))
    return unrolled.add(op, [slot])


def _padding(unrolled: Unrolled, slot: int, layer: Any) -> int:
    """Zeros around images or sequences, or less of them."""
    _check_last(layer)
    shape = unrolled.shapes[slot]
    crops = isinstance(layer, kl.Cropping1D | kl.Cropping2D)
    pairs = window.pairs(layer.cropping if crops else layer.padding)
    sizes = shape[:-1]
    if crops:
        forward, pads = window.cropping_forward, ((0, 0), *pairs, (0, 0))
        outputs = [n - sum(pair) for n, pair in zip(sizes, pairs, strict=True)]
        op = gather(lambda x: forward(layer, x), lambda y: np.pad(y, pads))
    else:
        forward = window.zero_padding_forward
        outputs = [n + sum(pair) for n, pair in zip(sizes, pairs, strict=True)]
        parts = zip(sizes, pairs, strict=True)
        inner = (slice(None), *(slice(before, before + n) for n, (before, _) in parts))
        op = gather(lambda x: forward(layer, x), lambda y: y[inner])
    if len(sizes) == 2:
        sign = -1 if crops else 1
        axes = [
            Axis(n, m, before=sign * before)
            for n, m, (before, _) in zip(sizes, outputs, pairs, strict=True)
        ]
        op = replace(op, window=Window(np.eye(shape[2])[None, None], (axes[0], axes[1])))
    return unrolled.add(op, [slot])


def _average(unrolled: Unrolled, slot: int, layer: Any) -> int:
    _check_last(layer)
    shape = unrolled.shapes[slot]
    gain = window.average_pooling_gain(layer, (None, *shape))
    matrices = window.averages(layer, shape[:-1])
    norms = np.ones(1)
    for matrix in matrices:
        norms = norms[..., None, :] * np.linalg.norm(matrix, axis=1)[:, None]
    op = mix(
        lambda x: along_axes(x, matrices),
        lambda y: along_axes(y, [matrix.T for matrix in matrices]),
        gain,
        norms,
    )
    if layer.padding == "valid" and len(matrices) == 2:
        kernel = np.full((*layer.pool_size, 1, shape[2]), 1.0 / math.prod(layer.pool_size))
        down, across = (
            Axis(n, len(matrix), stride)
            for n, matrix, stride in zip(shape, matrices, layer.strides, strict=False)
        )
        op = replace(op, window=Window(kernel, (down, across), shape[2]))
    return unrolled.add(op, [slot])


def _global_average(unrolled: Unrolled, slot: int, layer: Any) -> int:
    _check_last(layer)
    *sizes, channels = unrolled.shapes[slot]
    gain = window.global_average_gain(layer, (None, *sizes, channels))
    share = np.full((*sizes, 1), 1.0 / math.prod(sizes))

    def adjoint(y: np.ndarray) -> np.ndarray:
        return y.reshape(-1, *(1,) * len(sizes), channels) * share

    rank = 1 + len(sizes) if layer.keepdims else 1
    rows = np.full((*(1,) * (rank - 1), channels), gain)

    def spread(m: np.ndarray, s: np.ndarray) -> np.ndarray:
        return m.reshape(-1, *(1,) * rank) * rows

    op = Affine(lambda x: window.global_average_forward(layer, x), adjoint, gain, spread)
    return unrolled.add(op, [slot])


def _maximum(unrolled: Unrolled, slot: int, layer: Any) -> int:
    """Maximum over windows."""
    size = unrolled.shapes[slot][:-1]
    disjoint = tuple(layer.pool_size) == tuple(layer.strides)
    tiles = disjoint and all(n % p == 0 for n, p in zip(size, layer.pool_size, strict=True))
    if not (tiles or unrolled.curves) or layer.data_format != "channels_last":
        raise _unknown(layer, "only windows that tile channels_last images are supported")
    windows = list(zip(layer.pool_size, layer.strides, strict=True))
    return _largest(unrolled, slot, windows, layer.padding, tiles)


def _global_maximum(unrolled: Unrolled, slot: int, layer: Any) -> int:
    _check_last(layer)
    *sizes, channels = unrolled.shapes[slot]
    inner = _largest(unrolled, slot, [(n, n) for n in sizes], "valid", True)
    if layer.keepdims:
        return inner
    shape = unrolled.shapes[inner]
    op = gather(lambda x: x.reshape(-1, channels), lambda y: y.reshape(-1, *shape))
    return unrolled.add(op, [inner])


def _largest(
    unrolled: Unrolled, slot: int, windows: list[tuple[int, int]], padding: str, tiles: bool
) -> int:
    """Along one axis after the other, windows of (pixels, stride)."""
    source = slot
    for axis, (pool, stride) in enumerate(windows, 1):
        shape = unrolled.shapes[slot]
        n = shape[axis - 1]
        before, count = 0, (n - pool) // stride + 1
        if padding == "same":
            before, count = linear.same_padding(n, pool, stride)[0], -(-n // stride)
        # What a window that is cut off does not see is replaced by the pixel at the border.
        parts = [
            unrolled.add(_picked(shape, axis, k - before, stride, count), [slot])
            for k in range(pool)
        ]
        slot = parts[0]
        for part in parts[1:]:
            caps = ((source, math.sqrt(2.0)), (source, 1.0)) if tiles else (None, None)
            lead = unrolled.add(Sum((1.0, -1.0)), [slot, part], caps[0])
            excess = unrolled.rectify(lead, 0.0)
            slot = unrolled.add(Sum((1.0, 1.0)), [part, excess], caps[1])
    return slot


def _max_min(unrolled: Unrolled, slot: int, layer: MaxMin) -> int:
    """(a, b) -> (b + relu(a - b), a - relu(a - b)) for the two halves of the channels."""
    half = np.eye(unrolled.shapes[slot][-1] // 2)
    none = np.zeros_like(half)
    gap = _over_channels(unrolled, slot, np.r_[half, -half], 0.0, math.sqrt(2.0) * (1 + 1e-12))
    excess = _over_channels(
        unrolled, unrolled.rectify(gap, 0.0), np.c_[half, -half], 0.0, math.sqrt(2.0) * (1 + 1e-12)
    )
    turned = _over_channels(unrolled, slot, np.block([[none, half], [half, none]]), 0.0, 1.0)
    return unrolled.add(Sum((1.0, 1.0)), [turned, excess], (slot, 1.0 + 1e-12))


def _picked(shape: Shape, axis: int, first: int, stride: int, count: int) -> Affine:
    """Every `stride`-th row or column from the first on; the nearest one where there is none."""
    n = shape[axis - 1]
    wanted = first + stride * np.arange(count)
    places = np.clip(wanted, 0, n - 1)

    def adjoint(y: np.ndarray) -> np.ndarray:
        x = np.zeros((len(y), *shape))
        lead = np.moveaxis(x, axis, 0)
        np.add.at(lead, places, np.moveaxis(y, axis, 0))
        return x

    op = gather(lambda x: x.take(places, axis=axis), adjoint)
    if not np.array_equal(wanted, places):
        # Not taken apart into a window: a pixel is read twice.
        return replace(op, norm=math.sqrt(np.bincount(places).max()) * (1 + 1e-15))
    if len(shape) != 3:
        return op
    axes = [_whole(shape[0]), _whole(shape[1])]
    axes[axis - 1] = Axis(n, count, stride, before=-first)
    return replace(op, window=Window(np.eye(shape[2])[None, None], (axes[0], axes[1])))


def _space_to_depth(unrolled: Unrolled, slot: int, layer: SpaceToDepth) -> int:
    """Blocks to channels: a convolution with a stride, whose taps are all of one entry."""
    height, width, channels = unrolled.shapes[slot]
    b = layer.block_size
    numbers = np.arange(b * b * channels).reshape(1, b, b, channels)
    places = layer.call_float64(numbers).ravel().astype(int)
    kernel = np.eye(len(places))[:, places].reshape(b, b, channels, -1)
    axes = Axis(height, height // b, b), Axis(width, width // b, b)
    op = gather(layer.call_float64, lambda y: correlate_adjoint(y, kernel, axes))
    return unrolled.add(replace(op, window=Window(kernel, axes)), [slot])


def _channel_padding(unrolled: Unrolled, slot: int, layer: ChannelPadding) -> int:
    """Zero channels behind those that there are."""
    channels = unrolled.shapes[slot][-1]
    return _over_channels(unrolled, slot, np.eye(channels, layer.channels), 0.0, 1.0)


def _orthonormal(unrolled: Unrolled, slot: int, layer: OrthonormalDense) -> int:
    kernel, shape = float64(layer.kernel), (None, *unrolled.shapes[slot])
    bias = float64(layer.bias) if layer.use_bias else 0.0
    return _over_channels(unrolled, slot, kernel, bias, layer.lipschitz_bound(shape))


def _shift(unrolled: Unrolled, slot: int, layer: SpatialShift | MaxMinShift) -> int:
    """Channel groups that move; the way back is the adjoint."""
    if isinstance(layer, MaxMinShift):
        slot = _max_min(unrolled, slot, layer)
    how = layer.padding, layer.fraction
    op = gather(
        lambda x: shift_float64(x, layer.reverse, *how),
        lambda y: shift_float64(y, not layer.reverse, *how),
    )
    return unrolled.add(op, [slot])


def _beta_abs(unrolled: Unrolled, slot: int, layer: BetaAbs) -> int:
    """x + relu(-2x) where the sign goes, x elsewhere."""
    shape = unrolled.shapes[slot]
    scale = np.zeros(shape)
    scale[..., : layer.count(shape[-1])] = -2.0
    twice = unrolled.add(diagonal(scale, scale.__mul__, 2.0), [slot])
    return unrolled.add(Sum((1.0, 1.0)), [slot, unrolled.rectify(twice, 0.0)], (slot, 1.0 + 1e-12))


def _scaled_average(unrolled: Unrolled, slot: int, layer: ScaledAveragePooling2D) -> int:
    p, shape = layer.pool_size, unrolled.shapes[slot]
    blocks = [np.kron(np.eye(n // p), np.full((1, p), p**-0.5)) for n in shape[:2]]
    kernel = np.full((p, p, 1, shape[2]), 1.0 / p)
    axes = Axis(shape[0], shape[0] // p, p), Axis(shape[1], shape[1] // p, p)
    op = mix(
        layer.call_float64,
        lambda y: along_axes(y, [block.T for block in blocks]),
        1.0,
        np.ones(shape[2]),
        Window(kernel, axes, shape[2]),
    )
    return unrolled.add(op, [slot])


# --- flows ---------------------------------------------------------------------------------


def _field(
    unrolled: Unrolled, slot: int, layer: Any, kernel: np.ndarray, bias: Any, activation: Any
) -> tuple[int, float]:
    """Slot of rho(Ay + b), and the operator's norm."""
    shape, operator = unrolled.shapes[slot], layer.operator
    # A user's object may have a name of ours.
    ours = activation.name in activations.names()
    ours = ours and activations.get(activation.name) is activation
    curve = named_curve(activation.name, activation.reference)
    bent = activation.name not in _SLOPES
    if not ours or (bent and (curve is None or not unrolled.curves)):
        raise _unknown(layer, f"its activation {activation.name!r} is not piecewise linear")
    norm = operator.norm_float64(kernel, (None, *shape))
    op = mix(
        lambda x: operator.apply_float64(x, kernel) + bias,
        lambda y: operator.adjoint_float64(y, kernel),
        norm,
        _row_norms(layer, kernel, shape, -1, norm),
    )
    inner = unrolled.add(op, [slot])
    if activation.name in _SLOPES:
        return unrolled.rectify(inner, _SLOPES[activation.name]), norm
    assert curve is not None
    return unrolled.add(curve, [inner]), norm


def _row_norms(layer: Any, kernel: np.ndarray, shape: Shape, axis: int, norm: float) -> np.ndarray:
    """Norms of the rows of A (axis -1) or of its adjoint (axis -2), as upper bounds."""
    operator = layer.operator
    wraps = isinstance(operator, Conv) and operator.padding == "circular"
    if wraps and min(shape[:2]) < operator.kernel_size:
        return np.full(kernel.shape[axis], norm)
    axes = tuple(a for a in range(kernel.ndim) if a != kernel.ndim + axis)
    return np.sqrt(np.sum(kernel**2, axis=axes))


def _gradient(
    unrolled: Unrolled, slot: int, layer: Any, kernel: np.ndarray, bias: Any, activation: Any
) -> tuple[int, float]:
    """Slot of A^T rho(Ay + b), and the operator's norm."""
    inner, norm = _field(unrolled, slot, layer, kernel, bias, activation)
    shape, operator = unrolled.shapes[slot], layer.operator
    back = mix(
        lambda x: operator.adjoint_float64(x, kernel),
        lambda y: operator.apply_float64(y, kernel),
        norm,
        _row_norms(layer, kernel, shape, -2, norm),
    )
    return unrolled.add(back, [inner]), norm


def _gradient_step(
    unrolled: Unrolled,
    slot: int,
    layer: Any,
    kernel: np.ndarray,
    bias: Any,
    activation: Any,
    scale: float,
) -> int:
    """y + c A^T rho(Ay + b)."""
    outer, norm = _gradient(unrolled, slot, layer, kernel, bias, activation)
    gain = 1.0 + scale * norm**2
    if scale < 0:
        # Without what is known of the smallest singular value: 1 instead of 1 - h a s_min^2.
        gain = contractive_factor(-scale, norm, 0.0, activation.slope_min, activation.slope_max)
    return unrolled.add(Sum((1.0, scale)), [slot, outer], (slot, gain * (1 + 1e-12)))


def _gradient_flow(unrolled: Unrolled, slot: int, layer: GradientFlow) -> int:
    if layer.integrator != "euler":
        raise _unknown(layer, f"its integrator is {layer.integrator!r}, not 'euler'")
    sign = -1.0 if layer.direction == "contractive" else 1.0
    for i, h in enumerate(layer.step_sizes()):
        j = 0 if layer.shared else i
        bias = float64(layer.biases[j]) if layer.use_bias else 0.0
        kernel = float64(layer.kernels[j])
        slot = _gradient_step(unrolled, slot, layer, kernel, bias, layer._activation, sign * h)
    return slot


def _implicit_gradient_flow(unrolled: Unrolled, slot: int, layer: ImplicitGradientFlow) -> int:
    """Every iteration is written out: z + t (x - z) - t h A^T rho(Az + b)."""
    bounds = implicit_step_bounds(layer, (None, *unrolled.shapes[slot]))
    for i, (h, bound) in enumerate(zip(layer.step_sizes(), bounds, strict=True)):
        j = 0 if layer.shared else i
        bias = float64(layer.biases[j]) if layer.use_bias else 0.0
        kernel = float64(layer.kernels[j])
        share, z = layer._method.share(h, layer.curvature), slot
        for k in range(layer.iterations):
            outer, _ = _gradient(unrolled, z, layer, kernel, bias, layer._activation)
            last = k == layer.iterations - 1
            cap = (slot, bound * (1 + 1e-12)) if last else None
            z = unrolled.add(Sum((1.0 - share, share, -share * h)), [z, slot, outer], cap)
        slot = z
    return slot


def _switching_flow(unrolled: Unrolled, slot: int, layer: SwitchingFlow) -> int:
    source = slot
    for i, (h, e) in enumerate(layer._substeps_float64()):
        (kernel, wide), (bias, shift) = layer._kernels(i, float64), layer._biases(i, float64, 0.0)

        def contract(
            slot: int, kernel: np.ndarray = kernel, bias: Any = bias, h: float = float(h)
        ) -> int:
            return _gradient_step(unrolled, slot, layer, kernel, bias, layer._activation, -h)

        def expand(
            slot: int, kernel: np.ndarray = wide, bias: Any = shift, e: float = float(e)
        ) -> int:
            sigma = layer._expansion_activation
            if layer.expansion != "generic":
                return _gradient_step(unrolled, slot, layer, kernel, bias, sigma, e)
            inner, norm = _field(unrolled, slot, layer, kernel, bias, sigma)
            return unrolled.add(Sum((1.0, e)), [slot, inner], (slot, 1.0 + abs(e) * norm))

        flexible = layer.mode == "flexible"
        for _ in range(layer.substeps):
            slot = contract(slot if flexible else expand(slot))
        slot = expand(slot) if flexible else slot
    # The layer knows its smallest singular values, which the single steps above leave out.
    gain = layer.lipschitz_bound((None, *unrolled.shapes[source]))
    return unrolled.add(Sum((1.0,)), [slot], (source, gain))


_ACTIVATION_LAYERS = (kl.ReLU, kl.LeakyReLU, kl.ELU)
_LAYERS: dict[type, Callable[[Unrolled, int, Any], int]] = {
    kl.Dense: _dense,
    UnitRowDense: _unit_rows,
    **dict.fromkeys((kl.Conv1D, kl.Conv2D, kl.DepthwiseConv1D, kl.DepthwiseConv2D), _conv),
    **dict.fromkeys((kl.Conv1DTranspose, kl.Conv2DTranspose), _transposed),
    kl.PReLU: _prelu,
    MaxMin: _max_min,
    kl.ReLU: _relu,
    kl.LeakyReLU: _relu,
    kl.ELU: _elu,
    kl.Activation: _activated,
    kl.Normalization: _entrywise,
    kl.BatchNormalization: _entrywise,
    kl.Rescaling: _entrywise,
    LearnedScale: _entrywise,
    MeanShift: _entrywise,
    PositionOffset: _entrywise,
    SpaceToDepth: _space_to_depth,
    ChannelPadding: _channel_padding,
    OrthonormalDense: _orthonormal,
    OrthonormalPointwise: _orthonormal,
    SpatialShift: _shift,
    MaxMinShift: _shift,
    BetaAbs: _beta_abs,
    ScaledAveragePooling2D: _scaled_average,
    kl.Flatten: _reshape,
    kl.Reshape: _reshape,
    kl.Permute: _permute,
    **dict.fromkeys((kl.ZeroPadding1D, kl.ZeroPadding2D, kl.Cropping1D, kl.Cropping2D), _padding),
    **dict.fromkeys((kl.AveragePooling1D, kl.AveragePooling2D), _average),
    **dict.fromkeys((kl.GlobalAveragePooling1D, kl.GlobalAveragePooling2D), _global_average),
    **dict.fromkeys((kl.MaxPooling1D, kl.MaxPooling2D), _maximum),
    **dict.fromkeys((kl.GlobalMaxPooling1D, kl.GlobalMaxPooling2D), _global_maximum),
    GradientFlow: _gradient_flow,
    ImplicitGradientFlow: _implicit_gradient_flow,
    SwitchingFlow: _switching_flow,
}
