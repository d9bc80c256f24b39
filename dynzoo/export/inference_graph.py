"""A model as plain inference: all that depends on its weights alone is computed once."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.certificates.graph import trace
from dynzoo.certificates.operations import TensorCall
from dynzoo.certificates.rules.table import is_identity
from dynzoo.inference.model_layers import is_random
from dynzoo.utils.strict_json import short
from dynzoo.utils.tensorflow_import import config_of

__all__ = ["inference_graph"]


def inference_graph(model: keras.Model) -> keras.Model:
    """The same function of images as `model` at inference, as a graph of standard operations.

    dynzoo's layers are replaced by the operations that their forward pass consists of. What those
    compute from weights alone (unit rows, learned step sizes, skew-symmetric parts, transposes) is
    computed now and stands in the graph as a constant; dropout and other identities are gone. The
    model and its layers are left as they are; later training of the model does not reach the graph.

    Keras' own layers stay layers, with copies of their weights, and so do layers that draw at
    inference, those of other packages, whose code may need to be called as a layer, and on JAX the
    few of dynzoo's that it does not let record.

    Args:
        model: built Sequential or Functional model from one input of fixed shape to logits (n, K).

    Returns:
        A Functional model with the input "images"; made for `export`, not for training.

    Raises:
        ValueError: if the model's graph cannot be read, as that of a subclassed model, a layer
            cannot be made again from its config, or runs in mixed precision.

    Example:

    >>> graph = inference_graph(dynzoo.from_preset("isometric_small_cifar10"))
    >>> graph.predict(np.zeros((1, 32, 32, 3), "float32")).shape
    (1, 10)
    """
    program = trace(model)
    for step in program.steps:
        policy = step.layer.dtype_policy
        if policy.compute_dtype != policy.variable_dtype:
            raise ValueError(f"Layer '{step.name}' runs in mixed precision: {policy.name}.")
    dtype = keras.backend.standardize_dtype(model.inputs[0].dtype)
    values = {0: keras.Input(program.input_shape, dtype=dtype, name="images")}
    copies: dict[int, Any] = {}
    for step in program.steps:
        inputs = [values[slot] for slot in step.inputs]
        argument = inputs[0] if len(inputs) == 1 else inputs
        if isinstance(step.layer, TensorCall):
            # A name of its own, as a nested model that is called twice holds the operation once.
            name = f"{step.name.replace('/', '_')}_{step.output}"
            values[step.output] = step.layer.replay(inputs, name)
        elif is_identity(step.layer):
            values[step.output] = argument
        else:
            output = _recorded(step.layer, argument) if _is_plain(step.layer) else None
            values[step.output] = _copy(step.layer, argument, copies) if output is None else output
    graph = keras.Model(values[0], values[program.output], name="inference")
    _store_constants(graph)
    if backend.name() == "torch":
        _state_split_sizes(graph)
    return graph


def _is_plain(layer: Any) -> bool:
    """Whether the layer's `call` on a symbolic tensor records all that it does."""
    ours = type(layer).__module__.split(".")[0] == "dynzoo"
    return ours and not is_random(layer)


def _recorded(layer: Any, argument: Any) -> Any:
    """The layer's operations on a symbolic tensor, or `None` where JAX does not let them record.

    Of `array * tensor` JAX asks the symbolic tensor for its numbers instead of leaving the product
    to it; the other backends do leave it.
    """
    try:
        return layer.call(argument)
    except ValueError:
        if backend.name() == "jax":
            return None
        raise


def _copy(layer: Any, argument: Any, copies: dict[int, Any]) -> Any:
    """The output of a copy of the layer: a call of the layer itself would stay in its history."""
    if id(layer) not in copies:
        try:
            copies[id(layer)] = type(layer).from_config(config_of(layer))
        except TypeError as error:
            # Of an activation like `keras.ops.erf` Keras finds no name to read again.
            if type(layer) is keras.layers.Activation:
                return layer.activation(argument)
            raise ValueError(f"Layer '{layer.name}' cannot be copied: {short(error)}") from error
    copy = copies[id(layer)]
    output = copy(argument)
    copy.set_weights(layer.get_weights())
    return output


def _store_constants(graph: keras.Model) -> None:
    """Keeps constants as NumPy arrays: a tensor of a backend is no constant to its exporters.

    TensorFlow makes inputs of the exported function of them, PyTorch parameters that it cannot
    name, and JAX deletes buffers that it donated.
    """

    def stored(value: Any) -> Any:
        if isinstance(value, keras.KerasTensor):
            return value
        constant = isinstance(value, keras.Variable) or ops.is_tensor(value)
        return np.array(backend.to_numpy(value)) if constant else value

    for operation in graph.operations:
        for node in operation._inbound_nodes:
            if not node.is_input:
                node.arguments.args, node.arguments.kwargs = node.arguments.convert(stored)


def _state_split_sizes(graph: keras.Model) -> None:
    """Splits at plain integers: Keras makes a tensor of them, whose values PyTorch cannot trace.

    To `torch.export` every piece then is of an unknown size, and so is all that is made of it.
    """
    for operation in graph.operations:
        places = getattr(operation, "indices_or_sections", None)
        if isinstance(places, tuple):
            operation.call = functools.partial(_slices, places, operation.axis)


def _slices(places: tuple[int, ...], axis: int, x: Any) -> list[Any]:
    bounds = zip((0, *places), (*places, x.shape[axis]), strict=True)
    return [x[(slice(None),) * (axis % len(x.shape)) + (slice(a, b),)] for a, b in bounds]
