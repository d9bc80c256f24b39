r"""Cayley steps of $x' = S(x)x$: $x \leftarrow (I - \tfrac h2S)^{-1}(I + \tfrac h2S)x$.

The Cayley transform of a skew matrix is orthogonal and exists for every step. A matrix that is a
sum of r rotations needs a linear system of size 2r only (Sherman-Morrison-Woodbury).

Reference: A. Iserles et al., "Lie-group methods", Acta Numerica 2000, section on quadratic Lie
groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dynzoo.fields.skew import euclidean_gram, implicit_update
from dynzoo.integrators.base import OneStepMethod
from dynzoo.integrators.projected import projected_on_sphere

__all__ = ["CAYLEY", "Cayley"]


@dataclass(frozen=True)
class Cayley(OneStepMethod):
    """A step with S frozen at x (order 1), or at the end of a half step (explicit midpoint).

    Args:
        name: identifier, as used in configs.
        order: 1 or 2.
        preserves: what a step keeps, in words of `dynzoo.integrators.registry`.
    """

    name: str
    order: int
    preserves: tuple[str, ...] = ("norm",)
    family: ClassVar[str] = "Cayley"
    equation: ClassVar[str] = "x' = S(x) x"
    solver: ClassVar[str] = "linearly implicit"
    source: ClassVar[str] = "Iserles et al., Acta Numerica 2000"

    def sphere_step(self, network, x, step_size, xp):
        """One step of x' = S(x) x with |x| kept."""
        skew = network(x)
        if self.order == 2:
            skew = network(_rotated(skew, x, 0.5 * step_size, xp))
        return _rotated(skew, x, step_size, xp)


def _rotated(skew, x, step_size, xp):
    d = implicit_update(skew, step_size, x, euclidean_gram(xp))
    # Takes the solver's rounding out of the norm; in exact arithmetic there is nothing to do.
    return projected_on_sphere(x, d, xp)


CAYLEY = {m.name: m for m in (Cayley("cayley", 1), Cayley("cayley_midpoint", 2))}
