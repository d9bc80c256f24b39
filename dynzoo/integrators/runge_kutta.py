r"""One-step methods for x' = f(x), with their order and circle-contractivity radius.

A Runge-Kutta method with circle-contractivity radius $r$ is non-expansive on a field that is
$1/\nu$-cocoercive (such as $-A^T\sigma(Ax+b)$ with $\nu = \|A\|^2$) when $h\nu \le 2r$.
The radius is not a table entry but computed from the coefficients.

Reference: G. Dahlquist and R. Jeltsch, "Generalized disks of contractivity for explicit and
implicit Runge-Kutta methods" (1979); E. Celledoni et al., arXiv 2306.17332 (use in networks).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dynzoo.integrators.base import OneStepMethod
from dynzoo.utils.arguments import one_of

__all__ = ["RUNGE_KUTTA", "RungeKutta", "get", "names"]


@dataclass(frozen=True)
class RungeKutta(OneStepMethod):
    """An explicit Runge-Kutta method given by its Butcher tableau.

    Args:
        name: identifier, as used in configs.
        order: order of consistency.
        stages: strictly lower triangular coefficients a_ij, one tuple a stage.
        weights: the b_i.
        preserves: what a step keeps, in words of ``dynzoo.integrators.registry``.

    Example:

    >>> from dynzoo import integrators
    >>> heun = integrators.RungeKutta("heun", 2, ((), (1.0,)), (0.5, 0.5))
    >>> heun.step(lambda x: -x, 1.0, 0.1)
    0.905
    """

    name: str
    order: int
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    preserves: tuple[str, ...] = ("linear invariants",)
    family: ClassVar[str] = "Runge-Kutta"
    equation: ClassVar[str] = "x' = f(x)"
    solver: ClassVar[str] = "explicit"
    source: ClassVar[str] = "Dahlquist and Jeltsch 1979; arXiv 2306.17332"

    def step(self, field, x, step_size):
        """One step from x; ``field`` and x may be of any array type."""
        slopes: list = []
        for row in self.stages:
            slopes.append(field(_combine(x, row, slopes, step_size)))
        return _combine(x, self.weights, slopes, step_size)

    @functools.cached_property
    def circle_contractivity_radius(self) -> float:
        r"""Largest r with $w^T (BA + A^TB - bb^T) w \ge -\tfrac1r w^T B w$; 0 if some b_i is 0."""
        b = np.array(self.weights)
        if b.min() <= 0:
            return 0.0
        a = np.zeros((len(b), len(b)))
        for i, row in enumerate(self.stages):
            a[i, : len(row)] = row
        q = np.diag(b) @ a
        q = q + q.T - np.outer(b, b)
        smallest = np.linalg.eigvalsh(q / np.sqrt(np.outer(b, b)))[0]
        return np.inf if smallest >= 0 else float(-1.0 / smallest)

    def growth_bound(self, step_times_lipschitz: float) -> float:
        """Lipschitz bound of one step for any field, given h * Lip(f): sums absolute values."""
        gains: list[float] = []
        for row in self.stages:
            inner = sum(abs(a) * g for a, g in zip(row, gains, strict=True))
            gains.append(1.0 + step_times_lipschitz * inner)
        outer = sum(abs(b) * g for b, g in zip(self.weights, gains, strict=True))
        return 1.0 + step_times_lipschitz * outer


def _combine(x, coefficients, slopes, step_size):
    for c, slope in zip(coefficients, slopes, strict=True):
        if c:
            factor = step_size * c
            # A product by one is a pass over memory that a large activation can do without.
            one = isinstance(factor, float) and factor == 1.0
            x = x + (slope if one else factor * slope)
    return x


EULER = RungeKutta("euler", 1, ((),), (1.0,))
HEUN = RungeKutta("heun", 2, ((), (1.0,)), (0.5, 0.5))
SSP3 = RungeKutta("ssp3", 3, ((), (1.0,), (0.25, 0.25)), (1 / 6, 1 / 6, 2 / 3))
RK4 = RungeKutta("rk4", 4, ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))

RUNGE_KUTTA = {m.name: m for m in (EULER, HEUN, SSP3, RK4)}


def names() -> list[str]:
    """Names of the integrators.

    Example:

    >>> from dynzoo import integrators
    >>> integrators.names()
    ['euler', 'heun', 'ssp3', 'rk4']
    """
    return list(RUNGE_KUTTA)


def get(identifier) -> RungeKutta:
    """Looks an integrator up by name, or passes a ``RungeKutta`` on.

    Args:
        identifier: ``"euler"``, ``"heun"``, ``"ssp3"``, ``"rk4"``, or a ``RungeKutta``.

    Raises:
        ValueError: for an unknown name.

    Example:

    >>> from dynzoo import integrators
    >>> integrators.get("rk4").order
    4
    """
    if isinstance(identifier, RungeKutta):
        return identifier
    return RUNGE_KUTTA[one_of("integrator", identifier, RUNGE_KUTTA)]
