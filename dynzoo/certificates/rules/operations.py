"""What is known of each bare operation: a bound over all its tensors, and its float64 forward.

Bounds are with respect to the model's input, as in `joins`: tensors move together. Operations are
recognised by their class in Keras, of which only those that Keras itself defines count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from scipy import special

from dynzoo import spectral
from dynzoo.certificates.errors import UncertifiableLayerError
from dynzoo.certificates.operations import Slot, TensorCall
from dynzoo.certificates.rules.activations import OPERATIONS, Activation
from dynzoo.certificates.rules.bias_addition import misread_sum
from dynzoo.certificates.rules.contractions import contraction_gain
from dynzoo.certificates.rules.index_maps import INDEX_MAPS, index_gain, inner_axes
from dynzoo.certificates.rules.linear import Shape

__all__ = ["Known", "check_known", "known"]


class Known(NamedTuple):
    """`bound(bounds of the tensors)` and `forward(arrays)`."""

    bound: Callable[[list[float]], float]
    forward: Callable[[list[np.ndarray]], np.ndarray]


OperationRule = Callable[[TensorCall, list[Shape]], Known]


def _scaled(gain: float, function: Callable[[np.ndarray], np.ndarray]) -> Known:
    """A map of one tensor."""
    return Known(lambda bounds: gain * bounds[0], lambda arrays: function(arrays[0]))


# --- entry by entry -------------------------------------------------------------------------


def _constant(call: TensorCall, value: Any, shape: Shape) -> np.ndarray:
    """A constant of the rank of the inner axes or less: it must not reach the batch axis."""
    array = call.constant(value)
    if array.ndim == len(shape) and array.shape[:1] == (1,):
        array = array[0]
    if array.ndim >= len(shape) and array.ndim:
        raise call.refuse(f"its constant of shape {array.shape} varies along the batch axis.")
    return array


def _inner(shape: Shape) -> tuple[int, ...]:
    return tuple(int(n or 1) for n in shape[1:])


def _spread(call: TensorCall, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(first, second)
    except ValueError:
        raise call.refuse(f"shapes {first} and {second} do not fit.") from None


def _pair(call: TensorCall, shapes: list[Shape]) -> tuple[Any, Any]:
    """The two operands: a `Slot`, or a constant in float64."""
    arguments = call.arguments()
    first, second = arguments["x1"], arguments["x2"]
    if isinstance(first, Slot) and isinstance(second, Slot):
        if len(shapes[0]) != len(shapes[1]):
            raise call.refuse(f"its inputs have different ranks: {shapes}.")
        return first, second
    operands = (
        v if isinstance(v, Slot) else _constant(call, v, shapes[0]) for v in (first, second)
    )
    return tuple(operands)  # type: ignore[return-value]


def _elementwise(combine: str, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Any:
    """A sum or a maximum of two tensors, or of a tensor and a constant, that are spread to fit.

    A tensor of which each entry is used r times counts sqrt(r) times.
    """

    def rule(call: TensorCall, shapes: list[Shape]) -> Known:
        first, second = _pair(call, shapes)
        sizes = [
            _inner(shapes[v.index]) if isinstance(v, Slot) else v.shape for v in (first, second)
        ]
        full = math.prod(_spread(call, *sizes))
        repeats = {
            v.index: full // max(1, math.prod(size))
            for v, size in zip((first, second), sizes, strict=True)
            if isinstance(v, Slot)
        }

        def bound(bounds: list[float]) -> float:
            moved = [
                b if repeats[i] <= 1 else b * math.sqrt(repeats[i]) * (1 + 1e-15)
                for i, b in enumerate(bounds)
            ]
            return sum(moved) if combine == "sum" else math.hypot(*moved)

        def forward(arrays: list[np.ndarray]) -> np.ndarray:
            a, b = (arrays[v.index] if isinstance(v, Slot) else v for v in (first, second))
            return function(a, b)

        return Known(bound, forward)

    return rule


def _add(call: TensorCall, shapes: list[Shape]) -> Known:
    arguments = call.arguments()
    summands = [
        shapes[v.index] if isinstance(v, Slot) else call.constant(v).shape
        for v in (arguments["x1"], arguments["x2"])
    ]
    reason = misread_sum(*summands)
    if reason is not None:
        raise call.refuse(reason)
    return _elementwise("sum", np.add)(call, shapes)


def _factor(call: TensorCall, shape: Shape, scale: np.ndarray) -> float:
    """Exact norm of x -> scale * x, where each may be spread over the other."""
    inner = _inner(shape)
    full = _spread(call, inner, scale.shape)
    largest = float(np.max(np.abs(scale), initial=0.0))
    if largest == 0.0:
        return 0.0
    padded = (1,) * (len(full) - len(inner)) + inner
    axes = tuple(a for a in range(len(full)) if padded[a] == 1 and full[a] > 1)
    if not axes:
        return largest
    squares = np.sum(np.broadcast_to(scale / largest, full) ** 2, axis=axes)
    return largest * math.sqrt(float(np.max(squares))) * (1 + 1e-14)


def _multiply(call: TensorCall, shapes: list[Shape]) -> Known:
    first, second = _pair(call, shapes)
    if isinstance(first, Slot) and isinstance(second, Slot):
        raise call.refuse(
            "a product of two tensors that depend on the input has no Lipschitz constant: "
            "it grows with both."
        )
    scale = second if isinstance(first, Slot) else first
    return _scaled(_factor(call, shapes[0], scale), lambda x: x * scale)


def _divide(call: TensorCall, shapes: list[Shape]) -> Known:
    first, second = _pair(call, shapes)
    if isinstance(second, Slot):
        raise call.refuse("it divides by a tensor, which may be as small as one likes.")
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1.0 / second
    if not np.all(np.isfinite(inverse)):
        raise call.refuse("it divides by 0, or by a number as good as 0.")
    gain = _factor(call, shapes[0], inverse) * (1 + 1e-15)
    return _scaled(gain, lambda x: x / second)


def _entrywise(activation: Activation | Callable[[Any], Activation | None]) -> OperationRule:
    """A function of each entry, whose slope may depend on the operation's attributes."""

    def rule(call: TensorCall, shapes: list[Shape]) -> Known:
        found = activation if isinstance(activation, Activation) else activation(call.operation)
        if found is None:
            raise call.refuse("with these settings it jumps, or its slope has no bound.")
        return _scaled(found.bound(shapes[0]), found.function)

    return rule


