"""What rounding adds in a bare operation, such as ``x + y`` or ``keras.ops.relu(x)``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from dynzoo.certificates.operations import Slot, TensorCall
from dynzoo.certificates.rounding.floating_point import Budget
from dynzoo.certificates.rounding.rules import Sizes, function_rounding, matrix_product
from dynzoo.certificates.rules.operations import known

__all__ = ["OPERATIONS", "operation_rounding"]


def operation_rounding(call: TensorCall, shapes: list[Sizes], inputs: list[Budget]) -> Budget:
    """The budget after the operation.

    Args:
        call: the operation and its arguments.
        shapes: of one example of each tensor.
        inputs: budgets of the computed tensors.

    Raises:
        KeyError: if nothing is known of its rounding.
    """
    rule = OPERATIONS[type(call.operation).__name__]
    return rule(call, shapes, inputs, _exact(call, shapes, inputs))


def _exact(call: TensorCall, shapes: list[Sizes], inputs: list[Budget]) -> Budget:
    """The operation without rounding."""
    bound = known(call, [(None, *shape) for shape in shapes]).bound

    def after(parts: list[np.ndarray]) -> np.ndarray:
        columns = zip(*(part.ravel() for part in parts), strict=True)
        return np.array([bound([float(v) for v in c]) for c in columns]).reshape(parts[0].shape)

    size, worst, probable = (
        after([getattr(b, name) for b in inputs]) for name in ("size", "worst", "probable")
    )
    return Budget(size, inputs[0].arithmetic, worst, probable)


def _gain(call: TensorCall, shapes: list[Sizes]) -> float:
    return known(call, [(None, *shape) for shape in shapes]).bound([1.0] * len(shapes))


def _output(call: TensorCall, shapes: list[Sizes]) -> Sizes:
    zeros = [np.zeros((1, *shape)) for shape in shapes]
    return known(call, [(None, *shape) for shape in shapes]).forward(zeros).shape[1:]


def _nothing(call: TensorCall, shapes: list[Sizes], inputs: list[Budget], y: Budget) -> Budget:
    return y


def _sum(call: TensorCall, shapes: list[Sizes], inputs: list[Budget], y: Budget) -> Budget:
    offset = 0.0
    for value in call.arguments().values():
        if not isinstance(value, Slot):
            constant = call.constant(value)
            entries = max(1, math.prod(_output(call, shapes)) // max(1, constant.size))
            offset += float(np.linalg.norm(constant)) * math.sqrt(entries)
    return y.mapped(1.0, offset).rounded()


def _times(roundings: float) -> Callable[..., Budget]:
    return lambda call, shapes, inputs, y: y.rounded(roundings)


def _mean(call: TensorCall, shapes: list[Sizes], inputs: list[Budget], y: Budget) -> Budget:
    terms = math.prod(shapes[0]) // max(1, math.prod(_output(call, shapes)))
    # The terms may all be alike.
    return inputs[0].product(terms + 1, _gain(call, shapes), coherent=True)


def _product(call: TensorCall, shapes: list[Sizes], inputs: list[Budget], y: Budget) -> Budget:
    constants = [v for v in call.arguments().values() if not isinstance(v, Slot)]
    gain = _gain(call, shapes)
    if len(constants) == 1:  # the matrix of a `matmul`
        matrix = call.constant(constants[0])
        if matrix.ndim == 2 and not isinstance(call.arguments()["x2"], Slot):
            return matrix_product(inputs[0], matrix, math.prod(shapes[0][:-1]), norm=gain)
    # A contraction in general: not more terms than numbers, which may be alike.
    entries = math.prod(shapes[0])
    outputs = math.prod(_output(call, shapes))
    return inputs[0].product(entries, gain, gain * math.sqrt(entries), outputs, coherent=True)


def _function(call: TensorCall, shapes: list[Sizes], inputs: list[Budget], y: Budget) -> Budget:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(call.operation).__name__).lower()
    alpha, b = (abs(float(getattr(call.operation, n, 0.0) or 0.0)) for n in ("alpha", "b"))
    start = max(alpha, math.sqrt(b))
    return function_rounding(name, _gain(call, shapes), shapes[0], inputs[0], start)


def _softmax(call: TensorCall, shapes: list[Sizes], inputs: list[Budget], y: Budget) -> Budget:
    entries: Any = (math.prod(shapes[0]),)
    return function_rounding("softmax", _gain(call, shapes), entries, inputs[0])


OPERATIONS: dict[str, Callable[..., Budget]] = {
    **dict.fromkeys(
        (
            *("GetItem", "Take", "Split", "Roll", "Repeat", "Flip", "Squeeze", "Reshape", "Tile"),
            *("Transpose", "ExpandDims", "Moveaxis", "Swapaxes", "StopGradient", "Pad"),
            *("Maximum", "Minimum", "Max", "Amax", "Min", "Amin", "Sort", "Clip", "Absolute"),
            *("Negative", "Concatenate", "Stack"),
        ),
        _nothing,
    ),
    **dict.fromkeys(("Add", "Subtract"), _sum),
    "Multiply": _times(1.0),
    "Divide": _times(4.0),
    "TrueDivide": _times(4.0),
    "Cast": _times(1.0),
    "Mean": _mean,
    "Sum": _mean,
    **dict.fromkeys(("Matmul", "Dot", "Einsum"), _product),
    **dict.fromkeys(
        (
            *("Relu", "Relu6", "Sigmoid", "SparseSigmoid", "Softplus", "Softsign", "SparsePlus"),
            *("Silu", "LogSigmoid", "HardSigmoid", "HardSilu", "Selu", "TanhShrink", "HardTanh"),
            *("Tanh", "LeakyRelu", "Elu", "Celu", "Squareplus", "SoftShrink", "Gelu", "Sin", "Cos"),
            *("Arctan", "Arcsinh", "Erf"),
        ),
        _function,
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Logsumexp"), _softmax),
}
