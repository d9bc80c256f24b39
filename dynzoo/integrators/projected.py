r"""Runge-Kutta steps brought back to the level set that they start from.

Two ways back. *Projection* moves a finished step $x + d$ across the level sets (radially for
spheres, along $\nabla I$ in general) and keeps the order p of the method. *Relaxation* shortens or
stretches the update, $x + \gamma d$ with $I(x + \gamma d) = I(x)$, and so stays on the method's own
direction; as $\gamma = 1 + O(h^{p-1})$ at unchanged time, the order falls to p - 1 in general.
On quadratic integrals Heun's method is off by $O(h^4)$ only, and relaxed Heun keeps order 2. It is
the founding paper's step, written there as $(1 - \lambda)\phi + \lambda x$.

Reference: E. Hairer, C. Lubich and G. Wanner, "Geometric Numerical Integration", IV.4;
D. Ketcheson, "Relaxation Runge-Kutta methods", SIAM J. Numer. Anal. 2019 (IDT: the variant
without rescaled time).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from dynzoo.fields.first_integral import Integral, integral_field
from dynzoo.fields.sphere import sphere_field
from dynzoo.integrators.base import OneStepMethod
from dynzoo.integrators.runge_kutta import HEUN, RK4, RungeKutta

__all__ = [
    "INTEGRAL_TOLERANCE",
    "PROJECTED",
    "ProjectedRungeKutta",
    "projected_on_integral",
    "projected_on_sphere",
    "renormalized",
]

# In exact arithmetic Heun's method on a sphere has gamma <= 1. Where the field vanishes an update
# is rounding noise, its gamma arbitrary, and unlimited it could throw x to its antipode.
_GAMMA = (-1.0, 2.0)
# Sphere steps: updates are cut off at this many times x, where squares and two roundings still fit.
_LONGEST = 2.0**20
_OVERFLOW = 1e37
_UNDERFLOW = 1e-30  # what a step may change of it is still a normal number of float32
_NO_DIRECTION = 1e-4 - 1.0
# Newton steps after relaxation: they take out rounding and what a limited gamma leaves.
_POLISH = 2
# What a step may change of an integral, in parts of `Integral.magnitude` at its larger end.
INTEGRAL_TOLERANCE = 2e-6


@dataclass(frozen=True)
class ProjectedRungeKutta(OneStepMethod):
    """A Runge-Kutta method with a way back to the invariant.

    Args:
        name: identifier, as used in configs.
        base: the Runge-Kutta method.
        relaxed: relaxation instead of projection.
        iterations: static number of Newton or secant iterations for a general integral (a sphere
            needs none, relaxation on a quadratic integral one).
        preserves: what a step keeps, in words of `dynzoo.integrators.registry`.
    """

    name: str
    base: RungeKutta
    relaxed: bool
    iterations: int = 6
    preserves: tuple[str, ...] = ("norm", "first integral")
    family: ClassVar[str] = "projected Runge-Kutta"
    equation: ClassVar[str] = "x' = S(x) x and x' = S(x) grad I(x)"
    solver: ClassVar[str] = "explicit"
    source: ClassVar[str] = "Hairer, Lubich and Wanner, IV.4; Ketcheson 2019"

    @property
    def order(self) -> int:
        """Order of convergence on spheres and quadratic integrals."""
        return self.base.order

    @property
    def general_order(self) -> int:
        """Order of convergence on any other integral."""
        return self.base.order - 1 if self.relaxed else self.base.order

    def with_iterations(self, iterations: int) -> ProjectedRungeKutta:
        """The same method with another number of iterations."""
        return replace(self, iterations=iterations)

    def update(self, field, x, step_size):
        """The increment d of the Runge-Kutta method, free of the rounding of (x + d) - x."""
        return self.base.step(lambda d: field(x + d), 0.0 * x, step_size)

    def sphere_step(self, network, x, step_size, xp):
        """One step of x' = S(x) x with |x| kept."""
        d = self.update(sphere_field(network), x, step_size)
        return relaxed_on_sphere(x, d, xp) if self.relaxed else projected_on_sphere(x, d, xp)

    def integral_step(self, network, integral: Integral, x, step_size):
        """One step of x' = S(x) grad I(x) with I kept."""
        d = self.update(integral_field(network, integral), x, step_size)
        if self.relaxed:
            return relaxed_on_integral(x, d, integral, self.iterations)
        return projected_on_integral(x, d, integral, self.iterations)


def _dot(a, b, xp):
    return xp.sum(a * b, axis=-1, keepdims=True)


def _gamma(slope, curvature, xp):
    """-2 slope / curvature within limits, and 1 for an update that vanishes."""
    none = curvature <= 1e-30
    gamma = -2.0 * slope / xp.where(none, xp.ones_like(curvature), curvature)
    return xp.where(none, xp.ones_like(gamma), xp.clip(gamma, *_GAMMA))


