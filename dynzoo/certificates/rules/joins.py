"""What joins branches: how the bounds of the branches combine, and the float64 forward.

All bounds are with respect to the model's input, so the branches move together: if branch i moves
by at most L_i |dx|, a sum moves by at most the sum of the L_i, and a concatenation by the root of
the sum of squares. An elementwise maximum moves in each entry by no more than the branch that
moves most there, hence again by the root of the sum of squares.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from dynzoo.certificates.operations import TensorCall
from dynzoo.certificates.rules.bias_addition import misread_sum
from dynzoo.certificates.rules.linear import Shape, refuse
from dynzoo.certificates.rules.operations import known

__all__ = ["JOINS", "Join"]

kl = keras.layers


class Join(NamedTuple):
    """``bound(layer, bounds, shapes)`` and ``forward(layer, arrays)`` over all branches."""

    bound: Callable[[Any, list[float], list[Shape]], float]
    forward: Callable[[Any, list[np.ndarray]], np.ndarray]


def _broadcast(layer: Any, bounds: list[float], shapes: list[Shape]) -> list[float]:
    """A branch that is repeated r times to fit the others counts sqrt(r) times."""
    if len({len(shape) for shape in shapes}) != 1:
        raise refuse(layer, f"its inputs have different ranks: {shapes}.")
    sizes = [tuple(int(n or 1) for n in shape[1:]) for shape in shapes]
    full = math.prod(np.broadcast_shapes(*sizes))
    return [
        bound * math.sqrt(full // math.prod(size))
        for bound, size in zip(bounds, sizes, strict=True)
    ]


def _sum(layer: Any, bounds: list[float], shapes: list[Shape]) -> float:
    return sum(_broadcast(layer, bounds, shapes))


def _checked_sum(layer: Any, bounds: list[float], shapes: list[Shape]) -> float:
    """``_sum``, where Keras adds one tensor after the other as ``bias_addition`` says."""
    bound = _sum(layer, bounds, shapes)
    total, *others = [tuple(int(n or 1) for n in shape[1:]) for shape in shapes]
    for inner in others:
        reason = misread_sum((None, *total), (None, *inner))
        if reason is not None:
            raise refuse(layer, reason)
        total = np.broadcast_shapes(total, inner)
    return bound


def _root_of_squares(layer: Any, bounds: list[float], shapes: list[Shape]) -> float:
    return math.hypot(*_broadcast(layer, bounds, shapes))


def _concatenation(layer: Any, bounds: list[float], shapes: list[Shape]) -> float:
    if layer.axis % len(shapes[0]) == 0:
        raise refuse(layer, "it concatenates along the batch axis.")
    return math.hypot(*bounds)


def _folded(operation: Any) -> Callable[[Any, list[np.ndarray]], np.ndarray]:
    return lambda layer, arrays: functools.reduce(operation, arrays)


def _shapes(arrays: list[np.ndarray]) -> list[Shape]:
    return [(None, *array.shape[1:]) for array in arrays]


JOINS: dict[type, Join] = {
    # A bare operation of one tensor or several.
    TensorCall: Join(
        lambda call, bounds, shapes: known(call, shapes).bound(bounds),
        lambda call, arrays: known(call, _shapes(arrays)).forward(arrays),
    ),
    kl.Add: Join(_checked_sum, _folded(np.add)),
    kl.Subtract: Join(_sum, _folded(np.subtract)),
    kl.Average: Join(
        lambda layer, bounds, shapes: _checked_sum(layer, bounds, shapes) / len(bounds),
        lambda layer, arrays: functools.reduce(np.add, arrays) / len(arrays),
    ),
    kl.Maximum: Join(_root_of_squares, _folded(np.maximum)),
    kl.Minimum: Join(_root_of_squares, _folded(np.minimum)),
    kl.Concatenate: Join(
        _concatenation, lambda layer, arrays: np.concatenate(arrays, axis=layer.axis)
    ),
}
