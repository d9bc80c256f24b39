r"""The two parts of Presnov's decomposition $f = \nabla U + X_S$ with $x^TX_S(x) = 0$.

Compositions of flows of the two kinds are dense among continuous maps (founding paper, section on
universal approximation); each kind alone is a structure: the sphere part keeps |x|.
"""

from __future__ import annotations

__all__ = ["signed_gradient_field", "sphere_field"]


def sphere_field(network):
    r"""$X_S(x) = S(x)x$ as a function of x, for a ``dynzoo.fields.skew.SkewNetwork``."""
    return lambda x: network(x).apply(x)


def signed_gradient_field(apply, adjoint, activation, kernel, bias, scales):
    r"""$\nabla U(x) = A^T diag(\alpha)\sigma(Ax + b)$ as a function of x.

    It is the gradient of $U = \alpha^T\rho(Ax + b)$, $\rho' = \sigma$. The signs of alpha are
    free, so U is not convex and the field may expand; scaling the outputs instead
    (diag(alpha) A^T) would not be a gradient.
    """
    return lambda x: adjoint(scales * activation(apply(x, kernel) + bias), kernel)
