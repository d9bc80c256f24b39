"""Norms and nearest orthonormal matrices over ``keras.ops``, for constraints during training.

Matrices stand on the last two axes: what is said of one holds for each of a stack. Pure functions,
traceable under jit on every backend. Their norms are upper bounds (Gram iteration, never power
iteration), up to float32 rounding.
"""

from __future__ import annotations

import math

import numpy as np
from keras import ops

from dynzoo import backend

__all__ = ["conv_norm", "dense_norm", "newton_schulz", "orthonormalize", "polar_iteration"]

# The Taylor coefficients of 1 / sqrt(1 - e).
_INVERSE_ROOT = [math.comb(2 * k, k) / 4.0**k for k in range(8)]
# The series converges for |e| < 1; stay clear of the edge.
_SERIES_RADIUS = 0.9
# The first left out term is below 1e-6 for |e| up to this.
_LAST_ROUND = 0.2
# Enough for singular values of 1e-6 times the largest, in float32 as small as they mean anything.
_MOST_ROUNDS = 16
_NEWTON_SCHULZ = [(1.5, -0.5, 0.0)]
# Rounding makes a zero eigenvalue of G slightly negative, and each step enlarges it: after some
# 20 steps on one Gram matrix a rank-deficient kernel would blow up. G is formed anew before that.
_STEPS_A_GRAM = 5


# --- keras.ops, for training ---------------------------------------------------------------


def _smaller_gram(matrix):
    """The smaller of A A^T and A^T A, over the last two axes."""
    transposed = ops.swapaxes(matrix, -1, -2)
    if matrix.shape[-2] > matrix.shape[-1]:
        return ops.matmul(transposed, matrix)
    return ops.matmul(matrix, transposed)


def _gram_bound(gram, iterations: int, modulus=ops.abs, square=None):
    r"""Upper bound of the largest eigenvalue of each positive semi-definite matrix.

    $\lambda_{max}(G) \le \|G^{2^t}\|^{2^{-t}}$ for every norm; the smaller of the Frobenius and
    the maximal row-sum norm is used. Each power is divided by its trace, with these scales gathered
    as logarithms, so that nothing overflows. A zero matrix gives a bound near 0.

    Args:
        gram: symmetric matrices, or what ``modulus`` and ``square`` know to read.
        iterations: how often they are squared.
        modulus: the sizes of the entries of the matrices.
        square: the matrices squared; by default ``G G``.
    """
    tiny = 1e-30
    log_bound = 0.0
    for step in range(iterations):
        scale = ops.maximum(ops.trace(gram, axis1=-2, axis2=-1), tiny)
        log_bound = log_bound + 0.5**step * ops.log(scale)
        gram = gram / scale[..., None, None]
        gram = ops.matmul(gram, gram) if square is None else square(gram)
    entries = modulus(gram)
    row_sums = ops.max(ops.sum(entries, axis=-1), axis=-1)
    frobenius = ops.sqrt(ops.sum(ops.square(entries), axis=(-1, -2)))
    size = ops.maximum(ops.minimum(row_sums, frobenius), tiny)
    return ops.exp(log_bound + 0.5**iterations * ops.log(size))


# A Hermitian matrix P + iQ, P symmetric and Q antisymmetric, in one real matrix: A = P + Q. As the
# real matrix [[P, -Q], [Q, P]] of twice the side, its square would take four times the products.


def _hermitian_gram(real, imaginary):
    r"""A of the smaller of $S^HS$ and $SS^H$, for $S = R + iJ$, over the last two axes."""
    if real.shape[-2] > real.shape[-1]:
        rows, left, right = -2, ops.swapaxes(real, -1, -2), imaginary
    else:
        rows, left, right = -1, imaginary, ops.swapaxes(real, -1, -2)
    both = ops.concatenate([real, imaginary], axis=rows)
    both_transposed = ops.swapaxes(both, -1, -2)
    pair = (both_transposed, both) if rows == -2 else (both, both_transposed)
    mixed = ops.matmul(left, right)
    return ops.matmul(*pair) + mixed - ops.swapaxes(mixed, -1, -2)


def _hermitian_modulus(a):
    r"""$\sqrt{P_{jk}^2 + Q_{jk}^2}$: twice the squares is $A_{jk}^2 + A_{kj}^2$."""
    squares = ops.square(a)
    return ops.sqrt(0.5 * (squares + ops.swapaxes(squares, -1, -2)))


