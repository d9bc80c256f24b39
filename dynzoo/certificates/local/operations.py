"""How bare operations are written as affine maps, sums and rectifiers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dynzoo.certificates.local.curves import clipped, curve_of_operation
from dynzoo.certificates.local.joins import concatenated, largest
from dynzoo.certificates.local.ops import Affine, Sum, Unrolled, diagonal, gather
from dynzoo.certificates.operations import Slot, TensorCall
from dynzoo.certificates.rules.activations import OPERATIONS
from dynzoo.certificates.rules.index_maps import INDEX_MAPS
from dynzoo.certificates.rules.operations import known

__all__ = ["add_operation"]

_ENTRYWISE = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Negative")


def add_operation(unrolled: Unrolled, inputs: list[int], call: TensorCall) -> int:
    """The slot of an operation's output.

    Raises:
        NotImplementedError: if it is none of those that local bounds know.
    """
    shape = unrolled.shapes[inputs[0]]
    name = type(call.operation).__name__
    if name == "StopGradient":
        return inputs[0]
    if name in ("Relu", "LeakyRelu"):
        slope = float(getattr(call.operation, "negative_slope", 0.0))
        if 0 <= slope <= 1:
            return unrolled.rectify(inputs[0], slope)
    elif unrolled.curves and len(inputs) == 1 and name in OPERATIONS:
        curve = curve_of_operation(call.operation)
        if curve is not None:
            return unrolled.add(curve, inputs)
    elif name == "Clip" and unrolled.curves and len(inputs) == 1:
        limits = [call.constant(v) for v in (call.operation.x_min, call.operation.x_max)]
        if max(limit.ndim for limit in limits) == 0:
            return unrolled.add(clipped(*(float(limit) for limit in limits)), inputs)
    elif name == "Concatenate":
        (parts,) = call.arguments().values()
        if all(isinstance(part, Slot) for part in parts):
            ordered = [inputs[part.index] for part in parts]
            return concatenated(unrolled, ordered, call.operation.axis)
    elif name in ("Maximum", "Minimum") and len(inputs) == 2:
        return largest(unrolled, inputs, 1.0 if name == "Maximum" else -1.0)
    elif name in ("Add", "Subtract") and len(inputs) == 2:
        if len({unrolled.shapes[i] for i in inputs}) == 1:
            first, _ = call.arguments().values()
            weights = (1.0, 1.0 if name == "Add" else -1.0)
            ordered = inputs if first == Slot(0) else inputs[::-1]
            return unrolled.add(Sum(weights), ordered)
    elif len(inputs) == 1 and name in (*_ENTRYWISE, *INDEX_MAPS):
        found = known(call, [(None, *shape)])
        gain, forward = found.bound([1.0]), lambda x: found.forward([x])
        if name in INDEX_MAPS:
            if gain <= 1:
                return unrolled.add(_selection(forward, shape), inputs)
        else:
            ends = forward(np.stack([np.zeros(shape), np.ones(shape)]))
            if ends.shape[1:] == shape:
                return unrolled.add(diagonal(ends[1] - ends[0], forward, gain), inputs)
    raise NotImplementedError(name)


def _selection(forward: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> Affine:
    """Moves entries, each to one place at most."""
    places = forward(np.arange(math.prod(shape)).reshape(1, *shape)).astype(np.int64).ravel()

    def adjoint(y: np.ndarray) -> np.ndarray:
        x = np.zeros((len(y), math.prod(shape)))
        x[:, places] = y.reshape(len(y), -1)
        return x.reshape(len(y), *shape)

    return gather(forward, adjoint)
