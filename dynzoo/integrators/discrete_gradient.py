r"""Discrete-gradient step of $x' = S(x)\nabla I(x)$: $y = x + hS(\hat x)\bar\nabla I(x, y)$.

Then $I(y) - I(x) = \bar\nabla I^T(y - x) = h\bar\nabla I^TS\bar\nabla I = 0$. With
$\hat x = x + \tfrac h2S(x)\nabla I(x)$ and a symmetric discrete gradient the order is 2.

For a quadratic integral the step is one linear system. Otherwise the secant weights of
`dynzoo.fields.first_integral` are frozen, which leaves a linear system with a positive
semi-definite H that is regular for every step, and updated a static number of times. What the
iterations leave open is a residual of the step equation, not of the integral: Newton steps along
the gradient close the integral, and with it the rounding of the solver.

Reference: R. McLachlan, G. Quispel and N. Robidoux, "Geometric integration using discrete
gradients", Phil. Trans. R. Soc. A 1999; O. Gonzalez, J. Nonlinear Sci. 1996.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dynzoo.fields.first_integral import Integral, integral_field
from dynzoo.fields.skew import implicit_update
from dynzoo.integrators.base import OneStepMethod
from dynzoo.integrators.projected import projected_on_integral

__all__ = ["DiscreteGradient"]


_POLISH = 2


@dataclass(frozen=True)
class DiscreteGradient(OneStepMethod):
    """The step above.

    Args:
        iterations: updates of the secant weights, a static number (a quadratic integral needs 1).
        name: identifier, as used in configs.
        order: order of convergence, once the iterations have converged.
        preserves: what a step keeps, in words of `dynzoo.integrators.registry`.
    """

    iterations: int = 6
    name: str = "discrete_gradient"
    order: int = 2
    preserves: tuple[str, ...] = ("first integral",)
    family: ClassVar[str] = "discrete gradient"
    equation: ClassVar[str] = "x' = S(x) grad I(x)"
    solver: ClassVar[str] = "linearly implicit"
    source: ClassVar[str] = "McLachlan, Quispel and Robidoux 1999; Gonzalez 1996"

    def integral_step(self, network, integral: Integral, x, step_size):
        """One step with I kept."""
        _, d = self.solved(network, integral, x, step_size)
        return projected_on_integral(x, d, integral, _POLISH)

    def solved(self, network, integral: Integral, x, step_size):
        """The skew matrix of the step and the update d before Newton's steps."""
        middle = x + 0.5 * step_size * integral_field(network, integral)(x)
        skew = network(middle)
        d = 0.0 * x
        for _ in range(self.iterations if integral.ridges is not None else 1):
            weights = integral.secant_weights(x, x + d)
            d = implicit_update(skew, step_size, integral.slope(x, weights), integral.gram(weights))
        return skew, d

    def residual(self, network, integral: Integral, x, step_size):
        """|d - h S grad I(x, x + d)| of the step equation, d as solved."""
        skew, d = self.solved(network, integral, x, step_size)
        defect = d - step_size * skew.apply(integral.discrete_gradient(x, x + d))
        return integral.xp.sqrt(integral.xp.sum(defect * defect, axis=-1))
