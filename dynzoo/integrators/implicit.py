r"""Implicit midpoint for $y' = F\nabla H(y)$, $F = J - \gamma I$, by a solver of static length.

$$y^+ = y + hF\nabla H(m), \qquad m = \tfrac12(y + y^+)$$

With $\nabla^2H = cI + dE$, $\|E\| \le 1$, the linear part $cF$ is inverted in closed form (it is a
complex number in each (q, p) plane) and the rest is iterated from $m_0 = Gy$:

$$m_{k+1} = G\,[\,y + \tfrac h2 F(\nabla H(m_k) - c\,m_k)\,], \qquad G = (I - \tfrac{hc}2F)^{-1}$$

This contracts by $\theta = \tfrac{hsd}2\|G\| < d/c \le 1$ for every h (s = $\sqrt{1 + \gamma^2}$),
where plain fixed-point iteration needs a small h.

Reference: E. Hairer, C. Lubich and G. Wanner, "Geometric Numerical Integration", II.1 and VI.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dynzoo.fields.hamiltonian import complex_multiply
from dynzoo.integrators.base import OneStepMethod

__all__ = ["ImplicitMidpoint"]


@dataclass(frozen=True)
class ImplicitMidpoint(OneStepMethod):
    r"""The implicit midpoint rule with a fixed number of iterations, from 1.

    The order is 2 from two iterations on. The exact rule is symplectic for $\gamma = 0$ and keeps
    quadratic invariants; the computed one does up to a residual that falls by $\theta$ an
    iteration. The Lipschitz bounds are those of the computed map, however early it stops.

    Args:
        iterations: iterations a step, a positive integer.
        name: identifier, as used in configs.
        preserves: what a step keeps, in words of ``dynzoo.integrators.registry``.

    Example:

    >>> from dynzoo import integrators
    >>> integrators.ImplicitMidpoint(iterations=12).order
    2
    """

    iterations: int = 12
    name: str = "implicit_midpoint"
    preserves: tuple[str, ...] = (
        "linear invariants",
        "quadratic invariants",
        "symplectic form",
        "contractivity",
    )
    family: ClassVar[str] = "implicit midpoint"
    equation: ClassVar[str] = "y' = (J - gamma I) grad H(y)"
    solver: ClassVar[str] = "implicit"
    source: ClassVar[str] = "Hairer, Lubich and Wanner, II.1 and VI.4"

    @property
    def order(self) -> int:
        return min(2, self.iterations)

    def step(self, gradient, y, step_size, damping, center, xp):
        r"""One step from y; ``gradient`` is $\nabla H$ and ``xp`` is ``keras.ops`` or ``numpy``."""
        half = 0.5 * step_size
        real, imaginary = 1.0 + half * center * damping, half * center
        square = real * real + imaginary * imaginary
        # G = 1 / (real - i imaginary), and half * G F with F = i - damping
        g = (real / square, imaginary / square)
        gf = (half * (-g[0] * damping - g[1]), half * (g[0] - g[1] * damping))
        start = complex_multiply(y, *g, xp=xp)
        m = start
        for _ in range(self.iterations):
            m = start + complex_multiply(gradient(m) - center * m, *gf, xp=xp)
        return 2.0 * m - y

    @staticmethod
    def solver_factor(step_size: float, damping: float, center: float, radius: float) -> float:
        r"""$\theta$, by which the error falls in one iteration."""
        return (
            0.5 * step_size * math.hypot(1.0, damping) * radius * _norm(step_size, damping, center)
        )

    def growth_bound(self, step_size: float, damping: float, center: float, radius: float) -> float:
        r"""Lipschitz bound of the step as computed: $\|2G - I\| + 2\theta\mu$.

        $\mu = \|G\|(1 + \theta + \dots)$ bounds how $m_k$ depends on y, whichever Hessians the
        iterates met on their way; nothing here supposes that the iteration has converged.
        """
        size = _norm(step_size, damping, center)
        theta = self.solver_factor(step_size, damping, center, radius)
        # the whole series grows with h, so that the bound at the largest step covers the others
        series = 1 / (1 - theta) if theta < 1 else sum(theta**k for k in range(self.iterations))
        inner = size * series
        turn = 0.5 * step_size * center
        return math.hypot(1.0 - turn * damping, turn) * size + 2.0 * theta * inner

    @staticmethod
    def step_limit(damping: float, center: float, radius: float) -> float:
        r"""Largest h with the closed form of ``growth_bound`` at most 1; infinite where all are.

        With $\alpha = d/c$, $C = \gamma/s$, $x = hcs/2$, $P^2 = 1 + 2xC + x^2$ and $Q^2 = 1 - 2xC +
        x^2$, the bound is at most 1 if and only if $C(1 - \alpha x/P) \ge \tfrac\alpha2(1 + Q/P)$.
        The difference of the two sides has a derivative with the sign of $(1 - x^2) - Q(1 + xC)$,
        which is never positive: it falls with x, from $C - \alpha$ to $C(1 - \alpha) - \alpha$.
        """
        s = math.hypot(1.0, damping)
        alpha, cosine = radius / center, damping / s

        def slack(x):
            p, q = math.sqrt(1 + 2 * x * cosine + x**2), math.sqrt(1 - 2 * x * cosine + x**2)
            return cosine * (1 - alpha * x / p) - 0.5 * alpha * (1 + q / p)

        if cosine <= alpha:
            return 0.0
        if cosine * (1 - alpha) >= alpha:
            return math.inf
        low, high = 0.0, 1.0
        while slack(high) >= 0 and high < 1e9:
            low, high = high, 2 * high
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if slack(middle) >= 0 else (low, middle)
        return 2.0 * low / (center * s)


def _norm(step_size: float, damping: float, center: float) -> float:
    """|G|."""
    turn = 0.5 * step_size * center
    return 1.0 / math.hypot(1.0 + turn * damping, turn)
