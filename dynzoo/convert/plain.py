"""`to_plain`: a model of constrained layers as one of Keras' own layers, with the same function.

What a constraint or a parametrization made of the weights stands in the kernels of the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dynzoo import backend, operators
from dynzoo import layers as dl
from dynzoo.certificates.operations import TensorCall
from dynzoo.certificates.rules.linear import float64
from dynzoo.certificates.rules.table import is_identity
from dynzoo.convert.builder import Builder, full_precision
from dynzoo.convert.comparison import check
from dynzoo.operators.shift import _MOVES as MOVES
from dynzoo.operators.shift import _sizes as shift_sizes

__all__ = ["PLAIN", "to_plain"]

kl = keras.layers


def to_plain(model: keras.Model) -> keras.Model:
    """The same function of images at inference, in Keras' own layers.

    Orthonormal and norm-constrained layers become Dense and Conv2D, each Euler step of a gradient
    or switching flow two of them and a sum, isometries reshapes, padding and slices. Constraints
    are gone: the result may be trained as any network, but then nothing bounds it. Dropout and
    other identities are gone, too. A layer without such a form, as the other flows, stays one of
    dynzoo's.

    ``dynzoo.certify`` proves the same constant for it as long as the layers are single maps. Of
    a flow it no longer knows that its two summands belong together: each step then counts 1 +
    h |A|^2 in place of 1. The certificate of ``model`` remains that of this function.

    Args:
        model: built Sequential or Functional model from one input of fixed shape to logits (n, K).

    Returns:
        A functional model with weights of its own.

    Raises:
        ConversionError: if its logits are not those of ``model`` to 1e-5 of the largest.
        ValueError: if the model's graph cannot be read, as that of a subclassed model, or runs in
            mixed precision.

    Example:

    >>> import dynzoo, keras
    >>> layers = [keras.Input((4,)), dynzoo.layers.UnitRowDense(3)]
    >>> plain = dynzoo.convert.to_plain(keras.Sequential(layers))
    >>> type(plain.layers[-1]).__name__
    'Dense'
    """
    program = full_precision(model)
    values: dict[int, Any] = {0: keras.Input(program.input_shape, name="images")}
    build = Builder()
    for step in program.steps:
        inputs = [values[slot] for slot in step.inputs]
        build.name = re.sub(r"\W+", "_", step.name)
        if isinstance(step.layer, TensorCall):
            values[step.output] = step.layer.replay(inputs, build.fresh())
        elif is_identity(step.layer):
            values[step.output] = inputs[0]
        else:
            # A subclass may compute something else, so only the very class counts.
            form = PLAIN.get(type(step.layer))
            y = form(build, step.layer, inputs[0]) if form else None
            values[step.output] = build.copy(step.layer, inputs) if y is None else y
    plain = keras.Model(values[0], values[program.output], name=f"{model.name}_plain")
    check(plain, lambda x: backend.to_numpy(model(x, training=False)), model.name, "Model")
    return plain


# --- the forms -------------------------------------------------------------------------------


def _orthonormal(build: Builder, layer: Any, x: Any) -> Any:
    return build.matrix(x, float64(layer.kernel), float64(layer.bias) if layer.use_bias else None)


def _unit_rows(build: Builder, layer: Any, x: Any) -> Any:
    bias = float64(layer.bias) if layer.use_bias else None
    return build.matrix(x, layer.effective_kernel(), bias)


def _mean_shift(build: Builder, layer: Any, x: Any) -> Any:
    return build.layer(kl.Rescaling, x, scale=1.0, offset=[-m for m in layer.mean])


def _learned_scale(build: Builder, layer: Any, x: Any) -> Any:
    return build.layer(kl.Rescaling, x, scale=float(float64(layer.scale)))


def _scaled_average(build: Builder, layer: Any, x: Any) -> Any:
    p = layer.pool_size
    x = build.layer(kl.AveragePooling2D, x, pool_size=p, data_format="channels_last")
    return build.layer(kl.Rescaling, x, scale=float(p))


def _position_offset(build: Builder, layer: Any, x: Any) -> Any:
    """As the shift of a batch normalisation of vectors, whose offsets are weights."""
    shape = tuple(x.shape[1:])
    offset = float64(layer.offset).ravel()
    y = build.layer(kl.Flatten, x)
    y = build.layer(
        kl.BatchNormalization,
        y,
        [offset, np.zeros_like(offset), np.ones_like(offset)],
        scale=False,
        epsilon=0.0,
    )
    return build.layer(kl.Reshape, y, target_shape=shape)


def _space_to_depth(build: Builder, layer: Any, x: Any) -> Any:
    b = layer.block_size
    height, width, channels = x.shape[1] // b, x.shape[2] // b, x.shape[3]
    x = build.layer(kl.Reshape, x, target_shape=(height, b, width, b, channels))
    x = build.layer(kl.Permute, x, dims=(1, 3, 2, 4, 5))
    return build.layer(kl.Reshape, x, target_shape=(height, width, b * b * channels))


def _channel_padding(build: Builder, layer: Any, x: Any) -> Any:
    *inner, channels = x.shape[1:]
    more = layer.channels - channels
    if more == 0:
        return x
    places = int(np.prod(inner)) if inner else 1
    y = build.layer(kl.Reshape, x, target_shape=(places, channels, 1))
    y = build.layer(kl.ZeroPadding2D, y, padding=((0, 0), (0, more)), data_format="channels_last")
    return build.layer(kl.Reshape, y, target_shape=(*inner, layer.channels))


def _max_min(build: Builder, layer: Any, x: Any) -> Any:
    """The larger of each pair, then the smaller."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    large = build.layer(kl.Maximum, [a, b])
    small = build.layer(kl.Minimum, [a, b])
    return build.layer(kl.Concatenate, [large, small], axis=-1)


