r"""The search behind ``audit``: a power iteration on $J^TJ$ whose base point climbs.

Compiled for the model's backend; the slopes that it returns are float32 and only rank the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.inference.packed import Packed, pack, unpacked
from dynzoo.inference.passes import compiled
from dynzoo.utils.jobs import run_jobs

__all__ = ["length", "search", "start_images"]

# Starting distances of a pair; None is the distance of two images.
_DISTANCES = (None, 1e-1, 1e-2, 1e-3)
# At a smaller distance a float32 difference quotient is mostly rounding.
_CLOSEST = 1e-3
# Starts that climb together: in one process, and where processes share them, whose number then
# does not matter.
_STARTS_AT_ONCE, _STARTS_A_JOB = 64, 8


def search(
    model: Any,
    images: np.ndarray,
    classes: int,
    pairs: int,
    steps: int,
    restarts: int,
    seed: int,
    jobs: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fastest pair that each start has seen.

    Args:
        model: built Keras model.
        images: to start from, as ``start_images`` gives them.
        classes: number of logits.
        pairs: starts of one run.
        steps: iterations.
        restarts: runs.
        seed: of the starts.
        jobs: number of processes that climb from a few starts each, or ``None``: those of a run
            together, up to 64.

    Returns:
        Pairs (m, 2, ...), their slopes (m,), and whether a start followed all logits (False: the
        difference of two classes) (m,), with m = pairs * restarts.
    """
    spread, packed = _spread(images), None if jobs in (None, 1) else pack(model, [model])
    at_once = _STARTS_AT_ONCE if jobs is None else _STARTS_A_JOB
    ends, slopes = np.zeros((0, 2, *images.shape[1:]), np.float32), np.zeros(0)
    whole = np.zeros(0, bool)
    for restart in range(restarts):
        starts = _starts(images, pairs, classes, np.random.default_rng([seed, restart]))
        if restart:
            _near_the_best(starts, ends, slopes)
        whole = np.concatenate([whole, ~starts[3].any(axis=1)])
        cuts = [slice(first, first + at_once) for first in range(0, pairs, at_once)]
        tasks = [([array[cut] for array in starts], steps, spread) for cut in cuts]
        if packed is None:
            found = [_climb(model, *task) for task in tasks]
        else:
            found = run_jobs(
                _climb_packed,
                [partial(tuple, (packed, *task)) for task in tasks],
                jobs or 1,
                environment={"KERAS_BACKEND": packed.backend},
            )
        ends = np.concatenate([ends, *(pair for pair, _ in found)])
        slopes = np.concatenate([slopes, *(speed for _, speed in found)])
    return ends, slopes, whole


def start_images(model: Any, x: Any, pairs: int, seed: int) -> np.ndarray:
    """Float32 images to start from, as many as are needed."""
    shape = tuple(model.inputs[0].shape[1:])
    if x is None:
        return np.random.default_rng(seed).uniform(size=(2 * pairs, *shape)).astype(np.float32)
    x = x if isinstance(x, np.ndarray) else backend.to_numpy(x)
    if x.shape[1:] != shape or x.ndim == 0 or len(x) < 2 or x.dtype.kind != "f":
        raise ValueError(
            f"`x` must be at least 2 float images of shape (n, {', '.join(map(str, shape))}). "
            f"Received: shape {x.shape}, dtype {x.dtype}"
        )
    rows = np.random.default_rng(seed).permutation(len(x))[: 2 * pairs]
    images = x[rows].astype(np.float32)
    if not np.isfinite(images).all():
        raise ValueError("`x` must be finite. Received: an array with NaN or infinity")
    return images


def _spread(images: np.ndarray) -> float:
    """Typical distance of two images."""
    apart = (images[1:] - images[:-1]).reshape(len(images) - 1, -1)
    return max(float(np.median(np.linalg.norm(apart, axis=1))), _CLOSEST)


def length(a: np.ndarray) -> np.ndarray:
    """L2 norm of each row, (n, 1, ...)."""
    return np.sqrt(np.sum(a**2, axis=tuple(range(1, a.ndim)), keepdims=True))


