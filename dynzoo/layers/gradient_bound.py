"""What ``GradientFlow`` guarantees: the true bound of its steps, and the promises in words."""

from __future__ import annotations

import math

from dynzoo.constraints import ORTHONORMAL_KEPT
from dynzoo.fields.gradient import contractive_factor
from dynzoo.guarantees import Guarantee
from dynzoo.utils.arguments import float64

__all__ = ["gradient_bound", "gradient_guarantees", "step_bounds"]


def gradient_bound(layer, input_shape) -> float:
    """Upper bound of the Lipschitz constant with the present weights (float64)."""
    return math.prod(step_bounds(layer, input_shape))


def step_bounds(layer, input_shape, norms=None) -> list[float]:
    """The same for each time step; ``norms`` are those of the kernels, where they are known."""
    slopes = (layer._activation.slope_min, layer._activation.slope_max)
    kernels = [float64(k) for k in layer.kernels]
    if norms is None:
        norms = [layer.operator.norm_float64(k, input_shape) for k in kernels]
    bounds = []
    for i, h in enumerate(layer.step_sizes()):
        j = 0 if layer.shared else i
        stiffness = h * slopes[1] * norms[j] ** 2
        if layer.direction == "expansive":
            bounds.append(layer._integrator.growth_bound(stiffness))
        elif layer.integrator == "euler":
            smallest = 0.0
            if slopes[0] > 0:
                smallest = layer.operator.min_singular_value_float64(kernels[j], input_shape)
            bounds.append(contractive_factor(h, norms[j], smallest, *slopes))
        elif stiffness <= 2.0 * layer._integrator.circle_contractivity_radius:
            bounds.append(1.0)
        else:
            bounds.append(layer._integrator.growth_bound(stiffness))
    return bounds


def gradient_guarantees(layer) -> list[Guarantee]:
    """What holds for a ``GradientFlow`` as it is configured."""
    source = "arXiv 2210.02373; circle contractivity: arXiv 2306.17332"
    smooth = Guarantee(
        "gradient field",
        "the right-hand side is the gradient of a convex potential with slopes in [0, 1]",
        condition=f"activation {layer.activation!r}, the operator's exact adjoint",
        source=source,
    )
    if layer.constraint is None:
        return [smooth]
    norm = 1.0 if layer.constraint == "orthonormal" else layer.max_norm
    kept = f"|A| <= {norm:g}, up to 1e-5, by the {layer.constraint!r} constraint"
    if layer.direction == "expansive":
        largest = layer._learned_limit if layer.step_size == "learned" else layer.step_size
        growth = layer._integrator.growth_bound(largest * norm**2)
        return [smooth, Guarantee("Lipschitz", "of every step", growth, kept, source)]
    found = [
        smooth,
        Guarantee(
            "1-Lipschitz",
            f"every {layer.integrator} step is non-expansive",
            1.0,
            f"{kept}, step <= {layer.step_limit:g}",
            source,
        ),
    ]
    reflection = layer.constraint == "orthonormal" and layer.step_size == "maximal"
    if reflection and layer.activation == "relu" and layer.integrator == "euler":
        found.append(
            Guarantee(
                "orthogonal Jacobian",
                "I - 2 A^T D A keeps the norm of signals and gradients",
                1.0,
                f"orthonormal rows ({ORTHONORMAL_KEPT}), ReLU, Euler, step 2",
                source,
            )
        )
    return found
