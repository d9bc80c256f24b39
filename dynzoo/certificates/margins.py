"""From logits to distances: how far an image must move before one class can reach another."""

from __future__ import annotations

import math

import numpy as np

from dynzoo.certificates.rounding.bound import KINDS, RoundingBound
from dynzoo.certificates.upper import product

__all__ = [
    "distances_behind",
    "limits",
    "needed_margins",
    "pair_errors",
    "places",
    "reach",
    "replaced",
    "rounded_limits",
    "shrunk",
]

_FARTHEST = float(np.finfo(np.float64).max)


def shrunk(radii: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Radii around images that were ``moved`` before the model saw them, not below 0."""
    known = np.isfinite(moved)
    return np.where(known, np.maximum(radii - np.where(known, moved, 0.0), 0.0), 0.0)


def replaced(logits: np.ndarray) -> np.ndarray:
    """Logits in float64, rows that are not finite set to 0."""
    finite = np.all(np.isfinite(logits), axis=1, keepdims=True)
    return np.where(finite, logits, 0.0).astype(np.float64)


def places(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of each label among the logits, 0 for the prediction; ties in the order of ``argmax``.

    Args:
        logits: (n, K), finite.
        labels: integers (n,) in [0, K).

    Returns:
        Integers (n,) in [0, K).

    Example:

    >>> places(np.array([[0.1, 0.7, 0.2]]), np.array([2]))
    array([1])
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return np.sum((logits > own) | ((logits == own) & earlier), axis=1)


def limits(
    logits: np.ndarray,
    labels: np.ndarray,
    speeds: np.ndarray,
    error: np.ndarray | float = 0.0,
) -> np.ndarray:
    r"""Distance before which class j cannot reach the label: $(z_y - z_j - e_{yj}) / s_{yj}$.

    Args:
        logits: (n, K), as computed; a row that is not finite gets 0 everywhere.
        labels: integers (n,), the classes y.
        speeds: $s_{yj}$ (K, K), Lipschitz bounds of the differences of two logits, with what their
            errors grow by.
        error: $e_{yj}$ (n, K), of the difference of the logits of y and j at both ends of the
            path together.

    Returns:
        float64 (n, K), not below 0; infinite at y itself, and at a class that is behind and never
        comes nearer ($s_{yj} = 0$).

    Example:

    >>> limits(np.array([[1.0, 0.0]]), np.array([0]), np.ones((2, 2))).round(6)
    array([[inf,  1.]])
    """
    finite = np.all(np.isfinite(logits), axis=1)
    z, rows = replaced(logits), np.arange(len(logits))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        margins = z[rows, labels][:, None] - z - error
        # Slightly less than the quotient, so that the closed ball is certified.
        distances = margins / speeds[labels] * (1 - 1e-12)
    # Too far to be written down is not never: that is for the classes that cannot come nearer.
    distances = np.where(speeds[labels] > 0, np.minimum(distances, _FARTHEST), distances)
    distances = np.where((margins > 0) & finite[:, None], distances, 0.0)
    distances[rows, labels] = np.where(finite, np.inf, 0.0)
    return distances


def rounded_limits(
    logits: np.ndarray,
    labels: np.ndarray,
    speed: float,
    pair_distances: np.ndarray,
    bound: RoundingBound,
    anchor_distances: np.ndarray,
    kinds: tuple[str, ...],
) -> np.ndarray:
    r"""``limits`` of computed logits: what each kind and each anchor of a rounding bound leaves.

    With the errors $a + bs$ of the body and $a' + b's$ of the head at distance s from an anchor,
    the difference of two logits is off by at most
    $e_{ij}(s) = \|w_i - w_j\| (a + bs) + \sqrt2 (a' + b's)$ here and $e_{ij}(s + r)$ at distance
    r, and the answer holds while the margin exceeds both and the movement.

    Args:
        logits: (n, K), as computed.
        labels: integers (n,).
        speed: Lipschitz bound of the body.
        pair_distances: (K, K).
        bound: the ``RoundingBound``.
        anchor_distances: s (n, anchors).
        kinds: kinds of ``rounding_bound.KINDS``; the best of them counts.

    Returns:
        float64 (n, K), not below 0.
    """
    rows, best = np.arange(len(logits)), np.zeros(logits.shape)
    speeds = product(speed, pair_distances)
    for kind in kinds:
        for k in range(len(bound.anchors)):
            s = anchor_distances[:, k]
            error, growth = pair_errors(labels, pair_distances, bound, s, kind, k)
            found = limits(logits, labels, speeds + growth, error)
            best = np.maximum(best, np.minimum(found, reach(bound, s, k)[:, None]))
    best[rows, labels] = np.where(np.all(np.isfinite(logits), axis=1), np.inf, 0.0)
    return best


def needed_margins(
    speed: float,
    pair_distances: np.ndarray,
    bound: RoundingBound,
    anchor_distances: np.ndarray,
    kinds: tuple[str, ...],
    eps: float,
) -> np.ndarray:
    r"""Lead $z_y - z_j$ of computed logits from which on ``rounded_limits`` is above a radius.

    Args:
        speed: Lipschitz bound of the body.
        pair_distances: (K, K).
        bound: the ``RoundingBound``.
        anchor_distances: largest distance (anchors,) of an image; what is nearer needs no more.
        kinds: kinds of ``rounding_bound.KINDS``; the best of them counts.
        eps: the radius, >= 0.

    Returns:
        float64 (K, K): row y, column j; -inf where j is y, inf where no lead is enough.
    """
    classes = np.arange(len(pair_distances))
    needed = np.full(pair_distances.shape, np.inf)
    speeds = product(speed, pair_distances)
    for kind in kinds:
        for k in range(len(bound.anchors)):
            s = np.full(len(classes), anchor_distances[k])
            error, growth = pair_errors(classes, pair_distances, bound, s, kind, k)
            lead = error + (speeds + growth) * eps
            # More than all that is rounded here and in `limits`.
            lead = np.where(reach(bound, s, k)[:, None] > eps, lead * (1 + 1e-11), np.inf)
            needed = np.minimum(needed, lead)
    needed[classes, classes] = -np.inf
    return needed


def distances_behind(
    logits: np.ndarray,
    speed: float,
    pair_distances: np.ndarray,
    bound: RoundingBound,
    anchor_distances: np.ndarray,
    kinds: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray]:
    r"""Bounds of how far an image is, at least, from one for which a class is the answer.

    $s_y(x) = \max_j (f_j(x) - f_y(x)) / (L \|w_j - w_y\|)$ of the real logits f, which moves by no
    more than the image does. A pair whose difference cannot change takes no part.

    Args:
        logits: (n, K), as computed.
        speed: L, Lipschitz bound of the body.
        pair_distances: (K, K).
        bound: the ``RoundingBound``.
        anchor_distances: (n, anchors).
        kinds: kinds of ``rounding_bound.KINDS``; the best of them counts.

    Returns:
        float64 (n, K) twice, below and above $s_y$; infinite for logits that say nothing.
    """
    speeds = product(speed, pair_distances)
    moves = speeds > 0
    np.fill_diagonal(moves, False)
    z, low, high = replaced(logits), np.zeros(logits.shape), np.zeros(logits.shape)
    for y in range(logits.shape[1]):
        rivals = np.flatnonzero(moves[y])
        if not rivals.size:
            continue  # constant: any number does
        labels = np.full(len(z), y)
        error = np.full((len(z), rivals.size), np.inf)
        for kind in kinds:
            for k in range(len(bound.anchors)):
                s = anchor_distances[:, k]
                both = pair_errors(labels, pair_distances, bound, s, kind, k)[0][:, rivals]
                # What counts both ends of a path is divided by what that multiplied.
                one = both / KINDS[kind]
                error = np.minimum(error, np.where(reach(bound, s, k)[:, None] > 0, one, np.inf))
        with np.errstate(over="ignore", invalid="ignore"):
            gaps = z[:, rivals] - z[:, [y]]
            slack = error + 1e-12 * np.abs(gaps)
            low[:, y] = ((gaps - slack) / speeds[y, rivals]).max(axis=1)
            high[:, y] = ((gaps + slack) / speeds[y, rivals]).max(axis=1)
    finite = np.all(np.isfinite(logits), axis=1)[:, None]
    low = np.nan_to_num(low, nan=-np.inf, posinf=_FARTHEST, neginf=-np.inf)
    high = np.nan_to_num(high, nan=np.inf, posinf=np.inf, neginf=-_FARTHEST)
    return np.where(finite, low, -np.inf), np.where(finite, high, np.inf)


def pair_errors(
    labels: np.ndarray,
    pair_distances: np.ndarray,
    bound: RoundingBound,
    s: np.ndarray,
    kind: str,
    anchor: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Errors (n, K) of the differences to each label's logit, and their growth (K, K) per radius.

    The errors count both ends of a path that has no length yet.
    """
    (a, b), (head_a, head_b) = bound.body[kind][:, anchor], bound.head[kind][:, anchor]
    with np.errstate(over="ignore", invalid="ignore"):
        error = pair_distances[labels] * (a + b * s)[:, None]
        error = KINDS[kind] * (error + math.sqrt(2.0) * (head_a + head_b * s)[:, None])
    growth = pair_distances * b + math.sqrt(2.0) * head_b
    np.fill_diagonal(growth, 0.0)
    return np.nan_to_num(error, nan=np.inf), growth


def reach(bound: RoundingBound, s: np.ndarray, anchor: int) -> np.ndarray:
    """How far (n,) images may move before numbers are too large for anything to be claimed."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        room = bound.arithmetic.largest - bound.peak[0, anchor] - bound.peak[1, anchor] * s
        far = np.nan_to_num(room / bound.peak[1, anchor], nan=np.inf, posinf=np.inf)
    return np.where(room > 0, far, 0.0)
