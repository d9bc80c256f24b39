"""Singular values of float64 matrices as bounds: of one matrix, and the largest over many.

Every function scales by a power of two first, so that squares neither overflow nor vanish: a
bound is 0 for an exactly zero matrix and for no other. All rounding is counted on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "ROUNDOFF",
    "dense_min_singular_value_float64",
    "dense_norm_float64",
    "gram_slack",
    "largest_eigenvalue",
    "nearest_orthonormal_float64",
    "proved_above",
    "ritz_value",
    "scaled_back",
    "unit_entries_float64",
]

ROUNDOFF = 2.0**-53
# One float64 SVD is backward stable: computed singular values are off by a small multiple of
# n * eps * sigma_max. 1e-12 covers every matrix size a float64 SVD is feasible for.
_SVD_SLACK = 1.0 + 1e-12
# Eigenvalues that exceed the largest one found by no more than this need not be told apart.
_TIE = 1.0 + 1e-11
# Where the eigenvalues of a Gram matrix are the cheaper way to the largest singular value: of
# every matrix from this side on, and of long ones from a smaller side.
_GRAM_SIDE, _GRAM_LONG_SIDE, _GRAM_ASPECT = 320, 128, 4
# From this side on the largest eigenvalue is guessed and then proved, in place of computing all.
_GUESSED_SIDE = 320
_LANCZOS_STEPS = 60
_EXCESSES = (1e-10, 1e-9, 1e-8)


def unit_entries_float64(kernel) -> tuple[np.ndarray, int]:
    """A float64 copy over a power of two, largest entry in [1/2, 1), and the exponent.

    Raises:
        ValueError: if an entry is NaN or infinite.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    largest = float(np.max(np.abs(kernel), initial=0.0))
    if not math.isfinite(largest):
        raise ValueError(
            f"A kernel must hold finite numbers. Received: NaN or infinity in shape {kernel.shape}"
        )
    exponent = math.frexp(largest)[1]
    with np.errstate(under="ignore"):  # what is 1e-308 times smaller than the largest entry
        return np.ldexp(kernel, -exponent), exponent


def scaled_back(value: float, exponent: int, up: bool = True) -> float:
    """value * 2**exponent, rounded up (or down); infinity where float64 ends (its largest)."""
    with np.errstate(over="ignore", under="ignore"):
        scaled = float(np.ldexp(value, exponent))
    if 0.0 < value and scaled < np.finfo(np.float64).tiny:  # the one case that rounds
        scaled = float(np.nextafter(scaled, np.inf if up else -np.inf))
    return scaled if up else min(max(scaled, 0.0), float(np.finfo(np.float64).max))


def dense_norm_float64(kernel) -> float:
    """Upper bound of the spectral norm of a matrix, by a float64 SVD.

    Of a matrix that is large or much longer than wide, by the largest eigenvalue of its Gram matrix
    with all of its rounding: a fraction of the time, and some 1e-9 above the norm.
    """
    kernel, exponent = unit_entries_float64(kernel)
    if kernel.size == 0:
        return 0.0
    if kernel.ndim == 2:
        side, inner = sorted(kernel.shape)
        long = side >= _GRAM_LONG_SIDE and inner >= _GRAM_ASPECT * side
        if long or side >= _GRAM_SIDE:
            rows = kernel if len(kernel) == side else kernel.T
            squared = largest_eigenvalue((rows @ rows.T)[None], 0.0) * gram_slack(side, inner)
            return scaled_back(math.sqrt(squared) * _SVD_SLACK, exponent)
    return scaled_back(float(np.linalg.norm(kernel, ord=2)) * _SVD_SLACK, exponent)


def dense_min_singular_value_float64(kernel) -> float:
    """Lower bound of the smallest of the ``min(rows, columns)`` singular values."""
    kernel, exponent = unit_entries_float64(kernel)
    if kernel.size == 0:
        return 0.0
    singular_values = np.linalg.svd(kernel, compute_uv=False)
    smallest = float(singular_values[-1] - (_SVD_SLACK - 1.0) * singular_values[0])
    return scaled_back(max(0.0, smallest), exponent, up=False)


def nearest_orthonormal_float64(kernel) -> np.ndarray:
    """Closest matrix with orthonormal rows (or columns, whichever are fewer): the polar factor."""
    near = _nearest_of_near(np.asarray(kernel, dtype=np.float64))
    if near is not None:
        return near
    kernel, _ = unit_entries_float64(kernel)
    u, _, vt = np.linalg.svd(kernel, full_matrices=False)
    return u @ vt


def _nearest_of_near(kernel: np.ndarray) -> np.ndarray | None:
    r"""The same by $X(I + \tfrac12E + \tfrac38E^2)$, of order 3, where E = I - X^TX is small.

    After training, or after float16, it is: three products in place of an SVD, twenty times faster.
    """
    rows = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T
    for _ in range(4):
        with np.errstate(all="ignore"):
            e = np.eye(len(rows)) - rows @ rows.T
            far = float(np.linalg.norm(e))
        if not far < 0.1:
            return None
        rows = rows + e @ (0.5 * rows + 0.375 * (e @ rows))
        if far**3 < 1e-16:
            return rows if kernel.shape[0] <= kernel.shape[1] else rows.T
    return None


