"""Operations that only move entries of a tensor: slices, reshapes, rolls, repeats, pads.

Each is a NumPy function that is also run on the numbers of the entries. Where entry i of the input
ends up then gives the exact norm, the root of the largest number of places, and shows whether the
examples of a batch stay apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dynzoo.certificates.operations import TensorCall
from dynzoo.certificates.rules.linear import Shape

__all__ = ["INDEX_MAPS", "Mover", "index_gain", "inner_axes"]

Mover = Callable[[np.ndarray], np.ndarray]


def index_gain(call: TensorCall, move: Mover, shape: Shape, fill: float | None = None) -> float:
    """Norm of a map that moves or repeats entries, after a check that it acts on each example.

    Args:
        call: the operation, for the error.
        move: the map on arrays with the batch axis first.
        shape: of its input.
        fill: number that stands for entries that come from nowhere, if there are any.

    Raises:
        UncertifiableLayerError: if it moves entries from one example of a batch to another.
    """
    inner = tuple(int(n or 1) for n in shape[1:])
    size = math.prod(inner)
    places = np.zeros(0)
    # Two sizes of the batch: what fits one by chance does not fit the other.
    for n in (2, 3):
        numbers = np.arange(1.0, n * size + 1.0).reshape(n, *inner)
        try:
            moved = move(numbers)
        except (ValueError, IndexError) as error:
            raise call.refuse(f"it does not fit a batch of {n} examples ({error}).") from None
        places = np.asarray(moved[0]) if moved.shape[:1] == (n,) else np.zeros(0)
        known = places != fill if fill is not None else np.full(places.shape, True)
        inside = (places >= 1) & (places <= size)
        shifted = [places + i * size * known for i in range(n)]
        if moved.shape[:1] != (n,) or not inside[known].all() or not np.array_equal(moved, shifted):
            raise call.refuse("it moves entries along the batch axis.")
        places = places[known]
    counts = np.bincount(places.astype(np.int64).ravel(), minlength=1)
    most = int(counts.max(initial=0))
    return math.sqrt(most) if most <= 1 else math.sqrt(most) * (1 + 1e-15)


def inner_axes(call: TensorCall, axis: Any, rank: int) -> tuple[int, ...]:
    """Axes without the sign, none of them that of the batch.

    It is an explicit test, as a step along the batch may look harmless on a batch of one size.
    """
    if axis is None:
        raise call.refuse("without an axis it does not leave the batch axis alone.")
    axes = tuple(int(a) % rank for a in np.atleast_1d(axis))
    if 0 in axes:
        raise call.refuse("it works along the batch axis.")
    return axes


def _get_item(call: TensorCall, rank: int) -> Mover:
    key = call.arguments()["key"]
    keys = tuple(key) if isinstance(key, (tuple, list)) else (key,)
    for part in keys:
        number = isinstance(part, (int, np.integer)) and not isinstance(part, bool)
        if not (part is None or part is Ellipsis or isinstance(part, slice) or number):
            raise call.refuse(f"the index {part!r:.40} is no slice or number.")
        bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else ()
        if any(not (b is None or isinstance(b, (int, np.integer))) for b in bounds):
            raise call.refuse("a bound of a slice is a tensor.")
    whole = isinstance(keys[0], slice) and (
        keys[0].start in (None, 0) and keys[0].stop is None and keys[0].step in (None, 1)
    )
    used = sum(part is not None and part is not Ellipsis for part in keys)
    if not (whole or (keys[0] is Ellipsis and used < rank)):
        raise call.refuse("it takes a part of the batch.")
    return lambda x: x[keys]


def _take(call: TensorCall, rank: int) -> Mover:
    (axis,) = inner_axes(call, call.operation.axis, rank)
    given = np.asarray(call.constant(call.arguments()["indices"]))
    indices = given.astype(np.int64)
    if not np.array_equal(given, indices) or indices.min(initial=0) < 0:
        raise call.refuse("its indices are not whole numbers >= 0.")
    return lambda x: np.take(x, indices, axis=axis)


def _split(call: TensorCall, rank: int) -> Mover:
    operation, pick = call.operation, call.pick or 0
    (axis,) = inner_axes(call, operation.axis, rank)
    places = operation.indices_or_sections
    if not isinstance(places, int):
        places = [int(i) for i in places]
    return lambda x: np.split(x, places, axis=axis)[pick]


def _roll(call: TensorCall, rank: int) -> Mover:
    axes = inner_axes(call, call.operation.axis, rank)
    shift = call.operation.shift
    return lambda x: np.roll(x, shift, axes if np.ndim(shift) else axes[0])


def _repeat(call: TensorCall, rank: int) -> Mover:
    (axis,) = inner_axes(call, call.operation.axis, rank)
    repeats = np.asarray(call.operation.repeats)
    return lambda x: np.repeat(x, repeats, axis=axis)


def _flip(call: TensorCall, rank: int) -> Mover:
    axes = inner_axes(call, call.operation.axis, rank)
    return lambda x: np.flip(x, axes)


def _squeeze(call: TensorCall, rank: int) -> Mover:
    axes = inner_axes(call, call.operation.axis, rank)
    return lambda x: np.squeeze(x, axes)


def _with_attributes(function: Callable[..., np.ndarray], *names: str) -> Any:
    """A NumPy function that takes what the operation holds under these names."""

    def make(call: TensorCall, rank: int) -> Mover:
        given = (getattr(call.operation, name) for name in names)
        values = [tuple(value) if isinstance(value, list) else value for value in given]
        return lambda x: function(x, *values)

    return make


# By the name of the operation's class.
INDEX_MAPS: dict[str, Callable[[TensorCall, int], Mover]] = {
    "GetItem": _get_item,
    "Take": _take,
    "Split": _split,
    "Roll": _roll,
    "Repeat": _repeat,
    "Flip": _flip,
    "Squeeze": _squeeze,
    "Reshape": _with_attributes(np.reshape, "newshape"),
    "Transpose": _with_attributes(np.transpose, "axes"),
    "ExpandDims": _with_attributes(np.expand_dims, "axis"),
    "Moveaxis": _with_attributes(np.moveaxis, "source", "destination"),
    "Swapaxes": _with_attributes(np.swapaxes, "axis1", "axis2"),
    "Tile": _with_attributes(np.tile, "repeats"),
    "StopGradient": _with_attributes(lambda x: x),
}