def _starts(
    images: np.ndarray, pairs: int, classes: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Midpoints, unit directions, half distances (n, 1, ...), and +-1 at two classes (n, K)."""
    first, second = images[rng.integers(len(images), size=(2, pairs))]
    apart = (first - second) / 2
    distances = np.array([_DISTANCES[k % len(_DISTANCES)] or 0.0 for k in range(pairs)])
    distances = distances.reshape((-1,) + (1,) * (images.ndim - 1))
    far = (distances == 0) & (length(apart) > _CLOSEST)
    random = rng.standard_normal(first.shape)
    direction = np.where(far, apart, random)
    half = np.where(far, length(apart), np.maximum(distances, _CLOSEST) / 2)
    towards = np.zeros((pairs, classes), np.float32)
    for k in range(pairs):
        if k // len(_DISTANCES) % 2 or pairs == 1:
            continue
        i, j = rng.choice(classes, size=2, replace=False)
        towards[k, i], towards[k, j] = 1.0, -1.0
    point = np.where(far, (first + second) / 2, first)
    direction = direction / np.maximum(length(direction), 1e-30)
    return [np.asarray(a, np.float32) for a in (point, direction, half, towards)]


def _near_the_best(starts: list[np.ndarray], ends: np.ndarray, slopes: np.ndarray) -> None:
    """Every second start from the best pairs of the runs before (its direction stays new)."""
    points = starts[0]
    best = np.argsort(-slopes)[: max(1, len(points) // 4)]
    rows = np.arange(0, len(points), 2)
    points[rows] = ends[np.resize(best, len(rows))].mean(axis=1)


def _climb_packed(
    packed: Packed, starts: list[np.ndarray], steps: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    # The classes of models are registered where they are imported.
    import dynzoo.layers
    import dynzoo.models  # noqa: F401

    return _climb(unpacked(packed), starts, steps, spread)


def _climb(
    model: Any, starts: list[np.ndarray], steps: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the iteration; the fastest pair that each start has seen, and its slope."""
    move = compiled(model, "audit", _make_step)
    state = [ops.convert_to_tensor(a) for a in starts[:3]]
    towards = ops.convert_to_tensor(starts[3])
    best = ops.convert_to_tensor(np.zeros((len(starts[0]), 2, *starts[0].shape[1:]), np.float32))
    slope = ops.convert_to_tensor(np.zeros(len(starts[0]), np.float32))
    for k in range(steps):
        # First the direction, then the base point in steps that grow and shrink again.
        eta = 0.2 * spread * (k / steps) * (1 - k / steps)
        eta = ops.convert_to_tensor(np.asarray(eta, np.float32))
        *state, best, slope = move(*state, best, slope, eta, towards)
    return backend.to_numpy(best), backend.to_numpy(slope).astype(np.float64)


def _make_step(infer: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """One iteration as a pure function: judge the present pair, remember it, move on."""

    def step(
        weights: Any,
        point: Any,
        direction: Any,
        half: Any,
        best: Any,
        best_slope: Any,
        eta: Any,
        towards: Any,
    ) -> tuple[Any, ...]:
        count = point.shape[0]
        axes = tuple(range(1, len(point.shape)))
        per_start = (-1,) + (1,) * len(axes)

        def dot(a: Any, b: Any) -> Any:
            return ops.sum(a * b, axis=axes, keepdims=True)

        def unit(a: Any, otherwise: Any) -> Any:
            size = ops.max(ops.abs(a), axis=axes, keepdims=True)
            known = ops.logical_and(size > 0.0, ops.isfinite(size))
            a = a / ops.where(known, size, ops.ones_like(size))
            a = a / ops.sqrt(ops.maximum(dot(a, a), 1e-30))
            return ops.where(known, a, otherwise)

        single = ops.max(ops.abs(towards), axis=-1) > 0.0
        ends = ops.concatenate([point + half * direction, point - half * direction], axis=0)

        def half_square(both: Any) -> tuple[Any, Any]:
            logits = ops.cast(infer(weights, both), "float32")
            moved = logits[:count] - logits[count:]
            along = ops.square(ops.sum(moved * towards, axis=-1))
            squares = ops.where(single, along, ops.sum(ops.square(moved), axis=-1))
            return 0.5 * ops.sum(squares), squares

        (_, squares), gradient = backend.value_and_grad(half_square)(ends)
        ahead, behind = ends[:count], ends[count:]
        apart = ahead - behind
        slope = ops.sqrt(squares / ops.maximum(ops.reshape(dot(apart, apart), (-1,)), 1e-30))
        better = slope > best_slope  # never for a NaN
        pair = ops.stack([ahead, behind], axis=1)
        best = ops.where(ops.reshape(better, (*per_start, 1)), pair, best)
        best_slope = ops.where(better, slope, best_slope)

        # The gradient with respect to the second end is -J^T w.
        plus, minus = gradient[:count], -gradient[count:]
        total = ops.maximum(ops.reshape(squares, per_start), 1e-30)
        growth = half * dot(plus + minus, direction) / total - 1.0
        growth = ops.where(ops.isfinite(growth), growth, ops.zeros_like(growth))
        half = ops.maximum(half * ops.exp(0.2 * ops.clip(growth, -1.0, 1.0)), _CLOSEST / 2)
        point = point + eta * unit(plus - minus, ops.zeros_like(point))
        return point, unit(plus + minus, direction), half, best, best_slope

    return step
