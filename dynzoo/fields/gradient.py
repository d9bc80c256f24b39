r"""Gradients of convex potentials: $f(x) = A^T\sigma(Ax + b) = \nabla \sum_i \rho((Ax + b)_i)$.

With $\rho' = \sigma$ nondecreasing and of slope at most 1, the potential is convex and f is
$1/\|A\|^2$-cocoercive, which is what makes the explicit steps of $x' = -f(x)$ non-expansive.
"""

from __future__ import annotations

from keras import ops

__all__ = ["contractive_factor", "gradient_field", "gradient_field_float64"]


def contractive_factor(step_size, norm, smallest, slope_min, slope_max=1.0) -> float:
    r"""Lipschitz constant of $x - hA^T\sigma(Ax+b)$: $\max(|1-h a s_{min}^2|, |1-h s_{max}^2|)$.

    The Jacobian is $I - hA^TDA$ with $D$ diagonal in [slope_min, slope_max], a symmetric matrix
    with spectrum in the interval that the two terms span.
    """
    low = step_size * slope_min * smallest**2
    high = step_size * slope_max * norm**2
    return max(abs(1.0 - low), abs(1.0 - high))


def gradient_field(operator, activation, x, kernel, bias, scale=1.0):
    r"""$s A^T\sigma(Ax + b)$ over ``keras.ops``; the scale goes to the kernel, the small factor."""
    inner = operator.apply(x, kernel)
    if bias is not None:
        # not "+": TensorFlow fuses this one with the matrix product before it
        inner = ops.add(inner, bias)
    return operator.adjoint(activation(inner), kernel * scale)


def gradient_field_float64(operator, activation, x, kernel, bias):
    r"""$A^T\sigma(Ax + b)$ in NumPy."""
    inner = activation.reference(operator.apply_float64(x, kernel) + bias)
    return operator.adjoint_float64(inner, kernel)