def gram_slack(side: int, inner: int) -> float:
    r"""Factor that covers the rounding of $G = SS^*$ and of what ``largest_eigenvalue`` does.

    Forming G from sums of ``inner`` products moves it by at most $4(r + 4)u\|S\|_F^2$, a Cholesky
    factorisation that ends is that of a matrix at most $4(q + 2)u\,\mathrm{tr}\,G$ away, and both
    $\|S\|_F^2$ and the trace are at most q times the largest eigenvalue.
    """
    return _TIE * (1.0 + ROUNDOFF * side * (4.0 * inner + 4.0 * side + 40.0))


def largest_eigenvalue(grams: np.ndarray, known: float, ceiling: float = math.inf) -> float:
    r"""The largest eigenvalue over a stack and ``known``; times ``gram_slack``, an upper bound.

    $\lambda I - G$ has a Cholesky factor only if no eigenvalue of G exceeds $\lambda$. That costs
    a tenth of the eigenvalues, which are computed only where it fails: for matrices in random
    order about ln(n) times. Of a large one the largest is guessed by Lanczos' method, and a
    little more than the guess proved in the same way: what is returned is too large by up to 1e-8.

    Args:
        grams: positive semi-definite matrices (n, q, q), real or complex.
        known: largest eigenvalue so far, 0 at the start.
        ceiling: gives up (returns infinity) as soon as an eigenvalue is not below it.
    """
    side = grams.shape[-1]
    if side == 1:
        largest = max(known, float(grams.real.max(initial=0.0)))
        return largest if largest < ceiling else math.inf
    for gram in grams:
        if known > 0.0 and _is_above(known * _TIE, gram.copy()):
            continue
        found = None
        if side >= _GUESSED_SIDE:
            guess = ritz_value(gram.__matmul__, side, gram.dtype)
            found = proved_above(guess, gram.copy, _EXCESSES)
        known = max(known, float(np.linalg.eigvalsh(gram)[-1]) if found is None else found)
        if known >= ceiling:
            return math.inf
    return known


def proved_above(
    guess: float, gram: Callable[[], np.ndarray], excesses: Sequence[float]
) -> float | None:
    """A little more than the largest eigenvalue, proved as in ``largest_eigenvalue``, or nothing.

    Nothing rests on the guess: where it is too low, no factor exists.

    Args:
        guess: about the largest eigenvalue.
        gram: gives the positive semi-definite matrix, anew each time: it is overwritten.
        excesses: shares of the guess to add to it, tried in turn.
    """
    for excess in excesses:
        value = guess * (1.0 + excess)
        if value > 0.0 and _is_above(value, gram()):
            return value
    return None


def _is_above(value: float, gram: np.ndarray) -> bool:
    """Whether a Cholesky factor of value * I - G exists; overwrites the matrix."""
    from scipy.linalg import lapack  # costs as much as all of `import dynzoo`

    factorise = lapack.zpotrf if np.iscomplexobj(gram) else lapack.dpotrf
    shifted, diagonal = gram.T, np.arange(len(gram))  # in Fortran order: LAPACK works in place
    np.negative(shifted, out=shifted)
    shifted[diagonal, diagonal] += value
    return factorise(shifted, lower=1, clean=0, overwrite_a=1)[1] == 0


def ritz_value(
    product: Callable[[np.ndarray], np.ndarray],
    side: int,
    dtype: Any = np.float64,
    most: int = _LANCZOS_STEPS,
) -> float:
    """The largest eigenvalue from below, by Lanczos' method from a fixed start.

    Args:
        product: the Hermitian map of a vector.
        side: length of a vector.
        dtype: its numbers.
        most: steps at most; fewer where ten of them added less than 1e-13 of the value.
    """
    vector = np.random.default_rng(0).standard_normal(side).astype(dtype)
    basis = np.zeros((min(most, side), side), dtype)
    diagonal: list[float] = []
    beside: list[float] = []
    value = -math.inf
    for k in range(len(basis)):
        basis[k] = vector / np.linalg.norm(vector)
        vector = product(basis[k])
        diagonal.append(float(np.vdot(basis[k], vector).real))
        for _ in range(2):  # against all before, twice: the basis stays orthogonal
            vector = vector - basis[: k + 1].T @ (basis[: k + 1].conj() @ vector)
        length = float(np.linalg.norm(vector))
        spanned = not length > 1e-14 * abs(diagonal[0])  # all that the start can reach
        if spanned or k % 10 == 9 or k + 1 == len(basis):
            small = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
            before, value = value, float(np.linalg.eigvalsh(small)[-1])
            if spanned or value - before <= 1e-13 * abs(value):
                break
        beside.append(length)
    return value
