"""From the raw weights of a ``SwitchingFlow`` to admissible step sizes, and back."""

from __future__ import annotations

import numpy as np

from dynzoo.fields import switching
from dynzoo.utils.arguments import array

__all__ = ["checked_range", "inverse_sizes", "substep_sizes"]


def checked_range(layer, step_range) -> tuple[float, float]:
    """The interval of the learned contraction as floats, that of the mode for ``None``.

    Raises:
        ValueError: if it is not an interval in (0, 2S].
    """
    limit = 2.0 * layer.substeps
    if step_range is None:
        step_range = switching.default_range(layer.mode, layer.bound, layer.substeps, layer.slope)
    ends = array("step_range", step_range).ravel().tolist()
    if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= limit:
        raise ValueError(
            f"`step_range` must be (low, high) with 0 < low <= high <= {limit:g}. "
            f"Received: step_range={step_range!r}"
        )
    return ends[0], ends[1]


def _spectrum(layer, kernel, xp):
    """(1 / upper bound of s_max^2, lower bound of the ratio s_min^2 / s_max^2)."""
    if layer.spectrum == "assumed":
        return 1.0, 1.0
    lower, upper = switching.singular_values_squared(layer.operator, kernel, xp)
    return 1.0 / upper, lower / upper


def substep_sizes(layer, kernel, expansion_kernel, raws, xp):
    """Contractive and (signed) expansive substep of one time step.

    Args:
        layer: a ``SwitchingFlow``, for its configuration.
        kernel: kernel of A.
        expansion_kernel: kernel of W, or that of A.
        raws: raw contraction (if learned) and raw expansion, real numbers.
        xp: ``keras.ops`` or ``numpy``.
    """
    unit, ratio = _spectrum(layer, kernel, xp)
    if layer.step_size == "learned":
        low, high = layer.step_range
        step = switching.interval(raws[0], low, high, xp) / layer.substeps
    else:
        step = layer.step_size / layer.substeps
    count = layer.substeps if layer.mode == "flexible" else 1
    limit = switching.expansion_limit(
        step, layer.slope, ratio, layer.bound, count, layer.max_expansion, xp
    )
    expansion_unit = unit
    if layer.expansion != "tied":
        expansion_unit, _ = _spectrum(layer, expansion_kernel, xp)
    if layer.mode == "prescribed":
        expansion = switching.interval(raws[-1], 0.0, limit, xp)
    elif layer.expansion == "generic":
        # Its Jacobian has no sign: backwards it may expand just as much.
        expansion = switching.signed_step(raws[-1], limit, limit, xp)
    else:
        expansion = switching.signed_step(raws[-1], 2.0, limit, xp)
    if layer.expansion == "generic":
        expansion_unit = expansion_unit**0.5
    return step * unit, expansion * expansion_unit


def inverse_sizes(layer, kernel, expansion_kernel, raws, contraction, expansion) -> list[float]:
    """The raw weights whose times come closest to these, with their sign (float64)."""
    raws = list(raws)

    def largest(raw):
        return substep_sizes(layer, kernel, expansion_kernel, [*raws[:-1], raw], np)[1]

    if layer.step_size == "learned":
        unit, _ = _spectrum(layer, kernel, np)
        low, high = layer.step_range
        share = (contraction / unit - low) / max(high - low, 1e-12)
        raws[0] = 2.0 * _inverse_tanh(2.0 * share - 1.0)
    step = expansion if layer.mode == "flexible" else expansion / layer.substeps
    if layer.mode == "prescribed":
        end = largest(np.float64(40.0))
        raws[-1] = 2.0 * _inverse_tanh(2.0 * step / end - 1.0) if end > 0 else 0.0
    else:
        end = largest(np.float64(40.0 if step > 0 else -40.0))
        raws[-1] = _inverse_tanh(step / end) if end else 0.0
        raws[-1] = float(np.copysign(raws[-1], step))
    return [float(raw) for raw in raws]


def _inverse_tanh(y) -> float:
    """The number whose tanh is y; values beyond +-1 give one where float32 has reached it."""
    return float(np.clip(np.arctanh(np.clip(y, -1 + 1e-12, 1 - 1e-12)), -10.0, 10.0))
