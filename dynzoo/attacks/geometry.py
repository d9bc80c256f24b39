r"""Geometry of the threat model: the ball of radius eps around an image, cut with the box [0, 1].

Two layers of it: tensor functions for the float32 iteration, and NumPy functions in float64 that
make the returned point lie in the ball **as a real number statement** about the float32 point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

NORMS = ("l2", "linf")
# A search stays this much inside the ball, relatively, so that rounding rarely leaves it.
INSIDE = 1.0 - 1e-6


def per_image(values: Any, x: Any) -> Any:
    """Tensor of shape (n,) as (n, 1, ...), to be combined with ``x`` of shape (n, ...)."""
    return ops.reshape(values, (-1,) + (1,) * (len(x.shape) - 1))


def lengths(x: Any, norm: str) -> Any:
    """Length of each entry of a tensor of shape (n, ...). Shape (n,)."""
    flat = ops.reshape(x, (x.shape[0], -1))
    if norm == "linf":
        return ops.max(ops.abs(flat), axis=1)
    return ops.sqrt(ops.sum(flat * flat, axis=1))


def steepest(gradient: Any, x: Any, norm: str) -> Any:
    r"""Direction of steepest ascent of unit norm that does not leave the box.

    $d = g/\|g\|_2$ for L2 and $d = \mathrm{sign}(g)$ for Linf, after the components that point out
    of $[0, 1]$ at a pixel on its bound are removed. A zero gradient gives a zero direction.

    Args:
        gradient: float tensor of shape (n, ...).
        x: float tensor of the same shape, the present point in [0, 1].
        norm: ``"l2"`` or ``"linf"``.
    """
    zero = ops.zeros_like(gradient)
    gradient = ops.where(ops.isfinite(gradient), gradient, zero)
    blocked = ops.logical_or(
        ops.logical_and(x <= 0.0, gradient < 0.0), ops.logical_and(x >= 1.0, gradient > 0.0)
    )
    return unit(ops.where(blocked, zero, gradient), norm)


def unit(gradient: Any, norm: str) -> Any:
    r"""Direction of steepest ascent of unit norm: $\mathrm{sign}(g)$ for Linf, $g/\|g\|_2$ for L2.

    A zero gradient gives a zero direction.

    Args:
        gradient: finite float tensor of shape (n, ...).
        norm: ``"l2"`` or ``"linf"``.
    """
    if norm == "linf":
        return ops.sign(gradient)
    # Dividing by the largest entry first keeps a tiny gradient from underflowing in its square.
    axes = tuple(range(1, len(gradient.shape)))
    largest = ops.max(ops.abs(gradient), axis=axes, keepdims=True)
    gradient = gradient / ops.where(largest > 0.0, largest, ops.ones_like(largest))
    length = ops.sqrt(ops.sum(gradient * gradient, axis=axes, keepdims=True))
    return gradient / ops.where(length > 0.0, length, ops.ones_like(length))


def project(x: Any, center: Any, eps: Any, norm: str) -> Any:
    """``x`` moved into the ball around ``center`` and then into the box; the box only shortens.

    Args:
        x: float tensor of shape (n, ...).
        center: float tensor of the same shape, in [0, 1].
        eps: scalar tensor, the radius.
        norm: ``"l2"`` or ``"linf"``.
    """
    delta = x - center
    if norm == "linf":
        delta = ops.clip(delta, -eps, eps)
    else:
        axes = tuple(range(1, len(x.shape)))
        length = ops.sqrt(ops.sum(delta * delta, axis=axes, keepdims=True))
        delta = delta * (eps / ops.maximum(length, eps))
    return ops.clip(center + delta, 0.0, 1.0)


def distances(a: np.ndarray, b: np.ndarray, norm: str) -> np.ndarray:
    """Distance of each row of ``a`` from the same row of ``b``, in float64. Shape (n,)."""
    result = np.empty(len(a), dtype=np.float64)
    for start in range(0, len(a), 256):  # a float64 copy of a whole test set would be large
        rows = slice(start, start + 256)
        delta = a[rows].astype(np.float64) - b[rows].astype(np.float64)
        delta = np.abs(delta.reshape(len(delta), -1))
        result[rows] = (
            delta.max(axis=1, initial=0.0) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))
        )
    return result


def enclose(x_adv: np.ndarray, x: np.ndarray, eps: float, norm: str) -> np.ndarray:
    """Float32 points within ``eps`` of ``x``, checked in float64, and within [0, 1].

    Rounding to float32 can leave the ball by a few units in the last place. Each row outside is
    drawn towards ``x`` until its float64 distance is at most ``eps``; a ball too small to hold any
    float32 neighbour gives ``x`` itself.

    Args:
        x_adv: array of shape (n, ...).
        x: array of the same shape, the centres in [0, 1].
        eps: radius, > 0.
        norm: ``"l2"`` or ``"linf"``.

    Returns:
        Float32 array of the shape of ``x``.
    """
    center = x.astype(np.float64)
    point = np.where(np.isfinite(x_adv), x_adv, center).astype(np.float64)
    if norm == "linf":
        point = np.clip(point, center - eps, center + eps)
    result = np.clip(point, 0.0, 1.0).astype(np.float32)
    for attempt in range(40):
        outside = np.flatnonzero(distances(result, x, norm) > eps)
        if outside.size == 0:
            return result
        if norm == "linf":
            bad = np.abs(result.astype(np.float64) - center) > eps
            result[bad] = np.nextafter(result[bad], x.astype(np.float32)[bad])
        else:
            excess = (
                eps / distances(result[outside], x[outside], norm) * (1.0 - 2.0**attempt * 1e-7)
            )
            factor = np.maximum(excess, 0.0).reshape((-1,) + (1,) * (x.ndim - 1))
            moved = center[outside] + factor * (result[outside] - center[outside])
            result[outside] = np.clip(moved, 0.0, 1.0).astype(np.float32)
    outside = np.flatnonzero(distances(result, x, norm) > eps)
    result[outside] = x[outside].astype(np.float32)
    return result


def random_points(
    x: np.ndarray, eps: float, norm: str, seed: int, indices: np.ndarray, restart: int
) -> np.ndarray:
    """Random point of the ball for each image, a function of (seed, image index, restart) only.

    Uniform in the Linf ball; on the L2 sphere, where nearly all of a high-dimensional ball lies.

    Args:
        x: array of shape (n, ...), the centres.
        eps: radius.
        norm: ``"l2"`` or ``"linf"``.
        seed: non-negative integer.
        indices: integer array of shape (n,): what identifies each image.
        restart: number of the restart.
    """
    result = np.empty(x.shape, dtype=np.float32)
    for row, index in enumerate(indices):
        rng = np.random.default_rng([seed, int(index), restart])
        if norm == "linf":
            delta = rng.uniform(-eps, eps, size=x.shape[1:])
        else:
            delta = rng.standard_normal(size=x.shape[1:])
            delta *= eps / max(float(np.linalg.norm(delta)), 1e-30)
        result[row] = np.clip(x[row] + delta, 0.0, 1.0)
    return result