def _clip(call: TensorCall, shapes: list[Shape]) -> Known:
    low, high = (
        _constant(call, value, shapes[0]) for value in (call.operation.x_min, call.operation.x_max)
    )
    inner = _inner(shapes[0])
    if {_spread(call, inner, low.shape), _spread(call, inner, high.shape)} != {inner}:
        raise call.refuse("its limits are larger than its input.")
    if np.any(low > high):
        raise call.refuse("its lower limit is above the upper one.")
    return _scaled(1.0, lambda x: np.minimum(np.maximum(x, low), high))


# --- along axes ------------------------------------------------------------------------------


def _softmax(call: TensorCall, shapes: list[Shape]) -> Known:
    axes = inner_axes(call, call.operation.axis, len(shapes[0]))
    return _scaled(0.5, lambda x: special.softmax(x, axis=axes))


def _log_softmax(call: TensorCall, shapes: list[Shape]) -> Known:
    axes = inner_axes(call, call.operation.axis, len(shapes[0]))
    classes = math.prod(int(shapes[0][a] or 1) for a in axes)
    gain = math.sqrt(classes) * (1 + 1e-15) if classes > 1 else 0.0
    return _scaled(gain, lambda x: special.log_softmax(x, axis=axes))


def _reduction(function: Any, gain: Callable[[int], float]) -> OperationRule:
    def rule(call: TensorCall, shapes: list[Shape]) -> Known:
        operation, shape = call.operation, shapes[0]
        axes = inner_axes(call, operation.axis, len(shape))
        count = math.prod(int(shape[a] or 1) for a in axes)
        initial = getattr(operation, "initial", None)
        more = {} if initial is None else {"initial": float(call.constant(initial))}
        keepdims = bool(operation.keepdims)
        return _scaled(gain(count), lambda x: function(x, axis=axes, keepdims=keepdims, **more))

    return rule


