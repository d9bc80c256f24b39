r"""Divergence-free fields in two halves, each driven by the other.

$$x' = \sigma(Av + a),\ v' = \sigma(Bx + b) \qquad\text{or}\qquad x' = v,\ v' = \sigma(Bx + b)$$

No half of the field depends on its own variable, so the divergence is zero and every splitting
step is a shear, with a triangular Jacobian of unit diagonal.
"""

from __future__ import annotations

import math

__all__ = ["shear_field", "shear_field_float64", "shear_norm"]


def shear_field(operator, activation, x, kernel, bias):
    r"""$\sigma(Ax + b)$ over ``keras.ops``."""
    inner = operator.apply(x, kernel)
    return activation(inner if bias is None else inner + bias)


def shear_field_float64(operator, activation, x, kernel, bias):
    r"""$\sigma(Ax + b)$ in NumPy."""
    return activation.reference(operator.apply_float64(x, kernel) + bias)


def shear_norm(stiffness: float) -> float:
    r"""Largest norm of the shear $(x, v) \mapsto (x + Xv, v)$ with $\|X\| \le s$.

    $\tfrac s2 + \sqrt{1 + \tfrac{s^2}4} = e^{\operatorname{arsinh}(s/2)}$, attained.
    The inverse is a shear of the same size.
    """
    return math.exp(math.asinh(0.5 * stiffness))
