r"""Explicit splittings of q' = f(p), p' = g(q): compositions of shears, each exact.

A step alternates $q \leftarrow q + c_i h f(p)$ and $p \leftarrow p + d_i h g(q)$. Each is a shear:
it keeps volume, is undone by its own negative, and is symplectic if f and g are gradients.

Reference: E. Hairer, C. Lubich and G. Wanner, "Geometric Numerical Integration", chapter II.5;
H. Yoshida, Phys. Lett. A 150 (1990).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dynzoo.fields.volume import shear_norm
from dynzoo.integrators.base import OneStepMethod
from dynzoo.utils.arguments import one_of

__all__ = ["LEAPFROG", "SYMPLECTIC_EULER", "YOSHIDA4", "Splitting", "get", "names"]


@dataclass(frozen=True)
class Splitting(OneStepMethod):
    """A composition of shears.

    Args:
        name: identifier, as used in configs.
        order: order of consistency.
        drifts: the c_i, multiples of the step by which q moves.
        kicks: the d_i, multiples of the step by which p moves, each after its drift.
        preserves: what a step keeps, in words of ``dynzoo.integrators.registry``.

    Example:

    >>> from dynzoo import integrators
    >>> integrators.Splitting("leapfrog", 2, (0.5, 0.5), (1.0, 0.0)) == integrators.LEAPFROG
    True
    """

    name: str
    order: int
    drifts: tuple[float, ...]
    kicks: tuple[float, ...]
    preserves: tuple[str, ...] = (
        "linear invariants",
        "bilinear invariants",
        "volume",
        "symplectic form",
        "invertibility",
    )
    family: ClassVar[str] = "splitting"
    equation: ClassVar[str] = "q' = f(p), p' = g(q)"
    solver: ClassVar[str] = "explicit"
    source: ClassVar[str] = "Hairer, Lubich and Wanner, II.5; Yoshida 1990"

    def step(self, drift, kick, q, p, step_size):
        """One step from (q, p), of any array type; ``drift`` is f and ``kick`` is g."""
        for c, d in zip(self.drifts, self.kicks, strict=True):
            if c:
                q = q + (step_size * c) * drift(p)
            if d:
                p = p + (step_size * d) * kick(q)
        return q, p

    def inverse_step(self, drift, kick, q, p, step_size):
        """Undoes ``step``: the same shears backwards, exact but for rounding."""
        for c, d in zip(reversed(self.drifts), reversed(self.kicks), strict=True):
            if d:
                p = p - (step_size * d) * kick(q)
            if c:
                q = q - (step_size * c) * drift(p)
        return q, p

    def growth_bound(self, drift: float, kick: float) -> float:
        """Bound of |M| and |M^-1| for a step's Jacobian M, given h Lip(f) and h Lip(g)."""
        shears = [c * drift for c in self.drifts] + [d * kick for d in self.kicks]
        return math.prod(shear_norm(abs(s)) for s in shears)

    def convex_growth_bound(self, drift: float, kick: float) -> float:
        r"""The same for gradients of convex potentials: $0 \le hf' \le$ drift, $0 \le -hg'$ ...

        The two halves then turn (q, p) more than they stretch it. The first-order part of M is
        $I + \bar cJ$, a scaled rotation, plus at most the radius of the interval of $hf'$ and
        $-hg'$; the products of two and more shears are bounded by their norms.
        """
        lows, highs, product, first = [], [], 1.0, 0.0
        for coefficients, size in ((self.drifts, drift), (self.kicks, kick)):
            lows.append(size * sum(min(a, 0.0) for a in coefficients))
            highs.append(size * sum(max(a, 0.0) for a in coefficients))
            for a in coefficients:
                product *= 1.0 + abs(a) * size
                first += abs(a) * size
        center, radius = (max(highs) + min(lows)) / 2, (max(highs) - min(lows)) / 2
        turned = math.hypot(1.0, center) + radius + (product - 1.0 - first)
        # the difference of near equal numbers leaves a few units of rounding
        return min(turned + 1e-14, self.growth_bound(drift, kick))


_W1 = 1.0 / (2.0 - 2.0 ** (1 / 3))
_W0 = 1.0 - 2.0 * _W1

SYMPLECTIC_EULER = Splitting("symplectic_euler", 1, (1.0,), (1.0,))
LEAPFROG = Splitting("leapfrog", 2, (0.5, 0.5), (1.0, 0.0))
YOSHIDA4 = Splitting(
    "yoshida4", 4, (_W1 / 2, (_W0 + _W1) / 2, (_W0 + _W1) / 2, _W1 / 2), (_W1, _W0, _W1, 0.0)
)

SPLITTINGS = {m.name: m for m in (SYMPLECTIC_EULER, LEAPFROG, YOSHIDA4)}


def names() -> list[str]:
    """Names of the splittings."""
    return list(SPLITTINGS)


def get(identifier) -> Splitting:
    """Looks a splitting up by name, or passes a ``Splitting`` on.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(identifier, Splitting):
        return identifier
    return SPLITTINGS[one_of("integrator", identifier, SPLITTINGS)]
