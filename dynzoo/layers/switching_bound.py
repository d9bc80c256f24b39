"""What ``SwitchingFlow`` guarantees: the true bound of one time step, and the promises in words."""

from __future__ import annotations

import math

import numpy as np

from dynzoo import spectral
from dynzoo.fields import switching
from dynzoo.fields.gradient import contractive_factor
from dynzoo.guarantees import Guarantee
from dynzoo.operators import MatrixOperator, ShiftedPointwise

__all__ = ["check_shape", "switching_bound", "switching_guarantees"]

_SOURCE = "arXiv 2210.02373, section on 1-Lipschitz networks"


def check_shape(layer, shape) -> None:
    """Refuses kernels for which the contraction cannot reach what the expansion stretches.

    Raises:
        ValueError: naming the operator and what it needs.
    """
    inputs, units = shape[-2:]
    if layer.expansion == "generic" and units != inputs:
        raise ValueError(
            f"`operator` must have {inputs} units, the channels of the input, for "
            f"expansion='generic'. Received: {units} units"
        )
    if layer.expansion != "tied" and units < inputs:
        raise ValueError(
            f"`operator` must have at least {inputs} units, the channels of the input: with fewer "
            "A is not injective, and what it does not see would only expand. "
            f"Received: {units} units"
        )
    if isinstance(layer.operator, ShiftedPointwise) and layer.operator.padding == "zero":
        raise ValueError(
            "`operator` must be injective: a shift with zero padding drops pixels. Use "
            "padding='circular'. Received: padding='zero'"
        )


def _smallest(operator, kernel, input_shape) -> float:
    """Lower bound of the min(inputs, units) singular values of A: on its row space."""
    lower, _ = switching.singular_values_squared(operator, kernel, np)
    bounds = [math.sqrt(lower), operator.min_singular_value_float64(kernel, input_shape)]
    if isinstance(operator, MatrixOperator):
        # A circular shift keeps every singular value; other shifts are refused.
        bounds.append(spectral.dense_min_singular_value_float64(kernel))
    return max(bounds)


def switching_bound(layer, input_shape, h, e, kernel, expansion_kernel) -> float:
    """Lipschitz bound of one time step with substeps h and e, by the sharp factors (float64)."""
    operator = layer.operator
    norm = operator.norm_float64(kernel, input_shape)
    smallest = _smallest(operator, kernel, input_shape)
    contraction = contractive_factor(h, norm, smallest, layer.slope, layer._activation.slope_max)
    sigma = layer._expansion_activation
    if layer.expansion == "tied":
        expansion_norm = norm
    else:
        expansion_norm = operator.norm_float64(expansion_kernel, input_shape)
        smallest = 0.0
    if layer.expansion == "generic":
        expansion = 1.0 + abs(e) * sigma.slope_max * expansion_norm
    elif e >= 0:
        expansion = 1.0 + e * sigma.slope_max * expansion_norm**2
    else:
        expansion = contractive_factor(
            -e, expansion_norm, smallest, sigma.slope_min, sigma.slope_max
        )
    expansions = 1 if layer.mode == "flexible" else layer.substeps
    bound = contraction**layer.substeps * expansion**expansions
    inputs, units = kernel.shape[-2:]
    # With fewer units than inputs (tied) both fields vanish on the same subspace, and map its
    # complement to itself: the identity there, the product here.
    return max(1.0, bound) if units < inputs else bound


def switching_guarantees(layer) -> list[Guarantee]:
    """What holds for a ``SwitchingFlow`` as it is configured."""
    formula = {
        "paper": "F = sqrt(1 - 2 a k t + t^2)",
        "sharp": "F = max(|1 - a k t|, |1 - t|)",
    }[layer.bound]
    power = layer.substeps if layer.mode == "flexible" else 1
    measured = layer.spectrum == "measured"
    return [
        Guarantee(
            "1-Lipschitz",
            "every time step, contractions and expansions together",
            1.0,
            "all finite weights: the step sizes follow singular values that each call bounds"
            if measured
            else "only if A^T A = I and |W| <= 1, which nothing here measures",
            _SOURCE if layer.bound == "paper" else f"{_SOURCE}; sharp factor: dynzoo",
        ),
        Guarantee(
            "room for expansion",
            f"largest expansive substep 1 / F^{power} - 1 with {formula}, a = {layer.slope:g}, "
            "for orthonormal A, over the admissible contractions",
            _room(layer),
            f"at most max_expansion; k = s_min^2 / s_max^2 {'measured' if measured else 'taken 1'}",
            _SOURCE,
        ),
    ]


def _room(layer) -> float:
    if layer.step_size == "learned":
        steps = np.linspace(layer.step_range[0], layer.step_range[1], 1001) / layer.substeps
    else:
        steps = np.array([layer.step_size / layer.substeps])
    power = layer.substeps if layer.mode == "flexible" else 1
    room = switching.expansion_limit(
        steps, layer.slope, 1.0, layer.bound, power, layer.max_expansion, np
    )
    return float(room.max())
