"""How each supported layer is written as affine maps, sums and rectifiers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dynzoo import spectral
from dynzoo.certificates.graph import Program
from dynzoo.certificates.local.operations import add_operation
from dynzoo.certificates.local.ops import Affine, Sum, Unrolled, dense, diagonal, gather, mix
from dynzoo.certificates.operations import TensorCall, class_name
from dynzoo.certificates.rules import conv as conv_rules
from dynzoo.certificates.rules import linear, window
from dynzoo.certificates.rules.linear import float64
from dynzoo.certificates.rules.table import is_identity, rule_for
from dynzoo.conv_norms import correlate_adjoint
from dynzoo.fields.gradient import contractive_factor
from dynzoo.layers.gradient_flow import GradientFlow
from dynzoo.layers.heads import UnitRowDense
from dynzoo.layers.learned_scale import LearnedScale
from dynzoo.layers.switching_flow import SwitchingFlow
from dynzoo.operators import Conv

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


def unroll(program: Program) -> Unrolled:
    """The nodes of a model; the last one makes the logits.

    Raises:
        ValueError: at a layer that local bounds do not know, naming it.
    """
    unrolled, slots = Unrolled([program.input_shape]), {0: 0}
    for step in program.steps:
        layer, inputs = step.layer, [slots[i] for i in step.inputs]
        if isinstance(layer, TensorCall):
            try:
                slots[step.output] = add_operation(unrolled, inputs, layer)
            except NotImplementedError:
                raise _unknown(
                    layer, "the operation, as it is called, is not one of those"
                ) from None
        elif is_identity(layer):
            slots[step.output] = inputs[0]
        elif type(layer) in (kl.Add, kl.Subtract) and len(
            {unrolled.shapes[i] for i in inputs}
        ) == 1:  # fmt: skip
            sign = 1.0 if type(layer) is kl.Add else -1.0
            weights = (1.0, *(sign,) * (len(inputs) - 1))
            slots[step.output] = unrolled.add(Sum(weights), inputs)
        elif type(layer) in _LAYERS:
            slots[step.output] = _LAYERS[type(layer)](unrolled, inputs[0], layer)
        else:
            raise _unknown(layer, "the class is not one of those")
    if slots[program.output] != len(unrolled.shapes) - 1:
        # An identity or unused steps at the end: the logits must be the last slot.
        unrolled.add(Sum((1.0,)), [slots[program.output]])
    return unrolled


def _unknown(layer: Any, reason: str) -> ValueError:
    names = sorted({cls.__name__ for cls in _LAYERS} | {"Add", "Subtract"})
    return ValueError(
        f"Layer '{layer.name}' of class `{class_name(layer)}` has no local bound: {reason}. "
        f"Local bounds know {', '.join(names)} with piecewise linear activations, and sums, "
        "multiples by constants, slices, new orders and ReLU as bare operations; "
        "`dynzoo.certify(model)` gives the global bound."
    )


def _activated(unrolled: Unrolled, slot: int, layer: Any) -> int:
    activation = layer.activation
    if isinstance(activation, kl.Layer) and type(activation) in (kl.ReLU, kl.LeakyReLU):
        return _relu(unrolled, slot, activation)
    if not (activation is None or callable(activation)) or activation not in _FUNCTIONS:
        raise _unknown(layer, "its activation is not piecewise linear with slopes in [0, 1]")
    return unrolled.rectify(slot, _FUNCTIONS[activation])


# --- standard layers -----------------------------------------------------------------------


def _dense(unrolled: Unrolled, slot: int, layer: Any) -> int:
    kernel = float64(layer.kernel)
    bias = float64(layer.bias) if layer.use_bias else 0.0
    slot = unrolled.add(dense(kernel, bias, linear.dense_gain(layer, ())), [slot])
    return _activated(unrolled, slot, layer)


def _unit_rows(unrolled: Unrolled, slot: int, layer: Any) -> int:
    kernel = layer.effective_kernel()
    bias = float64(layer.bias) if layer.use_bias else 0.0
    return unrolled.add(dense(kernel, bias, spectral.dense_norm_float64(kernel)), [slot])


def _conv(unrolled: Unrolled, slot: int, layer: Any) -> int:
    shape = unrolled.shapes[slot]
    plain = layer.groups == 1 and tuple(layer.dilation_rate) == (1, 1)
    if not plain or layer.data_format != "channels_last":
        raise _unknown(layer, "only groups=1, dilation_rate=1 and channels_last are supported")
    kernel, axes = float64(layer.kernel), conv_rules.conv_axes(layer, (None, *shape))
    gain = conv_rules.gain(layer, (None, *shape))

    def adjoint(y: np.ndarray) -> np.ndarray:
        return correlate_adjoint(y, kernel, axes)

    filters = np.sqrt(np.sum(kernel**2, axis=(0, 1, 2)))
    op = mix(lambda x: conv_rules.forward(layer, x), adjoint, gain, filters)
    return _activated(unrolled, unrolled.add(op, [slot]), layer)


def _relu(unrolled: Unrolled, slot: int, layer: Any) -> int:
    slope = float(layer.negative_slope)
    limited = getattr(layer, "max_value", None) is not None or getattr(layer, "threshold", 0) != 0
    if limited or not 0 <= slope <= 1:
        raise _unknown(layer, "only slopes in [0, 1] without threshold and maximum are supported")
    return unrolled.rectify(slot, slope)


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


def _average(unrolled: Unrolled, slot: int, layer: Any) -> int:
    if layer.data_format != "channels_last":
        raise _unknown(layer, "only data_format='channels_last' is supported")
    shape = unrolled.shapes[slot]
    gain = window.average_pooling_gain(layer, (None, *shape))
    rows, columns = window._averages(layer, (shape[0], shape[1]))

    def along(x: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.einsum("ih,jw,nhwc->nijc", left, right, x, optimize=True)

    norms = np.linalg.norm(rows, axis=1)[:, None, None] * np.linalg.norm(columns, axis=1)[:, None]
    op = mix(lambda x: along(x, rows, columns), lambda y: along(y, rows.T, columns.T), gain, norms)
    return unrolled.add(op, [slot])


def _maximum(unrolled: Unrolled, slot: int, layer: Any) -> int:
    """Maximum over disjoint windows: along the rows, then along the columns."""
    size = unrolled.shapes[slot][:2]
    disjoint = tuple(layer.pool_size) == tuple(layer.strides)
    whole = all(n % p == 0 for n, p in zip(size, layer.pool_size, strict=True))
    if not (disjoint and whole) or layer.data_format != "channels_last":
        raise _unknown(layer, "only windows that tile channels_last images are supported")
    source = slot
    for axis, pool in enumerate(layer.pool_size, start=1):
        parts = [unrolled.add(_every(unrolled.shapes[slot], axis, pool, k), [slot])
                 for k in range(pool)]  # fmt: skip
        slot = parts[0]
        for part in parts[1:]:
            lead = unrolled.add(Sum((1.0, -1.0)), [slot, part], (source, math.sqrt(2.0)))
            excess = unrolled.rectify(lead, 0.0)
            slot = unrolled.add(Sum((1.0, 1.0)), [part, excess], (source, 1.0))
    return slot


def _every(shape: Shape, axis: int, step: int, first: int) -> Affine:
    """Each `step`-th row or column from the first on."""
    index = (slice(None),) * axis + (slice(first, None, step),)

    def adjoint(y: np.ndarray) -> np.ndarray:
        x = np.zeros((len(y), *shape))
        x[index] = y
        return x

    return gather(lambda x: x[index], adjoint)


# --- flows ---------------------------------------------------------------------------------


def _field(
    unrolled: Unrolled, slot: int, layer: Any, kernel: np.ndarray, bias: Any, activation: Any
) -> tuple[int, float]:
    """Slot of rho(Ay + b), and the operator's norm."""
    shape, operator = unrolled.shapes[slot], layer.operator
    if activation.name not in _SLOPES:
        raise _unknown(layer, f"its activation {activation.name!r} is not piecewise linear")
    norm = operator.norm_float64(kernel, (None, *shape))
    op = mix(
        lambda x: operator.apply_float64(x, kernel) + bias,
        lambda y: operator.adjoint_float64(y, kernel),
        norm,
        _row_norms(layer, kernel, shape, -1, norm),
    )
    return unrolled.rectify(unrolled.add(op, [slot]), _SLOPES[activation.name]), norm


