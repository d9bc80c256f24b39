"""Products that are rounded upwards, and lengths, of numbers of any size in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["SMALLEST", "lengths", "product"]

# A bound below this is rounded up to it: what is left of a product that underflows is no bound.
SMALLEST = float(np.finfo(np.float64).tiny)


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