def _scaled(x, d, xp):
    """(largest entry of x, x and d over it): a step of any size, in numbers whose squares exist.

    An update that has overflowed counts as none, and one far beyond x is shortened: its direction
    is all that a sphere can take from it.
    """
    size = xp.max(xp.abs(x), axis=-1, keepdims=True)
    size = xp.where(size > 0, size, xp.ones_like(size))
    # the largest entry is NaN if one is, and no comparison with NaN is true
    longest = xp.max(xp.abs(d), axis=-1, keepdims=True)
    finite = longest < _OVERFLOW
    d = xp.where(finite, d, xp.zeros_like(d)) / size
    longest = xp.where(finite, longest, xp.zeros_like(longest)) / size
    finite = longest < _OVERFLOW
    longest = xp.where(finite, longest, xp.zeros_like(longest))
    d = xp.where(finite, d, xp.zeros_like(d))
    return size, x / size, d * (_LONGEST / xp.maximum(longest, _LONGEST))


def relaxed_on_sphere(x, d, xp):
    r"""$x + \gamma d$ with $\gamma = -2x^Td/|d|^2$, so that the norm is that of x."""
    _, unit, short = _scaled(x, d, xp)
    gamma = _gamma(_dot(unit, short, xp), _dot(short, short, xp), xp)
    return projected_on_sphere(x, gamma * d, xp)


def projected_on_sphere(x, d, xp):
    """(x + d) |x| / |x + d|, written as a correction of d: only one sum rounds at the size of x.

    Where an update overflows, or leads to a hundredth of |x| and thus leaves no direction, x stays.
    The sums are elementwise, in full precision even where matrix products are not.
    """
    size, x_unit, d = _scaled(x, d, xp)
    squared = xp.maximum(_dot(x_unit, x_unit, xp), 1e-30)
    excess = (2.0 * _dot(x_unit, d, xp) + _dot(d, d, xp)) / squared
    d = xp.where(excess > _NO_DIRECTION, d, xp.zeros_like(d))
    for _ in range(3):  # one is exact; the others take out the rounding of updates far beyond x
        excess = xp.maximum((2.0 * _dot(x_unit, d, xp) + _dot(d, d, xp)) / squared, 1e-6 - 1.0)
        root = xp.sqrt(1.0 + excess)
        d = d - (excess / ((1.0 + root) * root)) * (x_unit + d)
    return x + size * d


def renormalized(start, x, xp):
    """x with the norm of ``start``, from which it may differ by the rounding of many steps."""
    size = xp.max(xp.abs(start), axis=-1, keepdims=True)
    size = xp.where(size > 0, size, xp.ones_like(size))
    before, after = start / size, x / size
    squared = xp.maximum(_dot(before, before, xp), 1e-30)
    return x + (0.5 * (squared - _dot(after, after, xp)) / squared) * x


def relaxed_on_integral(x, d, integral: Integral, iterations):
    r"""$x + \gamma d$ with $\bar\nabla I(x, x + \gamma d)^Td = 0$, hence I kept.

    Each iteration solves for gamma with the secant weights frozen: exact at once for a quadratic
    integral, a fixed point with linear convergence otherwise, finished by Newton's method.
    """
    xp = integral.xp
    gamma = xp.ones_like(d[..., :1])
    for _ in range(iterations if integral.ridges is not None else 1):
        weights = integral.secant_weights(x, x + gamma * d)
        slope = _dot(integral.slope(x, weights), d, xp)
        curvature = 2.0 * _dot(integral.half_curvature(d, weights), d, xp)
        gamma = _gamma(slope, curvature, xp)
    return projected_on_integral(x, gamma * d, integral, _POLISH)


def projected_on_integral(x, d, integral: Integral, iterations):
    r"""Newton's method along the gradient: $y \leftarrow y - (I(y) - I(x))\nabla I/|\nabla I|^2$.

    The defect is taken as $\bar\nabla I(x, y)^T(y - x)$, without the cancellation of I(y) - I(x).
    Where the iterations leave more of it than rounding may, x stays: the integral is kept in any
    case. So it does where the terms of I are too small for float32 to tell.
    """
    xp = integral.xp
    for _ in range(iterations):
        defect = _dot(integral.discrete_gradient(x, x + d), d, xp)
        gradient = integral.gradient(x + d)
        d = d - defect / xp.maximum(_dot(gradient, gradient, xp), 1e-20) * gradient
    y = x + d
    defect = _dot(integral.discrete_gradient(x, y), d, xp)
    size = xp.maximum(integral.magnitude(x), integral.magnitude(y))
    size = xp.expand_dims(size, -1)
    # both are false for NaN
    known = (size > _UNDERFLOW) & (size < _OVERFLOW)
    closed = known & (xp.abs(defect) <= 0.5 * INTEGRAL_TOLERANCE * size)
    return xp.where(closed, y, x)


PROJECTED = {
    m.name: m
    for m in (
        ProjectedRungeKutta("relaxed_heun", HEUN, True),
        ProjectedRungeKutta("projected_heun", HEUN, False),
        ProjectedRungeKutta("projected_rk4", RK4, False),
    )
}
