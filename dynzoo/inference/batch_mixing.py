"""Which calls of a model's graph mix the examples of a batch, as far as the graph tells.

The batch axis is followed from the inputs through Keras' nodes. A call is named only where it is
certain to bring examples together, such as a mean over the batch axis; what no graph shows (a
`Lambda`, a layer or a model of the user's own, a batch axis that a reshape merged with another) is
left to the comparison of answers in `dynzoo.inference.companions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras

from dynzoo.inference.model_layers import flat_layers, mixing_layers

__all__ = ["Call", "hides_code", "mixing_calls", "training_calls"]


class Call(NamedTuple):
    """One call in a model's graph: the name of the layer or operation, and its class."""

    name: str
    kind: str


# A tensor's batch axis: its position, or None where it is not known.
_Axis = int | None
_Known = Sequence[_Axis]
_Mixes = Callable[[], None]

# Operations that move axes about, or whose `axis` is no axis that they work along.
_MOVERS = {
    "ArraySplit", "Append", "Concatenate", "Cross", "Einsum", "ExpandDims", "Repeat", "Split",
    "Squeeze", "Stack", "Swapaxes", "Moveaxis", "Tensordot", "Transpose", "Unstack",
}  # fmt: skip
# Operations on pairs of entries, after broadcasting.
_PAIRWISE = {
    "Add", "Subtract", "Multiply", "Divide", "TrueDivide", "DivideNoNan", "FloorDivide", "Power",
    "Maximum", "Minimum", "Fmax", "Fmin", "Mod", "Fmod", "Arctan2", "Hypot", "Logaddexp",
    "Logaddexp2", "Where", "Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual",
    "LogicalAnd", "LogicalOr", "LogicalXor",
}  # fmt: skip
# Operations along the first axis that have no argument for it.
_ALONG_FIRST = {
    "Flipud", "Scan", "SegmentSum", "SegmentMax", "SegmentMin", "SegmentProd", "SegmentMean",
    "Corrcoef", "Cov",
}  # fmt: skip
# Folders of Keras whose layers take the first axis for the batch and work along the others.
_FIRST_IS_BATCH = ("convolutional", "pooling", "attention", "rnn")


def mixing_calls(model: Any) -> list[Call]:
    """Calls, those of nested models included, that are certain to mix the examples of a batch.

    Args:
        model: a Keras model; one without a graph has only its layers with ``depends_on_batch``.

    Example:

    >>> x = keras.Input((3,))
    >>> mixing_calls(keras.Model(x, x - ops.mean(x, axis=0)))
    [Call(name='mean', kind='Mean')]
    """
    kinds = {layer.name: type(layer).__name__ for layer in flat_layers(model)}
    found = [Call(name, kinds[name]) for name in mixing_layers(model)]
    _walk(model, None, "", found)
    return list(dict.fromkeys(found))


def training_calls(model: Any) -> list[Call]:
    """Calls with ``training=True`` in the graph, nested ones included.

    `model.predict` overrides it and `model(x)` does not, so that two passes may disagree; a call
    that merely repeats the default of its layer, as Keras records it, is none.

    Example:

    >>> x = keras.Input((3,))
    >>> training_calls(keras.Model(x, keras.layers.Dropout(0.5, name="drop")(x, training=True)))
    [Call(name='drop', kind='Dropout')]
    """
    return [
        Call(name, type(node.operation).__name__)
        for node, name in _nodes(model, "")
        if _trains(node)
    ]


def hides_code(model: Any) -> bool:
    """Whether a part of a model's forward pass is code that its graph does not show.

    That is a layer, a model or an activation of the user's own, or a `Lambda`.
    """
    layers = [model, *flat_layers(model)]
    if any(isinstance(layer, keras.Model) and _graph(layer) is None for layer in layers):
        return True
    classes = {type(layer) for layer in layers if not isinstance(layer, keras.Model)}
    functions = [getattr(layer, "activation", None) for layer in layers]
    owners = [c.__module__ for c in classes]
    owners += [str(getattr(f, "__module__", "")) for f in functions if callable(f)]
    known = {owner.split(".")[0] for owner in owners} <= {"keras", "dynzoo"}
    return not known or keras.layers.Lambda in classes


def _trains(node: Any) -> bool:
    names = inspect.signature(node.operation.call).parameters
    given = dict(zip(names, node.arguments.args, strict=False)) | node.arguments.kwargs
    default = names["training"].default if "training" in names else None
    return given.get("training") is True and default is not True


# --- the graph ---


