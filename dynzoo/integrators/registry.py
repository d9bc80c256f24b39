"""Every integrator as a row of a table: what it solves, its order, its radius, what it keeps.

The rows hold no numbers of their own: each is read off the method, which is what the layers use.
``tests/integrators/`` measure every order and check every invariant and radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynzoo.integrators import runge_kutta, splitting
from dynzoo.integrators.cayley import CAYLEY
from dynzoo.integrators.discrete_gradient import DiscreteGradient
from dynzoo.integrators.implicit import ImplicitEuler, ImplicitMidpoint
from dynzoo.integrators.projected import PROJECTED

__all__ = ["INTEGRATORS", "INVARIANTS", "Integrator", "table"]

# The words of `preserves`: what one step keeps, where the equation that it solves keeps it.
INVARIANTS = {
    "linear invariants": "c^T x for every c with c^T f(x) = 0",
    "bilinear invariants": "q^T D p for every matrix D for which the equation keeps it",
    "quadratic invariants": "x^T Q x for every symmetric Q for which the equation keeps it",
    "norm": "|x|",
    "first integral": "the function I of x' = S(x) grad I(x)",
    "volume": "det M = 1 for the Jacobian M of the step",
    "symplectic form": "M^T J M = J for the Jacobian M of the step, if the field is Hamiltonian",
    "invertibility": "the step has an inverse, which is as cheap as the step",
    "contractivity": "distances do not grow, where damping or a convex potential sees to it",
}


# Name -> method, family by family; the layers look theirs up in the table of its family.
INTEGRATORS: dict[str, Any] = {
    **runge_kutta.RUNGE_KUTTA,
    **splitting.SPLITTINGS,
    ImplicitMidpoint.name: ImplicitMidpoint(),
    ImplicitEuler.name: ImplicitEuler(),
    **CAYLEY,
    **PROJECTED,
    DiscreteGradient.name: DiscreteGradient(),
}


@dataclass(frozen=True)
class Integrator:
    """A row of the table.

    Args:
        name: identifier, as used in configs.
        family: kind of method.
        equation: what it solves.
        solver: ``"explicit"``, ``"linearly implicit"`` (small linear systems) or
            ``"implicit"`` (a static number of iterations).
        order: order of convergence.
        general_order: order where it is lower outside the setting of ``order``.
        circle_contractivity_radius: r of a Runge-Kutta method, else ``None``.
        preserves: words of ``INVARIANTS``.
        source: reference.
        method: the method itself.

    Example:

    >>> from dynzoo import integrators
    >>> [row.solver for row in integrators.table() if row.name == "cayley"]
    ['linearly implicit']
    """

    name: str
    family: str
    equation: str
    solver: str
    order: int
    general_order: int
    circle_contractivity_radius: float | None
    preserves: tuple[str, ...]
    source: str
    method: Any


def table() -> list[Integrator]:
    """All integrators, family by family.

    Example:

    >>> from dynzoo import integrators
    >>> rows = integrators.table()
    >>> [row.name for row in rows if "norm" in row.preserves and row.order == 4]
    ['projected_rk4']
    """
    return [_row(method) for method in INTEGRATORS.values()]


def _row(method: Any) -> Integrator:
    return Integrator(
        name=method.name,
        family=method.family,
        equation=method.equation,
        solver=method.solver,
        order=method.order,
        general_order=method.general_order,
        circle_contractivity_radius=method.circle_contractivity_radius,
        preserves=method.preserves,
        source=method.source,
        method=method,
    )