def _spatial_shift(build: Builder, layer: Any, x: Any) -> Any:
    return _shifted(build, x, layer.reverse, layer.padding, layer.fraction)


def _max_min_shift(build: Builder, layer: Any, x: Any) -> Any:
    return _spatial_shift(build, layer, _max_min(build, layer, x))


def _shifted(build: Builder, x: Any, reverse: bool, padding: str, fraction: float) -> Any:
    """Four groups of channels by one pixel each, as slices that are joined again."""
    sizes = shift_sizes(x.shape[-1], fraction)
    if sizes[1] == 0:
        return x
    ends = np.cumsum(sizes).tolist()
    parts = [x[..., : ends[0]]] if ends[0] else []
    for start, end, (axis, sign) in zip(ends, ends[1:], MOVES, strict=False):
        group = x[..., start:end]
        first = (sign > 0) != reverse  # whether something comes in before the first row
        key: list[Any] = [slice(None)] * 4
        key[axis] = slice(None, -1) if first else slice(1, None)
        body = group[tuple(key)]
        if padding == "circular":
            key[axis] = slice(-1, None) if first else slice(None, 1)
            edge = group[tuple(key)]
            joined = [edge, body] if first else [body, edge]
            parts.append(build.layer(kl.Concatenate, joined, axis=axis))
            continue
        pads = [(0, 0), (0, 0)]
        pads[axis - 1] = (1, 0) if first else (0, 1)
        parts.append(
            build.layer(kl.ZeroPadding2D, body, padding=tuple(pads), data_format="channels_last")
        )
    return build.layer(kl.Concatenate, parts, axis=-1)