def _graph(model: Any) -> tuple[list[Any], list[Any]] | None:
    """Inputs and outputs of a model whose forward pass is its graph, else `None`."""
    for method in ("call", "__call__"):
        definer = next(c for c in type(model).__mro__ if method in vars(c))
        if definer.__module__.split(".")[0] != "keras":
            return None
    try:
        inputs, outputs = list(model.inputs), list(model.outputs)
    except (AttributeError, TypeError, ValueError):  # a subclassed or an unbuilt model
        return None
    return (inputs, outputs) if inputs and outputs else None


def _ordered(inputs: list[Any], outputs: list[Any]) -> list[Any]:
    """The nodes between tensors, in the order of execution."""
    done, order, stack = {id(t) for t in inputs}, [], list(outputs)
    while stack:
        tensor = stack[-1]
        history = getattr(tensor, "_keras_history", None)
        if id(tensor) in done or history is None or history.operation is None:
            stack.pop()
            continue
        node = history.operation._inbound_nodes[history.node_index]
        missing = [t for t in node.input_tensors if id(t) not in done]
        missing = [t for t in missing if getattr(t, "_keras_history", None) is not None]
        missing = [t for t in missing if t._keras_history.operation is not None]
        if missing:
            stack.extend(missing)
            continue
        order.append(node)
        done.update(id(t) for t in node.outputs)
    return order


def _nodes(model: Any, prefix: str) -> list[tuple[Any, str]]:
    """The nodes of a model and of the models nested in it, with the names of their calls."""
    graph = _graph(model)
    found = []
    for node in _ordered(*graph) if graph else []:
        name = prefix + node.operation.name
        found.append((node, name))
        if isinstance(node.operation, keras.Model):
            found += _nodes(node.operation, name + "/")
    return found


def _walk(
    model: Any, given: Sequence[_Axis] | None, prefix: str, found: list[Call]
) -> list[_Axis] | None:
    """Follows the batch axis from the inputs to the outputs and notes the calls that mix."""
    graph = _graph(model)
    if graph is None:
        return None
    inputs, outputs = graph
    axes: dict[int, _Axis] = {id(t): 0 for t in inputs}
    if given is not None:
        # Whichever way the inputs are matched: their axes are the same, or nothing is known.
        axes = {id(t): given[0] if len(set(given)) == 1 else None for t in inputs}
    for node in _ordered(inputs, outputs):
        operation = node.operation
        call = Call(prefix + operation.name, type(operation).__name__)
        known = [axes.get(id(t)) for t in node.input_tensors]
        if isinstance(operation, keras.Model):
            results = _walk(operation, known, call.name + "/", found)
        elif not operation.__class__.__module__.startswith("keras."):
            results = None
        else:
            results = _call(node, known, partial(found.append, call))
        for number, tensor in enumerate(node.outputs):
            axes[id(tensor)] = results[number] if results else _default(node, known, tensor)
    last = [axes.get(id(t)) for t in outputs]
    if given is None and any(axis not in (0, None) for axis in last) and not found:
        operation = outputs[0]._keras_history.operation
        found.append(Call(prefix + operation.name, type(operation).__name__))
    return last


def _default(node: Any, known: _Known, result: Any) -> _Axis:
    """Where the batch axis is after a call of which nothing is known."""
    if not known or any(axis != known[0] for axis in known):
        return None
    same = len(node.input_tensors[0].shape) == len(result.shape)
    return known[0] if known[0] == 0 or same else None


# --- one call ---


def _call(node: Any, known: _Known, mixes: _Mixes) -> list[_Axis] | None:
    """The batch axes of the results; `None` for those of `_default`."""
    operation, kind = node.operation, type(node.operation).__name__
    if not known or known[0] is None:
        return None
    axis, rank = known[0], len(node.input_tensors[0].shape)
    if isinstance(operation, keras.Layer):
        folder = type(operation).__module__.split(".")[-2]
        if axis > 0 and (folder in _FIRST_IS_BATCH or (kind == "Dense" and axis == rank - 1)):
            mixes()
        elif kind != "Concatenate" and axis in _along(operation, rank):
            mixes()
        return None
    if kind in _RULES:
        return _RULES[kind](node, known, axis, rank, mixes)
    if kind in _PAIRWISE:
        return _pairwise(node, known, mixes)
    if kind in _MOVERS:
        return [None] * len(node.outputs)
    along = _along(operation, rank)
    if axis in along or (axis == 0 and kind in _ALONG_FIRST):
        mixes()
        return [None] * len(node.outputs)
    if along and len(node.outputs[0].shape) < rank:  # a reduction
        return [axis - sum(a < axis for a in along)] * len(node.outputs)
    return None


