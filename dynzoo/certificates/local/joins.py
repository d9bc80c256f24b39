"""How layers that join branches are written as affine maps, sums and rectifiers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from dynzoo.certificates.local.ops import Affine, Sum, Unrolled, Window, gather
from dynzoo.spectral.convolutions import Axis

__all__ = ["JOINS", "concatenated", "largest"]

kl = keras.layers
Shape = tuple[int, ...]


def _sum(weights: Callable[[int], tuple[float, ...]]) -> Callable[[Unrolled, list[int], Any], int]:
    def join(unrolled: Unrolled, slots: list[int], layer: Any) -> int:
        _check_alike(unrolled, slots)
        return unrolled.add(Sum(weights(len(slots))), slots)

    return join


def largest(unrolled: Unrolled, slots: list[int], sign: float = 1.0) -> int:
    """The entrywise maximum, b + relu(a - b); with the sign -1 the minimum, a - relu(a - b)."""
    _check_alike(unrolled, slots)
    result = slots[0]
    for slot in slots[1:]:
        excess = unrolled.rectify(unrolled.add(Sum((1.0, -1.0)), [result, slot]), 0.0)
        kept = slot if sign > 0 else result
        result = unrolled.add(Sum((1.0, sign)), [kept, excess])
    return result


def concatenated(unrolled: Unrolled, slots: list[int], axis: int) -> int:
    """The slots one after the other along an axis, the batch axis counted: a sum of parts."""
    shapes = [unrolled.shapes[slot] for slot in slots]
    axis = axis % (len(shapes[0]) + 1) - 1
    sizes = [shape[axis] for shape in shapes]
    parts, before = [], 0
    for slot, shape in zip(slots, shapes, strict=True):
        parts.append(unrolled.add(_placed(shape, axis, before, sum(sizes)), [slot]))
        before += shape[axis]
    return unrolled.add(Sum((1.0,) * len(parts)), parts)


def _placed(shape: Shape, axis: int, before: int, total: int) -> Affine:
    """Entries from `before` on of an axis that is `total` long, with zeros around them."""
    size = shape[axis]
    pads = [(0, 0)] * (len(shape) + 1)
    pads[axis + 1] = (before, total - before - size)
    middle = [slice(None)] * (len(shape) + 1)
    middle[axis + 1] = slice(before, before + size)
    op = gather(lambda x: np.pad(x, pads), lambda y: y[tuple(middle)])
    if len(shape) != 3:
        return op
    axes, kernel = [Axis(n, n) for n in shape[:2]], np.eye(shape[2])
    if axis == 2:
        kernel = np.eye(size, total, before)
    else:
        axes[axis] = Axis(size, total, before=before)
    return replace(op, window=Window(kernel[None, None], (axes[0], axes[1])))


def _check_alike(unrolled: Unrolled, slots: list[int]) -> None:
    if len({unrolled.shapes[slot] for slot in slots}) != 1:
        raise NotImplementedError("its inputs have different shapes")


# Layer -> its slot, from those of its inputs; NotImplementedError where shapes differ.
JOINS: dict[type, Callable[[Unrolled, list[int], Any], int]] = {
    kl.Add: _sum(lambda count: (1.0,) * count),
    kl.Subtract: _sum(lambda count: (1.0, *(-1.0,) * (count - 1))),
    kl.Average: _sum(lambda count: (1.0 / count,) * count),
    kl.Maximum: lambda unrolled, slots, layer: largest(unrolled, slots),
    kl.Minimum: lambda unrolled, slots, layer: largest(unrolled, slots, -1.0),
    kl.Concatenate: lambda unrolled, slots, layer: concatenated(unrolled, slots, layer.axis),
}
