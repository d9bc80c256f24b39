"""Bare operations of a functional model (``x + y``, ``keras.ops.relu(x)``) as steps of a program.

Keras records the operation, its attributes and the arguments of the call. A ``TensorCall`` holds
all three and looks enough like a layer (name, weights, dtype policy) to stand where layers stand.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from dynzoo.backend import to_numpy
from dynzoo.certificates.errors import UncertifiableLayerError

__all__ = ["Slot", "TensorCall", "class_name", "tensor_calls"]


@dataclass(frozen=True)
class Slot:
    """Stands for the i-th tensor among the arguments of a call."""

    index: int


@dataclass(frozen=True, eq=False)
class TensorCall:
    """One call of an operation that is no layer.

    Attributes:
        operation: a copy of Keras' operation, without its place in the graph.
        name: its name, with the names of the nested models around it.
        args, kwargs: arguments of the call, each tensor of the graph replaced by a ``Slot``.
        pick: which of several outputs, or None for an operation with one.
        dtype: of the output.
    """

    operation: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    pick: int | None
    dtype: str

    @property
    def weights(self) -> list[Any]:
        return []

    @property
    def dtype_policy(self) -> Any:
        return keras.DTypePolicy(self.dtype)

    def refuse(self, reason: str) -> UncertifiableLayerError:
        """The error that names the operation."""
        return UncertifiableLayerError(self.name, type(self.operation).__name__, reason)

    def arguments(self) -> dict[str, Any]:
        """Arguments by the names that the operation's ``call`` gives them."""
        signature = inspect.signature(type(self.operation).call)
        bound = signature.bind(self.operation, *self.args, **self.kwargs)
        bound.apply_defaults()
        return dict(list(bound.arguments.items())[1:])

    def constant(self, value: Any) -> np.ndarray:
        """A constant argument in float64, rounded as the operation rounds it.

        Raises:
            UncertifiableLayerError: if it is a variable, which may change unseen, or not numbers.
        """
        if isinstance(value, keras.Variable):
            raise self.refuse(
                f"it reads the variable '{value.path}', which no layer of the model owns; "
                "put it into a layer."
            )
        if isinstance(value, keras.KerasTensor):
            raise self.refuse("one of its settings is a tensor.")
        try:
            array = to_numpy(value) if not np.isscalar(value) else np.asarray(value)
            array = np.asarray(array).astype(self.dtype).astype(np.float64)
        except (TypeError, ValueError):
            raise self.refuse(f"the constant {value!r:.60} is not an array of numbers.") from None
        if not np.all(np.isfinite(array)):
            raise self.refuse("one of its constants is not finite.")
        return array

    def replay(self, inputs: list[Any], name: str) -> Any:
        """The output of the operation on other tensors, under another name."""
        operation = _unplaced(self.operation)
        operation.name = name

        def fill(value: Any) -> Any:
            return inputs[value.index] if isinstance(value, Slot) else value

        args, kwargs = keras.tree.map_structure(fill, (self.args, self.kwargs))
        outputs = operation(*args, **kwargs)
        return outputs if self.pick is None else outputs[self.pick]


def _unplaced(operation: Any) -> Any:
    """A copy without nodes; ``copy`` would make it anew from its configuration."""
    other = object.__new__(type(operation))
    vars(other).update(vars(operation), _inbound_nodes=[], _outbound_nodes=[])
    return other


def tensor_calls(node: Any, name: str) -> list[TensorCall]:
    """The call that a node records, once for each of its outputs."""
    count = iter(range(len(node.input_tensors)))

    def stand_in(value: Any) -> Any:
        return Slot(next(count)) if isinstance(value, keras.KerasTensor) else value

    args, kwargs = keras.tree.map_structure(
        stand_in, (tuple(node.arguments.args), dict(node.arguments.kwargs))
    )
    picks = [None] if len(node.outputs) == 1 else list(range(len(node.outputs)))
    return [
        TensorCall(
            _unplaced(node.operation),
            name,
            args,
            kwargs,
            pick,
            keras.backend.standardize_dtype(out.dtype),
        )
        for pick, out in zip(picks, node.outputs, strict=True)
    ]


def class_name(layer: Any) -> str:
    """The class of a layer or of a bare operation, for messages."""
    return type(layer.operation if isinstance(layer, TensorCall) else layer).__name__