def _along(operation: Any, rank: int) -> set[int]:
    """The axes that an operation or a layer works along, by its arguments."""
    axes: set[int] = set()
    for name in ("axis", "axes", "axis1", "axis2"):
        if not hasattr(operation, name):
            continue
        value = getattr(operation, name)
        if value is None:
            # Of all entries together; a layer without an axis has another meaning for it.
            axes |= set() if isinstance(operation, keras.Layer) else set(range(rank))
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        axes |= {v % rank for v in values if isinstance(v, int)}
    return axes


def _pairwise(node: Any, known: _Known, mixes: _Mixes) -> list[_Axis]:
    """Axes are matched from the last one on: two batch axes at different places make pairs."""
    if None in known:
        return [None]
    ranks = [len(t.shape) for t in node.input_tensors]
    places = {rank - 1 - axis for rank, axis in zip(ranks, known, strict=True) if axis is not None}
    if len(places) > 1:
        mixes()
        return [None]
    return [len(node.outputs[0].shape) - 1 - places.pop()]


def _transpose(node: Any, known: _Known, axis: int, rank: int, mixes: _Mixes) -> list[_Axis]:
    order = node.operation.axes
    return [rank - 1 - axis if order is None else [a % rank for a in order].index(axis)]


def _swap(node: Any, known: _Known, axis: int, rank: int, mixes: _Mixes) -> list[_Axis]:
    pair = [node.operation.axis1 % rank, node.operation.axis2 % rank]
    return [pair[1 - pair.index(axis)] if axis in pair else axis]


def _insert(node: Any, known: _Known, axis: int, rank: int, mixes: _Mixes) -> list[_Axis]:
    if any(other != axis for other in known):
        return [None]
    at = node.operation.axis
    if not isinstance(at, int):
        return [None]
    return [axis + (at % (rank + 1) <= axis)]


def _reshape(node: Any, known: _Known, axis: int, rank: int, mixes: _Mixes) -> list[_Axis]:
    before, after = tuple(node.input_tensors[0].shape), tuple(node.outputs[0].shape)
    rows = axis == 0 and after and after[0] == before[0]
    sizes = [*before[1:], *after[1:]]
    if not rows or any(size is None for size in sizes):
        return [None]
    counts = [1, 1]
    for number, shape in enumerate((before[1:], after[1:])):
        for size in shape:
            counts[number] *= size
    return [0 if counts[0] == counts[1] else None]


def _item(node: Any, known: _Known, axis: int, rank: int, mixes: _Mixes) -> list[_Axis]:
    args = node.arguments.args
    key = args[1] if len(args) > 1 else node.arguments.kwargs.get("key")
    first = key[0] if isinstance(key, tuple) and key else key
    if axis != 0:
        return [None]
    if first is Ellipsis or (isinstance(first, slice) and first == slice(None)):
        return [0]
    if first is not None:
        mixes()  # what is left of an example depends on where it stands
    return [None]


def _matmul(node: Any, known: _Known, axis: int, rank: int, mixes: _Mixes) -> list[_Axis]:
    tensors = node.input_tensors
    if len(tensors) != 2:
        # One factor is a constant, and which one is not told: only the inner axes are certain.
        return [None] if axis >= rank - 2 and axis != 0 else [axis if axis == 0 else None]
    second, other = known[1], len(tensors[1].shape)
    if second is None:
        return [None]
    inner = axis == rank - 1 or (other > 1 and second == other - 2)
    pairs = rank > 1 and second == other - 1
    if inner or pairs or rank - axis != other - second:
        mixes()
        return [None]
    return [len(node.outputs[0].shape) - (rank - axis)]


def _einsum(node: Any, known: _Known, axis: int, rank: int, mixes: _Mixes) -> list[_Axis]:
    formula = node.operation.subscripts.replace(" ", "")
    terms, _, result = formula.partition("->")
    parts = terms.split(",")
    if "." in formula or None in known or len(parts) != len(known) or "->" not in formula:
        return [None]
    letters = {part[axis] for part, axis in zip(parts, known, strict=True)}
    if len(letters) > 1 or not letters <= set(result):
        mixes()
        return [None]
    return [result.index(letters.pop())]


_RULES: dict[str, Callable[..., list[_Axis]]] = {
    "Transpose": _transpose,
    "Swapaxes": _swap,
    "ExpandDims": _insert,
    "Stack": _insert,
    "Reshape": _reshape,
    "GetItem": _item,
    "Matmul": _matmul,
    "Einsum": _einsum,
}
