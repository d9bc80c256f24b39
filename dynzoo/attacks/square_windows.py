"""Windows of the Square attack: their sizes, the L2 pattern inside, and where a search starts."""

from __future__ import annotations

import math

import numpy as np

# The share of pixels in a window is halved once the number of a query exceeds each of these.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def layout(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels that an input of shape ``shape`` (without the batch) is taken for.

    (h, w, c) is itself and (h, w) has one channel. A flat vector is a square image of one channel
    where its length is a perfect square, else an image of one row.

    Raises:
        ValueError: if the shape has another rank.

    Example:

    >>> layout((32, 32, 3)), layout((64,)), layout((12,))
    ((32, 32, 3), (8, 8, 1), (1, 12, 1))
    """
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        return (side, side, 1) if side * side == shape[0] else (1, shape[0], 1)
    if len(shape) == 2:
        return (shape[0], shape[1], 1)
    if len(shape) == 3:
        return (shape[0], shape[1], shape[2])
    raise ValueError(
        "`x` must have shape (n, d), (n, h, w) or (n, h, w, c) for the Square attack. "
        f"Received: images of shape {shape}"
    )


def window_share(query: int, p_init: float) -> float:
    """Share of the pixels that the window of a query covers: it falls as the search goes on."""
    return p_init / 2.0 ** sum(query > limit for limit in _HALVINGS)


def window_size(share: float, height: int, width: int, norm: str) -> tuple[int, int]:
    """Rows and columns of a window: square, or as long as it takes where the image is narrow.

    For L2 they are odd and at least 3 where the image has room for it.

    Example:

    >>> window_size(0.8, 32, 32, "linf"), window_size(0.5, 1, 12, "linf")
    ((29, 29), (1, 6))
    """
    area = share * height * width
    side = max(round(math.sqrt(area)), 1)
    rows = min(side, height) if side <= width else min(round(area / width), height)
    columns = min(side, width) if side <= height else min(round(area / height), width)
    if norm == "l2":
        rows, columns = (min(max(n, 3) | 1, m) for n, m in ((rows, height), (columns, width)))
    return max(rows, 1), max(columns, 1)


def _peak(rows: int, columns: int) -> np.ndarray:
    """Nested rectangles around the middle, the k-th of them of height 1 / k^2."""
    result = np.zeros((rows, columns))
    top, left = rows // 2, columns // 2
    for k in range(max(top, left) + 1):
        result[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** 2
    return result


def bump(rows: int, columns: int) -> np.ndarray:
    """Pattern of unit norm: a peak in the upper half of a window, and a hollow in the lower."""
    half = rows // 2
    parts = [_peak(half, columns)] if half else []
    parts.append(-_peak(rows - half, columns))
    pattern = np.concatenate([part / np.linalg.norm(part) for part in parts])
    return pattern / np.linalg.norm(pattern)


def bump_table(rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """The patterns with upper and lower, and with left and right halves. Shape (2, h, w).

    Each lies in the upper left corner of an image of zeros, so that its shape does not change with
    the window's.
    """
    table = np.zeros((2, height, width), dtype=np.float32)
    table[0, :rows, :columns] = bump(rows, columns)
    table[1, :rows, :columns] = bump(columns, rows).T
    return table


def start(rng: np.random.Generator, shape: tuple[int, int, int], norm: str) -> np.ndarray:
    """First perturbation of an image of ``shape``, of norm 1, before it is cut to the box.

    Linf: vertical stripes, each channel of each column +1 or -1. L2: a tiling of about five by
    five patterns with a random sign for each channel of each tile.
    """
    height, width, channels = shape
    if norm == "linf":
        return np.broadcast_to(rng.choice([-1.0, 1.0], size=(1, width, channels)), shape)
    rows, columns = max(height // 5, 1), max(width // 5, 1)
    down, right = height // rows, width // columns
    pattern = bump(rows, columns) if rng.random() < 0.5 else bump(columns, rows).T
    signs = rng.choice([-1.0, 1.0], size=(down, right, channels))
    tiles = np.kron(signs, pattern[:, :, None])
    result = np.zeros(shape)
    top, left = (height - down * rows) // 2, (width - right * columns) // 2
    result[top : top + down * rows, left : left + right * columns] = tiles
    return result / np.linalg.norm(result)
