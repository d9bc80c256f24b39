r"""Fields with a first integral, $f(x) = S(x)\nabla I(x)$, and integrals with an exact secant.

$$I(x) = \tfrac12x^TQx + b^Tx + \sum_k a_k\sqrt{1 + (c_k^Tx + e_k)^2}, \qquad a_k \ge 0$$

A discrete gradient satisfies $\bar\nabla I(x, y)^T(y - x) = I(y) - I(x)$. For squares and for
$\rho(u) = \sqrt{1 + u^2}$ the difference quotient is algebraic,
$(\rho(v) - \rho(u))/(v - u) = (u + v)/(\rho(u) + \rho(v))$, so the discrete gradient

$$\bar\nabla I(x, y) = \tfrac12Q(x + y) + b + C\,[a (u + v)/(\rho(u) + \rho(v))], \quad
u = C^Tx + e,\; v = C^Ty + e$$

is exact, symmetric (order 2) and free of 0/0; no limit case is needed at y = x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Integral", "integral_field"]

# From here on the root of 1 + u^2 is |u| in float64 too.
_SQUARED = 2.0**30


@dataclass(frozen=True)
class Integral:
    """The function I of the module's formula.

    Args:
        matrix: Q, array (n, n), symmetric positive semi-definite.
        vector: b, array (n,).
        xp: array namespace.
        ridges: C, array (n, k), or ``None`` for a quadratic integral.
        offsets: e, array (k,).
        heights: a, array (k,), nonnegative.
    """

    matrix: Any
    vector: Any
    xp: Any
    ridges: Any = None
    offsets: Any = None
    heights: Any = None

    def _ridge(self, x):
        xp = self.xp
        u = xp.matmul(x, self.ridges) + self.offsets
        size = xp.abs(u)
        small = xp.minimum(size, _SQUARED)  # the square of a larger number may overflow
        return u, xp.where(size < _SQUARED, xp.sqrt(1.0 + small * small), size)

    def value(self, x):
        """I(x), without the last axis."""
        xp = self.xp
        value = xp.sum(x * (0.5 * xp.matmul(x, self.matrix) + self.vector), axis=-1)
        if self.ridges is not None:
            value = value + xp.sum(self.heights * self._ridge(x)[1], axis=-1)
        return value

    def magnitude(self, x):
        r"""The terms of I(x) without their signs: the unit of its rounding errors.

        $\tfrac12\sum_{ij}|x_iQ_{ij}x_j| + \sum_i|b_ix_i| +
        \sum_ka_k(1 + \sum_i|c_{ik}x_i| + |e_k|)$
        """
        xp = self.xp
        x_size = xp.abs(x)
        bent = 0.5 * xp.matmul(x_size, xp.abs(self.matrix)) + xp.abs(self.vector)
        value = xp.sum(x_size * bent, axis=-1)
        if self.ridges is not None:
            u = xp.matmul(x_size, xp.abs(self.ridges)) + xp.abs(self.offsets)
            value = value + xp.sum(self.heights * (1.0 + u), axis=-1)
        return value

    def secant_weights(self, x, y):
        """2a / (rho(u) + rho(v)): what makes the discrete gradient affine in y when frozen."""
        if self.ridges is None:
            return None
        return 2.0 * self.heights / (self._ridge(x)[1] + self._ridge(y)[1])

    def slope(self, x, weights):
        """The discrete gradient at (x, y) less its part in y - x, for given secant weights."""
        xp = self.xp
        slope = xp.matmul(x, self.matrix) + self.vector
        if self.ridges is not None:
            u, _ = self._ridge(x)
            slope = slope + xp.matmul(weights * u, xp.transpose(self.ridges))
        return slope

    def half_curvature(self, d, weights):
        """H d / 2: the part of the discrete gradient in d = y - x."""
        xp = self.xp
        bend = xp.matmul(d, self.matrix)
        if self.ridges is not None:
            bend = bend + xp.matmul(weights * xp.matmul(d, self.ridges), xp.transpose(self.ridges))
        return 0.5 * bend

    def gram(self, weights):
        """Function of a frame W that gives W^T H W, as ``implicit_update`` needs it."""
        xp = self.xp

        def of_frame(frame):
            gram = xp.matmul(xp.transpose(frame), xp.matmul(self.matrix, frame))
            if self.ridges is not None:
                seen = xp.matmul(xp.transpose(self.ridges), frame)
                gram = gram + xp.matmul(xp.transpose(seen) * xp.expand_dims(weights, -2), seen)
            return gram

        return of_frame

    def gradient(self, x):
        """The gradient of I."""
        return self.slope(x, self.secant_weights(x, x))

    def discrete_gradient(self, x, y):
        """The discrete gradient of I between x and y."""
        weights = self.secant_weights(x, y)
        return self.slope(x, weights) + self.half_curvature(y - x, weights)


def integral_field(network, integral):
    r"""$S(x)\nabla I(x)$ as a function of x."""
    return lambda x: network(x).apply(integral.gradient(x))
