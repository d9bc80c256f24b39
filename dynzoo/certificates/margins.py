"""From logits to distances: how far an image must move before one class can reach another."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "SMALLEST",
    "check_labels",
    "lengths",
    "limits",
    "places",
    "product",
    "replaced",
    "shrunk",
]

# A bound below this is rounded up to it: what is left of a product that underflows is no bound.
SMALLEST = float(np.finfo(np.float64).tiny)
_FARTHEST = float(np.finfo(np.float64).max)


def product(a: Any, b: Any) -> Any:
    """Upper bound of a * b for numbers >= 0: 0 only if one of them is, however small they are."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        result = a * b * (1.0 + 1e-15)
    return np.where((a > 0) & (b > 0), np.maximum(result, SMALLEST), result)


def lengths(rows: np.ndarray) -> np.ndarray:
    """L2 norm of each row (n, ...), by its largest entry, so that no square leaves float64."""
    flat = np.abs(rows.reshape(len(rows), -1)).astype(np.float64)
    size = flat.max(axis=1, initial=0.0)
    scale = np.where((size > 0) & np.isfinite(size), size, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        result = scale * np.sqrt(np.sum((flat / scale[:, None]) ** 2, axis=1))
    return np.where(np.isfinite(size), result, np.inf)


def shrunk(radii: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Radii around images that were `moved` before the model saw them, not below 0."""
    known = np.isfinite(moved)
    return np.where(known, np.maximum(radii - np.where(known, moved, 0.0), 0.0), 0.0)


def replaced(logits: np.ndarray) -> np.ndarray:
    """Logits in float64, rows that are not finite set to 0."""
    finite = np.all(np.isfinite(logits), axis=1, keepdims=True)
    return np.where(finite, logits, 0.0).astype(np.float64)


def places(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of each label among the logits, 0 for the prediction; ties in the order of `argmax`.

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
    logits: np.ndarray, labels: np.ndarray, speeds: np.ndarray, rounding: float
) -> np.ndarray:
    r"""Distance before which class j cannot reach the label: $(z_y - z_j - 4\tau) / s_{yj}$.

    Args:
        logits: (n, K), as computed; a row that is not finite gets 0 everywhere.
        labels: integers (n,), the classes y.
        speeds: $s_{yj}$ (K, K), Lipschitz bounds of the differences of two logits.
        rounding: $\tau$, for one logit; there are two at each end of the path.

    Returns:
        float64 (n, K), not below 0; infinite at y itself, and at a class that is behind and never
        comes nearer ($s_{yj} = 0$).

    Example:

    >>> limits(np.array([[1.0, 0.0]]), np.array([0]), np.ones((2, 2)), 0.0).round(6)
    array([[inf,  1.]])
    """
    finite = np.all(np.isfinite(logits), axis=1)
    z, rows = replaced(logits), np.arange(len(logits))
    margins = z[rows, labels][:, None] - z - 4.0 * rounding
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Slightly less than the quotient, so that the closed ball is certified.
        distances = margins / speeds[labels] * (1 - 1e-12)
    # Too far to be written down is not never: that is for the classes that cannot come nearer.
    distances = np.where(speeds[labels] > 0, np.minimum(distances, _FARTHEST), distances)
    distances = np.where((margins > 0) & finite[:, None], distances, 0.0)
    distances[rows, labels] = np.where(finite, np.inf, 0.0)
    return distances


def check_labels(y: Any, images: int, classes: int) -> np.ndarray:
    """Integer labels (images,) in [0, classes).

    Raises:
        ValueError: if they are anything else.
    """
    labels = np.asarray(y)
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise ValueError(
            f"`y` must be integer labels of shape ({images},), one an image. "
            f"Received: shape {labels.shape}, dtype {labels.dtype}"
        )
    if images and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"`y` must be in [0, {classes - 1}]. Received: {labels.min()} to {labels.max()}"
        )
    return labels