def _row_norms(layer: Any, kernel: np.ndarray, shape: Shape, axis: int, norm: float) -> np.ndarray:
    """Norms of the rows of A (axis -1) or of its adjoint (axis -2), as upper bounds."""
    operator = layer.operator
    wraps = isinstance(operator, Conv) and operator.padding == "circular"
    if wraps and min(shape[:2]) < operator.kernel_size:
        return np.full(kernel.shape[axis], norm)
    axes = tuple(a for a in range(kernel.ndim) if a != kernel.ndim + axis)
    return np.sqrt(np.sum(kernel**2, axis=axes))


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
    inner, norm = _field(unrolled, slot, layer, kernel, bias, activation)
    shape, operator = unrolled.shapes[slot], layer.operator
    back = mix(
        lambda x: operator.adjoint_float64(x, kernel),
        lambda y: operator.apply_float64(y, kernel),
        norm,
        _row_norms(layer, kernel, shape, -2, norm),
    )
    outer = unrolled.add(back, [inner])
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


_LAYERS: dict[type, Callable[[Unrolled, int, Any], int]] = {
    kl.Dense: _dense,
    UnitRowDense: _unit_rows,
    kl.Conv2D: _conv,
    kl.ReLU: _relu,
    kl.LeakyReLU: _relu,
    kl.Activation: _activated,
    kl.Normalization: _entrywise,
    kl.BatchNormalization: _entrywise,
    kl.Rescaling: _entrywise,
    LearnedScale: _entrywise,
    kl.Flatten: _reshape,
    kl.Reshape: _reshape,
    kl.AveragePooling2D: _average,
    kl.MaxPooling2D: _maximum,
    GradientFlow: _gradient_flow,
    SwitchingFlow: _switching_flow,
}
