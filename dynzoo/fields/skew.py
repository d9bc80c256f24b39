r"""State-dependent skew matrices: $v^TS(x)v = 0$ for every v, the source of every invariant here.

$S(x)v$ is tangent to a sphere for $v = x$, to a plane $c^Tx = const$ for $v = c$, and to a level
set of I for $v = \nabla I(x)$. The entries come from a network with one hidden layer,
$\alpha(x) = V\sigma(Ax + b) + c$; the skewness does not depend on what the network gives.

The functions take an array namespace ``xp``: ``keras.ops``, or NumPy for float64 references.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["FullSkew", "PlanesSkew", "SkewNetwork", "euclidean_gram", "implicit_update"]


@dataclass(frozen=True)
class FullSkew:
    """A skew matrix with all its entries.

    Args:
        matrix: array (..., n, n), skew in its last two axes.
        xp: array namespace.
    """

    matrix: Any
    xp: Any

    def apply(self, v):
        """S v, for v (..., n) or (n,)."""
        return self.xp.matmul(self.matrix, self.xp.expand_dims(v, -1))[..., 0]

    def frame(self):
        """W in S = W K W^T: here the identity."""
        return self.xp.eye(self.matrix.shape[-1], dtype=self.matrix.dtype)

    def project(self, v):
        """W^T v."""
        return v

    def lift(self, z):
        """W K z."""
        return self.apply(z)

    def times_core(self, gram):
        """gram K."""
        return self.xp.matmul(gram, self.matrix)


@dataclass(frozen=True)
class PlanesSkew:
    r"""A sum of r rotations, $S = \sum_k \alpha_k (p_kq_k^T - q_kp_k^T)$, in O(nr) operations.

    It is $WKW^T$ with $W = [P, Q]$ and the skew 2r x 2r core $K = [[0, D], [-D, 0]]$,
    $D = diag(\alpha)$, so that linear systems with S are of size 2r.

    Args:
        speeds: the alpha, array (..., r).
        directions: W, array (n, 2r).
        xp: array namespace.
    """

    speeds: Any
    directions: Any
    xp: Any

    def _split(self, a):
        r = self.speeds.shape[-1]
        return a[..., :r], a[..., r:]

    def apply(self, v):
        """S v, for v (..., n) or (n,)."""
        return self.lift(self.project(v))

    def frame(self):
        """W in S = W K W^T."""
        return self.directions

    def project(self, v):
        """W^T v."""
        return self.xp.matmul(v, self.directions)

    def lift(self, z):
        """W K z."""
        first, second = self._split(z)
        turned = self.xp.concatenate([self.speeds * second, -self.speeds * first], axis=-1)
        return self.xp.matmul(turned, self.xp.transpose(self.directions))

    def times_core(self, gram):
        """gram K."""
        first, second = self._split(gram)
        speeds = self.xp.expand_dims(self.speeds, -2)
        return self.xp.concatenate([-second * speeds, first * speeds], axis=-1)


@dataclass(frozen=True)
class SkewNetwork:
    r"""The map $x \mapsto S(x)$.

    Args:
        apply: ``apply(x, kernel)``, the linear map A of a dynzoo operator.
        activation: elementwise function.
        kernel: kernel of A, with ``units`` outputs.
        bias: array (units,).
        out_kernel: V^T, array (units, n * n), or (units, r) with planes.
        out_bias: c.
        directions: array (n, 2r), or ``None`` for a full matrix M - M^T.
        xp: array namespace.
    """

    apply: Callable
    activation: Callable
    kernel: Any
    bias: Any
    out_kernel: Any
    out_bias: Any
    directions: Any
    xp: Any

    def __call__(self, x) -> FullSkew | PlanesSkew:
        xp = self.xp
        hidden = self.activation(self.apply(x, self.kernel) + self.bias)
        entries = xp.matmul(hidden, self.out_kernel) + self.out_bias
        if self.directions is not None:
            return PlanesSkew(entries, self.directions, xp)
        n = x.shape[-1]
        # the batch size may be open, and sizes that TensorFlow does not know are tensors
        matrix = xp.reshape(entries, (-1, *xp.shape(x)[1:-1], n, n))
        return FullSkew(matrix - xp.swapaxes(matrix, -1, -2), xp)


# Largest size (Frobenius norm) of a core: a system and its inverse may both be as large as that,
# and their product has to stay well below one over the rounding unit. Float32, float64.
_LARGEST = 2.0**10, 2.0**24
_OVERFLOW = 1e37


def euclidean_gram(xp) -> Callable:
    """The Gram matrix W^T W of a frame: that of the integral |x|^2 / 2."""
    return lambda frame: xp.matmul(xp.transpose(frame), frame)


def _frobenius(matrix, xp):
    """Norm of matrices in the last two axes, which are kept; without squares that overflow."""
    unit = xp.max(xp.abs(matrix), axis=(-2, -1), keepdims=True)
    # NaN where an entry is, for no comparison with NaN is true
    scale = xp.where(unit < _OVERFLOW, xp.maximum(unit, 1e-30), xp.ones_like(unit))
    share = matrix / scale
    return scale * xp.sqrt(xp.sum(share * share, axis=(-2, -1), keepdims=True))


def implicit_update(skew, step_size, slope, gram):
    r"""The d with $d = hS(g + \tfrac12Hd)$: one linear system of size n (full) or 2r (planes).

    With $z = W^T(g + \tfrac12Hd)$ it is $(I - \tfrac h2 W^THW K)z = W^Tg$ and $d = hWKz$. For
    H positive semi-definite the eigenvalues of $W^THWK$ are imaginary, hence the system is
    regular for every step. With $g = x$ and H = I, x + d is the Cayley transform of S on x.

    A step with which the 1 in the system would be lost to rounding is shortened: the Cayley
    transform has long turned by all but 180 degrees. Where S overflows, d is 0 or not finite.

    Args:
        skew: S, a ``FullSkew`` or ``PlanesSkew``.
        step_size: h.
        slope: g, array (..., n).
        gram: function of a frame W that gives W^T H W, array (m, m) or (..., m, m).
    """
    xp = skew.xp
    core = 0.5 * step_size * skew.times_core(gram(skew.frame()))
    size = _frobenius(core, xp)
    # of infinity and NaN, which is no number, nothing may go into the solver, or it raises
    finite = size < _OVERFLOW
    largest = _LARGEST[str(core.dtype).endswith("float64")]
    share = largest / xp.maximum(xp.where(finite, size, xp.ones_like(size)), largest)
    core = xp.where(finite, share * core, xp.zeros_like(core))
    system = xp.eye(core.shape[-1], dtype=core.dtype) - core
    right = xp.expand_dims(skew.project(slope), -1)
    right = xp.where(xp.abs(right) < _OVERFLOW, right, xp.zeros_like(right))
    # Keras on PyTorch multiplies float64 in float32; NumPy, which has no `cast`, takes any mixture.
    if system.dtype != right.dtype and hasattr(xp, "cast"):
        system = xp.cast(system, right.dtype)
    return step_size * share[..., 0] * skew.lift(xp.linalg.solve(system, right)[..., 0])