def _sort(call: TensorCall, shapes: list[Shape]) -> Known:
    # No pairing of two lists of numbers is closer than that in order of size.
    (axis,) = inner_axes(call, call.operation.axis, len(shapes[0]))
    return _scaled(1.0, lambda x: np.sort(x, axis=axis))


# --- moves, joins, contractions -----------------------------------------------------------------


def _index_map(name: str) -> OperationRule:
    def rule(call: TensorCall, shapes: list[Shape]) -> Known:
        move = INDEX_MAPS[name](call, len(shapes[0]))
        return _scaled(index_gain(call, move, shapes[0]), move)

    return rule


def _pad(call: TensorCall, shapes: list[Shape]) -> Known:
    operation, rank = call.operation, len(shapes[0])
    widths = [tuple(int(n) for n in width) for width in operation.pad_width]
    widths = widths * rank if len(widths) == 1 else widths
    if operation.mode not in ("constant", "reflect", "symmetric"):
        raise call.refuse(f"padding of mode {operation.mode!r} is not known.")
    if widths[0] != (0, 0):
        raise call.refuse("it pads along the batch axis.")
    if operation.mode != "constant":
        padded: Any = functools.partial(np.pad, pad_width=widths, mode=operation.mode)
        return _scaled(index_gain(call, padded, shapes[0]), padded)
    given = call.arguments()["constant_values"]
    value = call.constant(0.0 if given is None else given)
    if value.ndim:
        raise call.refuse("it pads with more than one number.")

    def pad(x: np.ndarray, fill: float = float(value)) -> np.ndarray:
        return np.pad(x, widths, constant_values=fill)

    return _scaled(index_gain(call, lambda x: pad(x, 0.0), shapes[0], fill=0.0), pad)


def _joined(function: Any, new_axis: int) -> OperationRule:
    def rule(call: TensorCall, shapes: list[Shape]) -> Known:
        (parts,) = call.arguments().values()
        if not all(isinstance(part, Slot) for part in parts):
            raise call.refuse("it joins a tensor with a constant; use a layer for that.")
        (axis,) = inner_axes(call, call.operation.axis, len(shapes[0]) + new_axis)
        order = [part.index for part in parts]
        return Known(
            lambda bounds: math.hypot(*bounds),
            lambda arrays: function([arrays[i] for i in order], axis=axis),
        )

    return rule


def _matmul(call: TensorCall, shapes: list[Shape]) -> Known:
    arguments = call.arguments()
    first, second = arguments["x1"], arguments["x2"]
    if isinstance(first, Slot) and isinstance(second, Slot):
        raise call.refuse(
            "a product of two tensors that depend on the input has no Lipschitz constant."
        )
    rank = len(shapes[0])
    if isinstance(first, Slot):
        matrix = call.constant(second)
        if matrix.ndim not in (1, 2) or rank < 2:
            raise call.refuse(f"a product with a constant of shape {matrix.shape} is not known.")
        gain = spectral.dense_norm_float64(matrix.reshape(len(matrix), -1))
        return _scaled(gain, lambda x: x @ matrix)
    matrix = call.constant(first)
    # With a vector or a matrix on the left the last axis but one is summed: that of the batch, in
    # a tensor of rank 2. `dot` moves the axes of its left operand to the front.
    if matrix.ndim != 2 or rank < 3 or type(call.operation).__name__ == "Dot":
        raise call.refuse(
            f"a product of a constant of shape {matrix.shape} with a tensor of rank {rank} "
            "on its right is not known."
        )
    return _scaled(spectral.dense_norm_float64(matrix), lambda x: matrix @ x)


def _einsum(call: TensorCall, shapes: list[Shape]) -> Known:
    operands = call.arguments()["operands"]
    equation = call.operation.subscripts
    if len(operands) != 2 or sum(isinstance(v, Slot) for v in operands) != 1:
        raise call.refuse("only a contraction of one tensor with one constant is known.")
    if isinstance(operands[1], Slot):
        left, _, output = equation.partition("->")
        equation = ",".join(reversed(left.split(","))) + "->" + output
    (value,) = (v for v in operands if not isinstance(v, Slot))
    constant = call.constant(value)
    try:
        gain = contraction_gain(equation, shapes[0], constant)
    except ValueError as error:
        raise call.refuse(f"{error}.") from None
    return _scaled(gain, lambda x: np.einsum(equation, x, constant))


