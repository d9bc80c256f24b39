r"""Hamiltonian fields $y' = J\nabla H(y)$ on $y = (q, p)$, with $J(q, p) = (p, -q)$.

Two families of H, both sums of ridge functions with $\rho' = \sigma$:

* separable, $H = 1^T\rho(Ap + a) + 1^T\rho(Bq + b)$: $q' = A^T\sigma(Ap + a)$,
  $p' = -B^T\sigma(Bq + b)$. Each half is a shear, so explicit splittings are symplectic.
* joint, $H = 1^T\rho(Ay + b)$: $y' = JA^T\sigma(Ay + b)$. A block-diagonal A is the separable case.
  An explicit Euler step is symplectic only where $AJA^T = 0$ (then $Ay$ is constant along the
  flow and the step is the flow); any other A takes an implicit symplectic method.

q and p are the two halves of the last axis. As $J^2 = -I$, the matrices $aI + bJ$ multiply like
the complex numbers $a + ib$.
"""

from __future__ import annotations

import numpy as np
from keras import ops

__all__ = ["canonical_matrix", "complex_multiply", "halves", "join", "rotate"]


def halves(x, xp=ops):
    """(q, p); ``xp`` is ``keras.ops`` or ``numpy``."""
    return xp.split(x, 2, axis=-1)


def join(q, p, xp=ops):
    """The state of the halves q and p."""
    return xp.concatenate([q, p], axis=-1)


def rotate(x, xp=ops):
    """J x = (p, -q)."""
    q, p = halves(x, xp)
    return join(p, -q, xp)


def complex_multiply(x, real, imaginary, xp=ops):
    """(a I + b J) x."""
    return real * x + imaginary * rotate(x, xp)


def canonical_matrix(features: int) -> np.ndarray:
    """J as a float64 matrix on columns, for checks of $M^TJM = J$."""
    return rotate(np.eye(features), np).T
