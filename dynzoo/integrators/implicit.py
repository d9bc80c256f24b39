r"""Implicit methods by solvers of static length, with Lipschitz bounds of what is computed.

Implicit midpoint for $y' = F\nabla H(y)$, $F = J - \gamma I$:

$$y^+ = y + hF\nabla H(m), \qquad m = \tfrac12(y + y^+)$$

With $\nabla^2H = cI + dE$, $\|E\| \le 1$, the linear part $cF$ is inverted in closed form (it is a
complex number in each (q, p) plane) and the rest is iterated from $m_0 = Gy$:

$$m_{k+1} = G\,[\,y + \tfrac h2 F(\nabla H(m_k) - c\,m_k)\,], \qquad G = (I - \tfrac{hc}2F)^{-1}$$

This contracts by $\theta = \tfrac{hsd}2\|G\| < d/c \le 1$ for every h (s = $\sqrt{1 + \gamma^2}$),
where plain fixed-point iteration needs a small h.

Implicit Euler for $x' = -\nabla V(x)$ with V convex, $0 \le \nabla^2V \le L$, is the resolvent
$z = (I + h\nabla V)^{-1}x$. Gradient descent on $\tfrac12|z - x|^2 + hV(z)$, whose curvature lies
in [1, 1 + hL], takes steps of size $t = 2/(2 + hL)$ from $z_0 = x$:

$$z_{k+1} = (1 - t)z_k + t(x - h\nabla V(z_k))$$

Two inputs at a distance d have iterates whose difference follows $d_{k+1} = M_kd_k + td$,
$M_k = (1 - t)I - thE_k$, for a symmetric $E_k$ with spectrum in [0, L]: the mean of the Hessian
between them. So $\|M_k\| \le \max(1 - t, t + thL - 1) = 1 - t$, and from $|d_0| = |d|$ follows
$|d_k| \le |d|$ for all k: **the iteration is 1-Lipschitz wherever it stops**, for every h. It is
firmly non-expansive wherever it stops if $hL \le 2$, for $e_k = 2d_k - d$ starts at d and follows
$e_{k+1} = M_ke_k + t(I - hE_k)d$, where $\|I - hE_k\| \le 1$. The residual
$g_k = z_k + h\nabla V(z_k) - x$ follows $g_{k+1} = M_kg_k$, hence
$|g_k| \le (1 - t)^kh|\nabla V(x)|$, and $|z_k - z| \le |g_k|$, as $I + h\nabla V$ expands.

Reference: E. Hairer, C. Lubich and G. Wanner, "Geometric Numerical Integration", II.1 and VI.4;
H. Bauschke and P. Combettes, "Convex Analysis and Monotone Operator Theory in Hilbert Spaces"
(2011), chapter 23, for resolvents. The bounds of the truncated iterations are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dynzoo.fields.hamiltonian import complex_multiply
from dynzoo.integrators.base import OneStepMethod

__all__ = ["ImplicitEuler", "ImplicitMidpoint"]


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


@dataclass(frozen=True)
class ImplicitEuler(OneStepMethod):
    r"""The implicit Euler rule on a convex potential, with a fixed number of iterations.

    The order is 1 from one iteration on, which is an explicit step of size
    $th \le 2/L$.

    Args:
        iterations: iterations a step, a positive integer.
        name: identifier, as used in configs.
        preserves: what a step keeps, in words of ``dynzoo.integrators.registry``.

    Example:

    >>> from dynzoo import integrators
    >>> integrators.ImplicitEuler(iterations=8).growth_bound(100.0, 1.0, 0.0, 1.0)
    1.0
    """

    iterations: int = 10
    name: str = "implicit_euler"
    preserves: tuple[str, ...] = ("linear invariants", "contractivity")
    family: ClassVar[str] = "implicit Euler"
    equation: ClassVar[str] = "x' = -grad V(x), V convex"
    solver: ClassVar[str] = "implicit"
    order: ClassVar[int] = 1
    source: ClassVar[str] = "Bauschke and Combettes 2011, chapter 23"

    @staticmethod
    def share(step_size, curvature):
        """t, the step of the descent; ``curvature`` is L, tensors are fine."""
        return 2.0 / (2.0 + step_size * curvature)

    def step(self, slope, x, share):
        r"""One step from x; ``slope`` is $th\nabla V$ and ``share`` is t."""
        z = x
        for _ in range(self.iterations):
            z = z + share * (x - z) - slope(z)
        return z

    def iteration_factor(
        self, step_size: float, curvature: float, lowest: float, highest: float
    ) -> float:
        """Bound of |M| for Hessians between ``lowest`` and ``highest``, whatever L was taken."""
        share = self.share(step_size, curvature)
        ends = (1.0 - share - share * step_size * c for c in (lowest, highest))
        return max(abs(end) for end in ends)

    def growth_bound(
        self, step_size: float, curvature: float, lowest: float, highest: float
    ) -> float:
        r"""Lipschitz bound of the step as computed: $m^k + t(1 + m + \dots + m^{k-1})$, m = |M|.

        Nothing here supposes that the iteration has converged, or that ``highest`` is below L.
        """
        share = self.share(step_size, curvature)
        factor = self.iteration_factor(step_size, curvature, lowest, highest)
        if factor == 1.0 - share:
            return 1.0  # what the recursion below gives, but for its rounding
        bound = 1.0
        for _ in range(self.iterations):
            bound = factor * bound + share
        return bound * (1.0 + 1e-15 * self.iterations)


def _norm(step_size: float, damping: float, center: float) -> float:
    """|G|."""
    turn = 0.5 * step_size * center
    return 1.0 / math.hypot(1.0 + turn * damping, turn)
