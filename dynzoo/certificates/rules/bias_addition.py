"""Sums that Keras on TensorFlow takes for the addition of a bias, and adds along another axis.

Its ``add(x1, x2)`` squeezes an ``x2`` with one axis longer than 1, and adds it along the last axis
of ``x1`` if that is as long, else along the second. In an image alone, or in a batch as large as an
image is wide, that may be another sum than the one of NumPy, of other backends and of other
batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynzoo import backend

__all__ = ["misread_sum"]

Shape = Sequence[int | None]


def misread_sum(first: Shape, second: Shape) -> str | None:
    """Why this backend's sum of two tensors is not always that of NumPy; None if it is.

    Args:
        first: shape of the first summand; ``None`` stands for the size of the batch.
        second: shape of the second.

    Example:

    >>> misread_sum((None, 3, 3), (None, 1, 3)) is None
    True
    """
    if backend.name() != "tensorflow":
        return None
    sizes = sorted({1, *(n for n in (*first, *second) if n is not None)})
    batch = next((n for n in sizes if _misread(_filled(first, n), _filled(second, n))), None)
    if batch is None:
        return None
    return (
        f"Keras on TensorFlow adds a tensor of shape {tuple(second)} to one of {tuple(first)} "
        f"along another axis where the batch is {batch}. Subtract its negative instead."
    )


def _filled(shape: Shape, batch: int) -> tuple[int, ...]:
    return tuple(batch if n is None else n for n in shape)


def _misread(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    long = [n for n in second if n > 1]
    if len(first) < 2 or len(long) != 1 or long[0] not in (first[1], first[-1]):
        return False
    try:
        full = np.broadcast_shapes(first, second)
    except ValueError:  # no sum of NumPy's
        return True
    axis = len(first) - 1 if first[-1] == long[0] else 1
    return full != first or second.index(long[0]) + len(first) - len(second) != axis