class _Operator:
    """A linear operator of a flow, and its adjoint, in Keras' layers."""

    def __init__(self, build: Builder, operator: Any):
        self._build = build
        self._operator = operator

    @staticmethod
    def has_form(operator: Any) -> bool:
        """Whether there are such layers."""
        if type(operator) is operators.Conv:
            return operator.padding == "zero"
        return type(operator) in (
            operators.Dense,
            operators.Pointwise,
            operators.ShiftedPointwise,
        )

    def apply(self, x: Any, kernel: np.ndarray, bias: Any) -> Any:
        """A x + b."""
        operator = self._operator
        bias = bias if np.ndim(bias) else None
        if type(operator) is operators.Conv:
            size = len(kernel)
            return self._build.conv(x, kernel, bias, (size - 1) // 2, size // 2)
        if type(operator) is operators.ShiftedPointwise:
            x = _shifted(self._build, x, False, operator.padding, operator.fraction)
        return self._build.matrix(x, kernel, bias)

    def adjoint(self, y: Any, kernel: np.ndarray) -> Any:
        """A^T y."""
        operator = self._operator
        if type(operator) is operators.Conv:
            size = len(kernel)
            flipped = np.swapaxes(np.flip(kernel, (0, 1)), 2, 3)
            return self._build.conv(y, flipped, None, size // 2, (size - 1) // 2)
        x = self._build.matrix(y, kernel.T)
        if type(operator) is operators.ShiftedPointwise:
            return _shifted(self._build, x, True, operator.padding, operator.fraction)
        return x

    def step(self, x: Any, kernel: np.ndarray, bias: Any, activation: str, scale: float) -> Any:
        """x + c A^T rho(Ax + b)."""
        inner = self._build.activation(self.apply(x, kernel, bias), activation)
        return self._build.layer(kl.Add, [x, self.adjoint(inner, scale * kernel)])


def _gradient_flow(build: Builder, layer: Any, x: Any) -> Any:
    if layer.integrator != "euler" or not _has_form(layer, x):
        return None
    operator = _Operator(build, layer.operator)
    sign = -1.0 if layer.direction == "contractive" else 1.0
    for i, h in enumerate(layer.step_sizes()):
        j = 0 if layer.shared else i
        bias = float64(layer.biases[j]) if layer.use_bias else None
        kernel = float64(layer.kernels[j])
        x = operator.step(x, kernel, bias, layer.activation, sign * h)
    return x


def _has_form(layer: Any, x: Any) -> bool:
    return _Operator.has_form(layer.operator) and len(x.shape) in (2, 4)


def _switching_flow(build: Builder, layer: Any, x: Any) -> Any:
    if not _has_form(layer, x):
        return None
    operator = _Operator(build, layer.operator)
    expanding = layer._expansion_activation.name
    for i, (h, e) in enumerate(layer._substeps_float64()):
        (kernel, wide), (bias, shift) = layer._kernels(i, float64), layer._biases(i, float64, 0.0)

        def contract(x, kernel=kernel, bias=bias, h=float(h)):
            return operator.step(x, kernel, bias, layer._activation.name, -h)

        def expand(x, kernel=wide, bias=shift, e=float(e)):
            if layer.expansion != "generic":
                return operator.step(x, kernel, bias, expanding, e)
            y = build.activation(operator.apply(x, kernel, bias), expanding)
            return build.layer(kl.Add, [x, build.layer(kl.Rescaling, y, scale=e)])

        flexible = layer.mode == "flexible"
        for _ in range(layer.substeps):
            x = contract(x if flexible else expand(x))
        x = expand(x) if flexible else x
    return x


# Layer -> its form; None where this one has none.
PLAIN: dict[type, Callable[[Builder, Any, Any], Any]] = {
    dl.OrthonormalDense: _orthonormal,
    dl.OrthonormalPointwise: _orthonormal,
    dl.UnitRowDense: _unit_rows,
    dl.MeanShift: _mean_shift,
    dl.LearnedScale: _learned_scale,
    dl.ScaledAveragePooling2D: _scaled_average,
    dl.PositionOffset: _position_offset,
    dl.SpaceToDepth: _space_to_depth,
    dl.ChannelPadding: _channel_padding,
    dl.MaxMin: _max_min,
    dl.SpatialShift: _spatial_shift,
    dl.MaxMinShift: _max_min_shift,
    dl.GradientFlow: _gradient_flow,
    dl.SwitchingFlow: _switching_flow,
}
