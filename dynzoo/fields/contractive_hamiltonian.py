r"""Damped Hamiltonian fields $y' = F\nabla H(y)$, $F = J - \gamma I$, $\nabla^2H \in [c_1, c_2]$.

$F$ is $s = \sqrt{1 + \gamma^2}$ times a rotation, and a Hessian is $S = cI + dE$ with
$c = (c_1 + c_2)/2$, $d = (c_2 - c_1)/2$ and $\|E\| \le 1$. Everything here follows from these two
facts, and the Euler factor is attained: in a (q, p) plane, a scaled rotation plus a scaled
reflection has a largest singular value that is the sum of the two scales.
"""

from __future__ import annotations

import math

__all__ = [
    "best_euler_step",
    "contraction_rate",
    "critical_damping",
    "euler_factor",
    "euler_step_limit",
    "published_damping",
]

# The published scripts subtract these to stay clear of a division by zero.
_EPSILON = {"paper": 1e-9, "paper_mnist": 1e-6}


def _ratio(c1: float, c2: float) -> float:
    return (c2 - c1) / (c2 + c1)


def critical_damping(c1: float, c2: float) -> float:
    r"""$\gamma^* = (c_2 - c_1)/(2\sqrt{c_1c_2})$: the field contracts if and only if above it."""
    return (c2 - c1) / (2.0 * math.sqrt(c1 * c2))


def published_damping(variant: str, c1: float, c2: float) -> float:
    r"""The damping of the published scripts, with $\alpha = (c_2 - c_1)/(c_2 + c_1)$.

    ``"paper"`` (two-dimensional examples) is $\gamma^*$ but for a tiny epsilon, below it for
    $\alpha^2 < 1/2$ and above it otherwise, so that next to nothing contracts; ``"paper_mnist"``
    is $1/\sqrt{1 - \alpha^2}$, which lies above.
    """
    square, epsilon = _ratio(c1, c2) ** 2, _EPSILON[variant]
    rest = 1.0 - square - epsilon
    if rest <= 0:
        raise ValueError(f"`bound` {variant!r} needs (c2 - c1) / (c2 + c1) below 1 - {epsilon:g}.")
    return math.sqrt((max(square - epsilon, 0.0) if variant == "paper" else 1.0) / rest)


def contraction_rate(damping: float, c1: float, c2: float) -> float:
    r"""$\rho = \gamma c - s d$: distances of solutions fall at least as $e^{-\rho t}$."""
    return 0.5 * (damping * (c1 + c2) - math.hypot(1.0, damping) * (c2 - c1))


def euler_factor(step_size: float, damping: float, c1: float, c2: float) -> float:
    r"""Largest $\|I + hFS\|$: $\sqrt{(1 - hc\gamma)^2 + (hc)^2} + hds$ (attained)."""
    turn, spread = 0.5 * step_size * (c1 + c2), 0.5 * step_size * (c2 - c1)
    return math.hypot(1.0 - turn * damping, turn) + spread * math.hypot(1.0, damping)


def euler_step_limit(damping: float, c1: float, c2: float) -> float:
    r"""Largest h with ``euler_factor`` at most 1: $2\rho / ((1 + \gamma^2) c_1 c_2)$.

    The factor is convex in h and 1 at h = 0, so that all smaller steps are contractive too.
    """
    rate = contraction_rate(damping, c1, c2)
    return max(0.0, 2.0 * rate / ((1.0 + damping**2) * c1 * c2))


def best_euler_step(damping: float, c1: float, c2: float) -> float:
    r"""The h of the smallest ``euler_factor``, which is $\sin(\operatorname{arccot}\gamma +
    \arcsin\alpha)$."""
    alpha, s = _ratio(c1, c2), math.hypot(1.0, damping)
    scaled = damping - alpha / math.sqrt(1.0 - alpha**2)
    return max(0.0, 2.0 * scaled / ((c1 + c2) * s**2))
