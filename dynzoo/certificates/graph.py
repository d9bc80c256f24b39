"""The graph of a Keras model as a flat list of steps: layer or operation, input slots, output slot.

Nested models are opened, a shared layer gives one step per call, and a model that cannot be
reduced to such a list is refused. Certificates and the float64 reference both run this list, and
nothing else looks at Keras' graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from dynzoo.certificates import overrides
from dynzoo.certificates.errors import UncertifiableLayerError
from dynzoo.certificates.operations import tensor_calls
from dynzoo.certificates.rules.image import trains_by_default
from dynzoo.certificates.rules.operations import check_known

__all__ = ["Program", "Step", "trace"]


@dataclass(frozen=True)
class Step:
    """One call of one layer, or a ``TensorCall``: reads the slots ``inputs``, writes ``output``."""

    layer: Any
    name: str
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Program:
    """The steps of a model in the order of execution; slot 0 holds the input."""

    steps: tuple[Step, ...]
    output: int
    input_shape: tuple[int, ...]
    num_classes: int


def trace(model: keras.Model) -> Program:
    """Flattens a built single-input, single-output Sequential or Functional model.

    Args:
        model: built model from one input of fixed shape (n, ...) to logits (n, K), K >= 2.

    Returns:
        The steps, with ``input_shape`` free of the batch axis.

    Raises:
        ValueError: if the model is not built, is subclassed, or has another input or output.
        UncertifiableLayerError: if a call in the graph is not that of a layer at inference.
    """
    _check_model(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "`certify` needs a model with one input and one output. "
            f"Received: {len(model.inputs)} input(s) and {len(model.outputs)} output(s)."
        )
    inner_shape = tuple(model.inputs[0].shape[1:])
    if any(n is None for n in inner_shape):
        raise ValueError(
            "`certify` needs a fixed input shape: the norm of a convolution depends on the image "
            f"size. Received: input shape {(None, *inner_shape)}. Build the model with "
            "`keras.Input` of the size that is used."
        )
    output_shape = tuple(model.outputs[0].shape)
    if len(output_shape) != 2 or output_shape[1] is None or output_shape[1] < 2:
        raise ValueError(
            "`certify` needs logits of shape (n, K) with K >= 2 classes (write a binary "
            f"classifier with two logits). Received: output shape {output_shape}"
        )
    steps: list[Step] = []
    slots = itertools.count(1)
    (output,) = _trace_into(model, [0], "", steps, slots)
    return Program(tuple(steps), output, inner_shape, int(output_shape[1]))


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built, so it has no weights to certify. Call "
            "`model.build(input_shape)`, or start the model with `keras.Input`."
        )
    # A class of the user's may add training code, but not a forward pass that no graph shows.
    used = {"__call__", *overrides.used_names(type(model), ["call"])}
    method = overrides.replaced_method(model, used)
    for name in used if method is None else ():
        definer = type(model).__mro__[overrides.defined_at(type(model), name)]
        if definer.__module__.split(".")[0] not in overrides.FRAMEWORKS:
            method = name
    if method is not None:
        raise ValueError(
            f"Model '{model.name}' of class `{type(model).__name__}` defines its own "
            f"`{method}`, which hides its graph. Certify a Sequential or Functional model."
        )
    try:
        tensors = [*model.inputs, *model.outputs]
    except (AttributeError, TypeError):
        tensors = []
    if not tensors:
        raise ValueError(
            f"Model '{model.name}' of class `{type(model).__name__}` has no graph. "
            "Certify a Sequential or Functional model with a `keras.Input`."
        )


def _trace_into(
    model: keras.Model, inputs: list[int], prefix: str, steps: list[Step], slots: Iterator[int]
) -> list[int]:
    """Appends the steps of one (possibly nested) model; returns the slots of its outputs."""
    slot_of = {id(t): s for t, s in zip(model.inputs, inputs, strict=True)}
    stack = list(model.outputs)
    while stack:
        tensor = stack[-1]
        if id(tensor) in slot_of:
            stack.pop()
            continue
        node = _node(tensor)
        missing = [t for t in node.input_tensors if id(t) not in slot_of]
        if missing:
            stack.extend(missing)
            continue
        operation, name = node.operation, prefix + node.operation.name
        if not node.input_tensors:
            raise UncertifiableLayerError(
                name, type(operation).__name__, "it does not depend on the model's input."
            )
        if isinstance(operation, keras.Layer):
            _check_arguments(node, name)
        sources = [slot_of[id(t)] for t in node.input_tensors]
        if isinstance(operation, keras.Model):
            _check_model(operation)
            sources = _inner_inputs(node, name, slot_of, steps, slots)
            targets = _trace_into(operation, sources, name + "/", steps, slots)
        elif len(node.outputs) == 1 and isinstance(operation, keras.Layer):
            targets = [next(slots)]
            steps.append(Step(operation, name, tuple(sources), targets[0]))
        elif isinstance(operation, keras.Layer):
            raise UncertifiableLayerError(
                name, type(operation).__name__, f"it has {len(node.outputs)} outputs."
            )
        else:
            targets = []
            for call in tensor_calls(node, name):
                check_known(call)
                targets.append(next(slots))
                steps.append(Step(call, name, tuple(sources), targets[-1]))
        slot_of.update((id(t), s) for t, s in zip(node.outputs, targets, strict=True))
    return [slot_of[id(t)] for t in model.outputs]


def _inner_inputs(
    node: Any, name: str, slot_of: dict[int, int], steps: list[Step], slots: Iterator[int]
) -> list[int]:
    """The slots of a nested model's inputs, in the order of its own list of inputs.

    Keras takes a dict for a model that was made from a list by the names of the inputs; all else
    it takes in the order of the flattened structure, which must be that of the model's own.
    """
    model, args, kwargs = node.operation, node.arguments.args, dict(node.arguments.kwargs)
    given = args[0] if args else kwargs.pop("inputs", None)
    others = keras.tree.flatten((args[1:], kwargs))
    made = _structure(model)
    leaves, tensors = keras.tree.flatten(made), keras.tree.flatten(given)
    parts = list(made) if isinstance(made, (list, tuple)) else [made]
    if isinstance(given, dict) and not isinstance(made, dict):
        tensors = [given.get(leaf.name) for leaf in leaves]
        matched = len(parts) == len(leaves)
    else:
        # One tensor may stand in a list of its own.
        matched = len(tensors) == len(leaves) == 1 or _paths(given) == _paths(made)
    matched = matched and all(isinstance(t, keras.KerasTensor) for t in tensors)
    if not matched or any(isinstance(t, keras.KerasTensor) for t in others):
        raise UncertifiableLayerError(
            name,
            type(model).__name__,
            "it is called with another structure of inputs than it was made with, so that it is "
            "not clear which tensor goes where; call it with that very structure.",
        )
    return [
        _fitted(tensor, leaf, name, slot_of[id(tensor)], steps, slots)
        for tensor, leaf in zip(tensors, leaves, strict=True)
    ]


def _structure(model: Any) -> Any:
    """A model's inputs as it was given them: a tensor, or a list, tuple or dict of them."""
    functional = getattr(model, "_functional", None) or model
    return functional._inputs_struct


