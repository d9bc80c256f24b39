"""What rounding adds in dynzoo's own layers; see ``rounding_rules``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from dynzoo import layers as dl
from dynzoo import operators
from dynzoo.activations import ACTIVATIONS
from dynzoo.certificates.rounding.floating_point import DEVIATION_UNITS, Budget, few_roundings
from dynzoo.certificates.rounding.rules import ROUNDING, Sizes, biased, exact, function_rounding
from dynzoo.certificates.rounding.rules import matrix_product as product
from dynzoo.certificates.rules.linear import float64, refuse
from dynzoo.layers.gradient_flow import step_bounds
from dynzoo.layers.implicit_gradient_flow import implicit_step_bounds
from dynzoo.layers.softmax_gradient_flow import softmax_step_bounds
from dynzoo.layers.switching_flow import alternate, substep_sizes, switching_bound

__all__ = ["ROUNDING"]


# --- plain maps ----------------------------------------------------------------------------


def _orthonormal(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    positions = math.prod(shape[:-1])
    y = product(b, float64(layer.kernel), positions, norm=gain)
    return biased(y, layer.bias if layer.use_bias else None, positions)


def _unit_rows(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    kernel = layer.effective_kernel()
    y = product(b, kernel, norm=gain)
    # Weights that may be read as zero, or whose reciprocal may, leave a row of another direction.
    columns = np.linalg.norm(float64(layer.kernel), axis=0)
    lengths = columns[columns > 0]
    lost = 2 * b.arithmetic.tiny * math.sqrt(len(kernel)) / float(np.min(lengths, initial=1.0))
    if lost > 0.5 or float(np.max(lengths, initial=0.0)) * b.arithmetic.tiny > 0.5:
        raise refuse(layer, "its weights are so small or large that float32 cannot scale them.")
    y = y.disturbed(2 * lost * math.sqrt(kernel.shape[1]) * b.computed)
    # The length of a row is computed, too: n squares, whose sum errs by n u at most (by
    # sqrt(n / 3) of independent roundings), a root, which halves that, and a few more.
    times, independent = len(kernel) / 2 + 8.0, math.sqrt(len(kernel) / 3) / 2 + math.sqrt(8.0)
    y = y.disturbed(times * b.arithmetic.unit * y.computed, DEVIATION_UNITS * independent / times)
    return biased(y, layer.bias if layer.use_bias else None, 1)


def _mean_shift(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    offset = math.sqrt(math.prod(shape[:-1])) * float(np.linalg.norm(layer.mean))
    return b.mapped(1.0, offset).rounded()


def _resize(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    rows, columns = layer.matrices()
    _, width, channels = shape
    y = product(b, rows.T, width * channels)
    return product(y, columns.T, layer.height * channels)


def _position_offset(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    return b.mapped(1.0, float(np.linalg.norm(float64(layer.offset)))).rounded()


def _max_min(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    # a + relu(b - a): a rounding of b - a, at most sqrt(2) |x| in norm and counted twice, and one
    # of the result.
    return b.rounded(3.0)


def _scaled_average(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    return b.product(layer.pool_size**2 + 1, 1.0, coherent=True)


def _norm_pooling(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    down, across = layer.block(*shape[:2])
    terms, outputs = down * across, math.prod(shape) // (down * across)
    y = b.mapped(1.0, layer.epsilon * math.sqrt(outputs))
    # The sum of n squares and epsilon's errs by n + 1 units at most and its root by half of that,
    # all one way on a constant image; a few more for the root itself.
    times = (terms + 1) / 2 + 4.0
    growth = math.exp(min(700.0, 2 * times * b.arithmetic.unit)) * b.arithmetic.unit
    local = times * growth * y.computed
    # Squares that underflow, under a root whose slope is at most 1 / (2 epsilon).
    local[0] += terms * b.arithmetic.tiny * math.sqrt(outputs) / layer.epsilon
    return y.disturbed(local)


def _learned_scale(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    return b.mapped(abs(float(float64(layer.scale)))).rounded()


# --- gradient flows ------------------------------------------------------------------------

_OPERATORS = (
    operators.Dense,
    operators.Pointwise,
    operators.ShiftedPointwise,
    operators.Conv,
)


def _operator_product(
    b: Budget, operator: Any, kernel: np.ndarray, norm: float, adjoint: bool
) -> Budget:
    """A x, or its adjoint; ``ShiftedPointwise`` moves pixels besides, which rounds nothing."""
    taps = math.prod(kernel.shape[:-2])
    if adjoint:
        kernel = np.moveaxis(kernel, -1, -2)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    # One tap is the whole operator; of several a part may have a larger norm than the sum.
    return product(b, matrix, windows=taps, norm=norm if taps == 1 else None)


class _Field:
    """h A^T sigma(A x + b) of a budget.

    Args:
        layer: a flow with an ``operator``.
        activation: the ``MonotoneActivation``.
        kernel: float64 kernel of A.
        bias: float64 bias, or None.
        step: h.
        shape: of one example.
        step_roundings: how often h, times the kernel, is rounded.
        norm: of A, where it is known.
    """

    def __init__(
        self,
        layer: Any,
        activation: Any,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        step: float,
        shape: tuple[int, ...],
        step_roundings: float,
        norm: float | None = None,
    ) -> None:
        if type(layer.operator) not in _OPERATORS:
            raise KeyError(type(layer.operator))
        if not any(activation is known for known in ACTIVATIONS.values()):
            raise KeyError(activation.name)  # somebody's own, of whose rounding nothing is known
        self.operator, self.activation, self.kernel = layer.operator, activation, kernel
        if norm is None:
            norm = layer.operator.norm_float64(kernel, (None, *shape))
        self.norm = norm
        self.positions, self.step = math.prod(shape[:-1]), abs(step)
        self.bias = 0.0 if bias is None else float(np.linalg.norm(bias))
        self.has_bias = bias is not None
        self.inner = (*shape[:-1], kernel.shape[-1])
        self.step_roundings = step_roundings
        name = activation.name
        self.function = "leaky_relu" if name == "half_leaky_relu" else name
        self.start = abs(float(activation.reference(np.zeros(1))[0]))

    def inside(self, x: Budget) -> Budget:
        """sigma(A x + b)."""
        y = _operator_product(x, self.operator, self.kernel, self.norm, False)
        if self.has_bias:
            y = y.mapped(1.0, self.bias * math.sqrt(self.positions)).rounded()
        slope = self.activation.slope_max
        return function_rounding(self.function, slope, self.inner, y, self.start)

    def __call__(self, x: Budget) -> Budget:
        y = _operator_product(self.inside(x), self.operator, self.kernel, self.norm, True)
        y = y.mapped(self.step)
        return y.rounded(self.step_roundings) if self.step_roundings else y

    @property
    def at_zero(self) -> float:
        """Bound of the norm of the field at x = 0."""
        units = math.sqrt(self.positions) * (
            self.activation.slope_max * self.bias + self.start * math.sqrt(self.kernel.shape[-1])
        )
        return self.step * self.norm * units


def _advanced(state: Budget, stepped: Budget, bound: float, offset: float) -> Budget:
    """After a step: earlier errors and the size grow by its constant, not by that of its parts."""
    grown = state.mapped(bound, offset)
    together = np.add if few_roundings(stepped) else np.hypot
    total = together(grown.probable, stepped.probable)
    return Budget(
        grown.size,
        state.arithmetic,
        grown.worst + stepped.worst,
        total,
        np.maximum(grown.peak, stepped.peak),
        state.measured or stepped.measured,
    )


def _fresh(state: Budget) -> Budget:
    return Budget(state.computed, state.arithmetic, peak=state.peak)


def _gradient_flow(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    full, state = (None, *shape), b
    kernels = [float64(kernel) for kernel in layer.kernels]
    if type(layer.operator) not in _OPERATORS:
        raise KeyError(type(layer.operator))
    norms = [layer.operator.norm_float64(kernel, full) for kernel in kernels]
    bounds = step_bounds(layer, full, norms)
    for i, (h, bound) in enumerate(zip(layer.step_sizes(), bounds, strict=True)):
        j = 0 if layer.shared else i
        bias = float64(layer.biases[j]) if layer.use_bias else None
        learned = layer.step_size == "learned"
        roundings = 12.0 if learned else 0.0 if math.frexp(h)[0] == 0.5 else 2.0
        field = _Field(layer, layer._activation, kernels[j], bias, h, shape, roundings, norms[j])
        stepped = layer._integrator.step(field, _fresh(state), 1.0)
        # Stages of Runge-Kutta methods at zero are near the first one's, h |A|^2 apart at most.
        growth = 1.0
        if layer.integrator != "euler":
            growth = layer._integrator.growth_bound(h * field.norm**2)
        state = _advanced(state, stepped, bound, growth * field.at_zero)
    return state


def _implicit_gradient_flow(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    full, state, method = (None, *shape), b, layer._method
    kernels = [float64(kernel) for kernel in layer.kernels]
    if type(layer.operator) not in _OPERATORS:
        raise KeyError(type(layer.operator))
    norms = [layer.operator.norm_float64(kernel, full) for kernel in kernels]
    bounds = implicit_step_bounds(layer, full, norms)
    # h by a logistic function, its share t, and the product of both
    roundings = 16.0 if layer.step_size == "learned" else 2.0
    for i, (h, bound) in enumerate(zip(layer.step_sizes(), bounds, strict=True)):
        j = 0 if layer.shared else i
        bias = float64(layer.biases[j]) if layer.use_bias else None
        share = method.share(h, layer.curvature)
        field = _Field(
            layer, layer._activation, kernels[j], bias, share * h, shape, roundings, norms[j]
        )
        highest = layer._activation.slope_max * norms[j] ** 2
        factor = method.iteration_factor(h, layer.curvature, 0.0, highest)
        start, offset = _fresh(state), 0.0
        z = start
        for _ in range(method.iterations):
            now = _fresh(z)
            pulled = (start - now).mapped(share).rounded(roundings)
            stepped = now + pulled - field(now)
            # x is pulled at anew: t |x|, which comes to the factor's share of |z|
            z = _advanced(z, stepped, factor, field.at_zero)
            z.size = z.size + share * start.size
            offset = factor * offset + field.at_zero
        state = _advanced(state, z, bound, offset)
    return state


def _softmax_gradient_flow(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    state, positions = b, math.prod(shape[:-1])
    learned = layer.step_size == "learned"
    bounds = softmax_step_bounds(layer)
    for i, (h, bound) in enumerate(zip(layer.step_sizes(), bounds, strict=True)):
        j = 0 if layer.shared else i
        kernel = float64(layer.kernels[j])
        x = _fresh(state)
        scores = layer.beta * product(x, kernel, positions)
        scores = biased(scores, layer.biases[j] if layer.use_bias else None, positions)
        weights = function_rounding("softmax", 0.5, (*shape[:-1], kernel.shape[1]), scores)
        # they are positive and their sum is 1 at each position
        weights.size = 0.0 * weights.size
        weights.size[0] = math.sqrt(positions)
        weights = weights.mapped(h).rounded(12.0) if learned else h * weights
        stepped = x - product(weights, kernel.T, positions)
        # at zero as everywhere, a step is a mean of the keys long
        longest = float(np.max(np.linalg.norm(kernel, axis=0)))
        state = _advanced(state, stepped, bound, h * longest * math.sqrt(positions))
    return state


def _switching_flow(layer: Any, shape: Sizes, b: Budget, gain: float) -> Budget:
    state = b
    for i, (h, e) in enumerate(layer._substeps_float64()):
        kernels = layer._kernels(i, float64)
        biases = layer._biases(i, float64, None)
        # The step sizes follow a spectrum that the backend bounds in float32: no rule covers how
        # far off these are, so it is measured.
        tensors, expansion = layer._kernels(i, ops.convert_to_tensor)
        raws = layer._raws(i, ops.convert_to_tensor)
        computed = substep_sizes(layer, tensors, expansion, raws, ops)
        gaps = [
            4.0 * abs(float(ops.convert_to_numpy(c)) - float(x)) + 1e-6 * abs(float(x))
            for c, x in zip(computed, (h, e), strict=True)
        ]
        inward = _Field(layer, layer._activation, kernels[0], biases[0], 1.0, shape, 2.0)
        outward = _Field(layer, layer._expansion_activation, kernels[1], biases[1], 1.0, shape, 2.0)

        def contract(
            x: Budget, field: _Field = inward, h: float = float(h), gap: float = gaps[0]
        ) -> Budget:
            y = field(x)
            return y.mapped(abs(h)).disturbed(gap * y.computed)

        def expand(
            x: Budget, field: _Field = outward, e: float = float(e), gap: float = gaps[1]
        ) -> Budget:
            y = field.inside(x) if layer.expansion == "generic" else field(x)
            return y.mapped(abs(e)).rounded(2.0).disturbed(gap * y.computed)

        stepped = alternate(layer, _fresh(state), contract, expand)
        bound = switching_bound(layer, (None, *shape), h, e, *kernels)
        # At zero the state is what a step makes of it, bounded by the same walk from size 0.
        start = Budget(0.0 * state.size, state.arithmetic)
        offset = float(np.max(alternate(layer, start, contract, expand).size[0]))
        state = _advanced(state, stepped, bound, offset)
        state.measured = True
    return state


ROUNDING.update(
    {
        dl.OrthonormalDense: _orthonormal,
        dl.OrthonormalPointwise: _orthonormal,
        dl.UnitRowDense: _unit_rows,
        dl.MeanShift: _mean_shift,
        dl.PositionOffset: _position_offset,
        dl.Resize: _resize,
        dl.MaxMin: _max_min,
        dl.MaxMinShift: _max_min,
        dl.BetaAbs: exact,
        dl.SpatialShift: exact,
        dl.SpaceToDepth: exact,
        dl.ChannelPadding: exact,
        dl.ScaledAveragePooling2D: _scaled_average,
        dl.L2Pooling2D: _norm_pooling,
        dl.LearnedScale: _learned_scale,
        dl.GradientFlow: _gradient_flow,
        dl.ImplicitGradientFlow: _implicit_gradient_flow,
        dl.SoftmaxGradientFlow: _softmax_gradient_flow,
        dl.SwitchingFlow: _switching_flow,
    }
)