def _hermitian_square(a):
    r"""A of the squared matrix: $(P + iQ)^2$ has $P^2 - Q^2 = AA^T + PQ - QP$ and $PQ + QP$."""
    transposed = ops.swapaxes(a, -1, -2)
    twice_pq = 0.5 * ops.matmul(a + transposed, a - transposed)
    return ops.matmul(a, transposed) + twice_pq


def _unit_entries(array, axis=(-2, -1)):
    """An array over its largest entry, and that entry: squares neither overflow nor vanish."""
    array = ops.convert_to_tensor(array)
    size = ops.maximum(ops.max(ops.abs(array), axis=axis, keepdims=axis is not None), 1e-30)
    return array / size, size


def dense_norm(matrix, iterations: int = 8):
    """Upper bound of a matrix's spectral norm by Gram iteration (traceable; float32).

    Reference: Delattre et al., "Efficient bound of Lipschitz constant for convolutional layers by
    Gram iteration", ICML 2023.
    """
    matrix, size = _unit_entries(matrix)
    return size[..., 0, 0] * ops.sqrt(_gram_bound(_smaller_gram(matrix), iterations))


def conv_norm(kernel, spatial, padding: str = "zero", iterations: int = 8):
    """Upper bound of a convolution's operator norm by Gram iteration per frequency (traceable).

    Meaning of the arguments: see ``conv_norm_float64``.
    """
    height, width, channels_in, channels_out = kernel.shape
    kernel, size = _unit_entries(kernel, axis=None)
    grow = (height - 1, width - 1) if padding == "zero" else (0, 0)
    rows, columns = int(spatial[0]) + grow[0], int(spatial[1]) + grow[1]
    # The symbol is a DFT of only k*k taps: a small constant matrix does it on every backend.
    u = np.repeat(np.arange(rows), columns // 2 + 1)
    v = np.tile(np.arange(columns // 2 + 1), rows)
    i = np.repeat(np.arange(height), width)
    j = np.tile(np.arange(width), height)
    phase = 2 * np.pi * (np.outer(u, i) / rows + np.outer(v, j) / columns)
    taps = ops.reshape(kernel, (height * width, channels_in * channels_out))
    shape = (-1, channels_in, channels_out)
    real = ops.reshape(ops.matmul(ops.cast(np.cos(phase), kernel.dtype), taps), shape)
    imaginary = ops.reshape(ops.matmul(ops.cast(-np.sin(phase), kernel.dtype), taps), shape)
    gram = _hermitian_gram(real, imaginary)
    bounds = _gram_bound(gram, iterations, _hermitian_modulus, _hermitian_square)
    return size * ops.sqrt(ops.max(bounds))


def newton_schulz(matrix, steps: int):
    r"""Newton-Schulz iteration $X \leftarrow \tfrac32 X - \tfrac12 X X^T X$ to the polar factor.

    Maps each singular value by $s \mapsto \tfrac32 s - \tfrac12 s^3$: every value in
    $[0, \sqrt3)$ lands in $[0, 1]$ and non-zero ones converge to 1 quadratically.
    """
    return polar_iteration(matrix, _NEWTON_SCHULZ * steps)


def polar_iteration(matrix, coefficients):
    r"""Iterates $X \leftarrow (aI + bG + cG^2) X$ with $G = XX^T$, one (a, b, c) a step.

    The factors commute with G, so all steps run on the smaller Gram matrix, and the (long) matrix
    itself is multiplied once at the end: two large products for a few steps.
    """
    for i in range(0, len(coefficients), _STEPS_A_GRAM):
        factor = _polar_factor(_smaller_gram(matrix), coefficients[i : i + _STEPS_A_GRAM])
        matrix = _apply_left(factor, matrix)
    return matrix


def _polar_factor(gram, coefficients):
    """Product of the factors aI + bG + cG^2 of ``polar_iteration``."""
    identity = ops.eye(gram.shape[-1], dtype=gram.dtype)
    total = identity
    for i, (a, b, c) in enumerate(coefficients):
        factor = a * identity + b * gram
        if c:
            factor = factor + c * ops.matmul(gram, gram)
        total = factor if i == 0 else ops.matmul(factor, total)
        if i + 1 < len(coefficients):
            gram = ops.matmul(ops.matmul(factor, gram), factor)
    return total


def _apply_left(factor, matrix):
    """Multiplies the shorter side of a matrix by a symmetric factor."""
    if matrix.shape[-2] > matrix.shape[-1]:
        return ops.matmul(matrix, factor)
    return ops.matmul(factor, matrix)


def orthonormalize(matrix, steps: int = 2):
    r"""Polar factor of a matrix by a polynomial iteration, with more rounds where it is far.

    A round takes $X \leftarrow X p(E)$, $E = I - X^TX$, with p the first eight terms of
    $(1 - e)^{-1/2} = 1 + \tfrac12e + \tfrac38e^2 + \dots$: of order 8, for one product less than
    two Newton-Schulz steps, which are of order 4. The truncated series stays below the root for
    $-1 < e \le 1$, so that no singular value comes out above 1. If $\|E\| \le 0.2$ is proved for
    a round, it ends within 1e-6 of orthonormal and was the last. A tiny singular value grows by 3.1
    a round, whatever its scale; an exact 0 stays 0.

    Args:
        matrix: array (..., rows, columns); its shorter side becomes orthonormal. A round that one
            matrix of a stack needs is taken by all, and changes those that are near by rounding.
        steps: every two are a round that is always taken; up to ``_MOST_ROUNDS`` follow on need.
    """
    matrix, far = _first_round(matrix)
    for _ in range((steps - 1) // 2):
        matrix, far = _round(matrix)
    matrix, _ = backend.repeat_while(
        lambda matrix, far: ops.any(far > _LAST_ROUND),
        lambda matrix, far: _round(matrix),
        (matrix, far),
        _MOST_ROUNDS,
    )
    return matrix


def _root_bound(power, exponent: float):
    """Upper bound of |E| from a power of the symmetric E: a norm of it to ``exponent``."""
    row_sums = ops.max(ops.sum(ops.abs(power), axis=-1, keepdims=True), axis=-2, keepdims=True)
    frobenius = ops.sqrt(ops.sum(ops.square(power), axis=(-2, -1), keepdims=True))
    return ops.minimum(row_sums, frobenius) ** exponent


def _first_round(matrix):
    """X p(E) of ``orthonormalize`` for any X, and an upper bound of |E|."""
    unit, size = _unit_entries(matrix)
    gram = _smaller_gram(unit)
    count = gram.shape[-1]
    trace = ops.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    mean = ops.maximum(trace / count, 1e-30)
    squared = ops.square(size) * mean
    # the mean of the squared singular values tells a kernel of another scale, which is brought to 1
    scale = ops.where((squared > 0.3) & (squared < 2.0), size, ops.rsqrt(mean))
    identity = ops.eye(count, dtype=gram.dtype)
    e = identity - ops.square(scale) * gram
    e2 = ops.matmul(e, e)
    bound = _root_bound(e2, 0.5)
    # where eigenvalues may lie beyond the series: a shorter X, whose E is in [0, 1]
    shift = ops.where(bound > _SERIES_RADIUS, bound, ops.zeros_like(bound))
    shrink = 1.0 / (1.0 + shift)
    e2 = ops.square(shrink) * (e2 + (2.0 * shift) * e + ops.square(shift) * identity)
    e = shrink * (e + shift * identity)
    series, far = _inverse_root(identity, e, e2)
    return _apply_left(scale * ops.sqrt(shrink) * series, unit), far


def _round(matrix):
    """X p(E) of ``orthonormalize`` for an X with a norm of at most 1, and an upper bound of |E|."""
    gram = _smaller_gram(matrix)
    identity = ops.eye(gram.shape[-1], dtype=gram.dtype)
    e = identity - gram
    series, far = _inverse_root(identity, e, ops.matmul(e, e))
    return _apply_left(series, matrix), far


def _inverse_root(identity, e, e2):
    """Eight terms of the series of (I - E)^(-1/2), and an upper bound of |E|."""
    e3, e4 = ops.matmul(e2, e), ops.matmul(e2, e2)
    c = _INVERSE_ROOT
    low = c[0] * identity + c[1] * e + c[2] * e2 + c[3] * e3
    high = c[4] * identity + c[5] * e + c[6] * e2 + c[7] * e3
    return low + ops.matmul(e4, high), _root_bound(e4, 0.25)