# --- the table --------------------------------------------------------------------------------


def _at_most_one(count: int) -> float:
    return 1.0


# By the name of the operation's class. The gradient of log-sum-exp is a softmax, of norm <= 1.
OPERATION_RULES: dict[str, OperationRule] = {
    **{name: _entrywise(slope) for name, slope in OPERATIONS.items()},
    "Add": _add,
    "Subtract": _elementwise("sum", np.subtract),
    "Maximum": _elementwise("largest", np.maximum),
    "Minimum": _elementwise("largest", np.minimum),
    "Multiply": _multiply,
    "Divide": _divide,
    "TrueDivide": _divide,
    "Matmul": _matmul,
    "Dot": _matmul,
    "Einsum": _einsum,
    "Clip": _clip,
    "Cast": lambda call, shapes: _scaled(1.0, lambda x: x),
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "Mean": _reduction(np.mean, lambda count: (1 + 1e-15) / math.sqrt(max(count, 1))),
    "Sum": _reduction(np.sum, lambda count: math.sqrt(count) * (1 + 1e-15)),
    "Logsumexp": _reduction(special.logsumexp, _at_most_one),
    "Max": _reduction(np.max, _at_most_one),
    "Amax": _reduction(np.max, _at_most_one),
    "Min": _reduction(np.min, _at_most_one),
    "Amin": _reduction(np.min, _at_most_one),
    "Sort": _sort,
    "Pad": _pad,
    "Concatenate": _joined(np.concatenate, 0),
    "Stack": _joined(np.stack, 1),
    **{name: _index_map(name) for name in INDEX_MAPS},
}

_STEEP = "its slope has no bound."
_JUMPS = "it jumps."
_REASONS = {
    **dict.fromkeys(
        ("Exp", "Exp2", "Expm1", "Sinh", "Cosh", "Square", "Power", "Prod", "Cumprod", "Tan"),
        f"it grows faster than any multiple of its input: {_STEEP}",
    ),
    **dict.fromkeys(
        ("Sqrt", "Rsqrt", "Cbrt", "Log", "Log2", "Log10", "Log1p", "Reciprocal", "Normalize"),
        f"near some inputs {_STEEP}",
    ),
    **dict.fromkeys(("Sign", "Round", "Floor", "Ceil", "Trunc", "Mod", "HardShrink"), _JUMPS),
    **dict.fromkeys(
        ("Conv", "DepthwiseConv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNorm"),
        "as a bare operation it is not known; use the layer of the same name.",
    ),
}


def check_known(call: TensorCall) -> None:
    """Refuses operations that no rule covers.

    Raises:
        UncertifiableLayerError: naming the operation.
    """
    operation = call.operation
    cls = type(operation)
    # A class of the user's may have any name; and a call on the instance hides that of the class.
    ours = cls.__module__.startswith("keras.src.ops.") and "call" not in vars(operation)
    if call.dtype not in ("float32", "float64"):
        raise call.refuse(f"it rounds to {call.dtype}: what lies between two such numbers is lost.")
    if ours and cls.__name__ in OPERATION_RULES:
        return
    reason = _REASONS.get(cls.__name__) if ours else None
    raise call.refuse(reason or "no bound of the Lipschitz constant of this operation is known.")


# What was found holds the constants as they were: a change of an array in place cannot slip into
# the forward pass alone.
_FOUND: WeakKeyDictionary[TensorCall, dict[tuple[Shape, ...], Known]] = WeakKeyDictionary()


def known(call: TensorCall, shapes: list[Shape]) -> Known:
    """What is known of one call on tensors of these shapes, batch axis first.

    Raises:
        UncertifiableLayerError: if the operation, as it is called, has no bound or mixes a batch.
    """
    found, key = _FOUND.setdefault(call, {}), tuple(shapes)
    if key not in found:
        check_known(call)
        found[key] = _find(call, shapes)
    return found[key]


def _find(call: TensorCall, shapes: list[Shape]) -> Known:
    try:
        return OPERATION_RULES[type(call.operation).__name__](call, shapes)
    except UncertifiableLayerError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise call.refuse(f"its arguments are not understood ({reason:.120}).") from None