def _paths(structure: Any) -> list[tuple[Any, ...]]:
    """Where each tensor is, in the order in which Keras flattens them."""
    return [path for path, _ in keras.tree.flatten_with_path(structure)]


def _fitted(
    tensor: Any, leaf: Any, name: str, slot: int, steps: list[Step], slots: Iterator[int]
) -> int:
    """The slot of a tensor as a nested model takes it: Keras adds or drops a last axis of 1."""
    dtype = keras.backend.standardize_dtype(leaf.dtype)
    if dtype not in ("float32", "float64"):
        raise UncertifiableLayerError(name, "Model", f"it rounds its input to {dtype}.")
    rank, wanted = len(tensor.shape), len(leaf.shape)
    if rank == wanted:
        return slot
    if rank == wanted + 1 and tensor.shape[-1] == 1:
        shape = tensor.shape[1:-1]
    elif rank == wanted - 1 and leaf.shape[-1] == 1:
        shape = (*tensor.shape[1:], 1)
    else:
        raise UncertifiableLayerError(
            name, "Model", f"its input of shape {leaf.shape} was called with {tensor.shape}."
        )
    output, name = next(slots), f"{name}/{leaf.name}"
    reshape = keras.layers.Reshape(shape, name=name.replace("/", "_"), dtype=leaf.dtype)
    steps.append(Step(reshape, name, (slot,), output))
    return output


def _node(tensor: Any) -> Any:
    """The call that made a symbolic tensor (the one place that needs Keras' graph internals)."""
    history = tensor._keras_history
    if history.operation is None:
        raise ValueError(f"Tensor '{tensor.name}' of the model does not come from its input.")
    return history.operation._inbound_nodes[history.node_index]


def _check_arguments(node: Any, name: str) -> None:
    """Only tensors may be passed to a layer: ``training=True`` or a mask changes its function."""
    kwargs = dict(node.arguments.kwargs)
    if trains_by_default(node.operation):
        # Keras records the default `training=True` of these layers like an argument that was given;
        # at inference the model passes False instead of either.
        kwargs.pop("training", None)
    values = keras.tree.flatten((node.arguments.args, kwargs))
    for value in values:
        if isinstance(value, keras.KerasTensor) or value is None or value is False:
            continue
        raise UncertifiableLayerError(
            name,
            type(node.operation).__name__,
            f"it was called with the extra argument {value!r} (for example `training=True`), "
            "so inference is not the plain layer.",
        )
