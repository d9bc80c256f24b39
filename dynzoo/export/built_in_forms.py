"""Other words for operations that a format writes so that they overflow, or cannot be run.

Each form computes the same function within the rounding that a certificate counts on for it: 16
units in the last place of the larger of argument, value and 1. Only where a format needs one does
it take the place of Keras' own, for which every runtime has its faster kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

__all__ = ["FORMS", "Form", "use_built_in_forms"]


class Form(NamedTuple):
    """Other words for one operation.

    Attributes:
        needed: the pairs of a format and a backend that need it.
        function: of the operation, with its settings, and of its input.
        activation: Keras' function that stands for it in layers, if there is one.
    """

    needed: frozenset[tuple[str, str]]
    function: Callable[[Any, Any], Any]
    activation: Any = None


def _softplus(operation: Any, x: Any) -> Any:
    # `log1p` is no operation of LiteRT; what `log` loses is less than a unit of 1.
    return ops.maximum(x, 0.0) + ops.log(1.0 + ops.exp(-ops.abs(x)))


def _log_sigmoid(operation: Any, x: Any) -> Any:
    return -_softplus(operation, -x)


def _celu(operation: Any, x: Any) -> Any:
    alpha = float(getattr(operation, "alpha", 1.0))
    return ops.maximum(x, 0.0) + alpha * ops.elu(ops.minimum(x, 0.0) / alpha)


def _gelu(operation: Any, x: Any) -> Any:
    if getattr(operation, "approximate", False):
        return ops.gelu(x)
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def _erf(operation: Any, x: Any) -> Any:
    near = ops.abs(x) < 1e-4
    scaled = ops.where(near, 1.0, x * math.sqrt(2.0))
    far = 2.0 * (ops.gelu(scaled, approximate=False) / scaled) - 1.0
    return ops.where(near, x * (2.0 / math.sqrt(math.pi)), far)


def _roll(operation: Any, x: Any) -> Any:
    axes = operation.axis if isinstance(operation.axis, (tuple, list)) else (operation.axis,)
    shifts = operation.shift if isinstance(operation.shift, (tuple, list)) else (operation.shift,)
    if len(shifts) < len(axes):
        shifts = shifts * len(axes)
    if None in axes or None in (x.shape[axis] for axis in axes):  # round the batch
        return ops.roll(x, operation.shift, operation.axis)
    for shift, axis in zip(shifts, axes, strict=True):
        at = -shift % x.shape[axis]
        if at:
            before = (slice(None),) * (axis % len(x.shape))
            x = ops.concatenate([x[(*before, slice(at, None))], x[(*before, slice(0, at))]], axis)
    return x


def _argmax(operation: Any, x: Any) -> Any:
    axis = operation.axis
    if axis is None or x.shape[axis] is None:  # over the batch
        return ops.argmax(x, axis, keepdims=operation.keepdims)
    length, rank = x.shape[axis], len(x.shape)
    places = ops.reshape(
        ops.arange(length, dtype="float32"),
        [length if i == axis % rank else 1 for i in range(rank)],
    )
    first = ops.where(x >= ops.max(x, axis=axis, keepdims=True), places, float(length))
    return ops.cast(ops.min(first, axis=axis, keepdims=operation.keepdims), "int32")


def _pairs(**backends: str) -> frozenset[tuple[str, str]]:
    return frozenset((name, b) for name, listed in backends.items() for b in listed.split())


# By the class of Keras' operation.
FORMS: dict[str, Form] = {
    # log(1 + exp(x)) in LiteRT: infinite from 89 on, or held at 88, as the interpreter has it.
    "Softplus": Form(_pairs(litert="tensorflow"), _softplus, keras.activations.softplus),
    # log(sigmoid(x)), there and in the ONNX files of PyTorch, where it is infinite from -18 on.
    "LogSigmoid": Form(
        _pairs(litert="tensorflow", onnx="torch"), _log_sigmoid, keras.activations.log_sigmoid
    ),
    # tf2onnx writes operations that ONNX does not have.
    "Celu": Form(_pairs(onnx="tensorflow"), _celu, keras.activations.celu),
    "Gelu": Form(_pairs(onnx="tensorflow"), _gelu, keras.activations.gelu),
    # Needs a LiteRT interpreter with TensorFlow's operations; of JAX's, TensorFlow knows none.
    "Erf": Form(_pairs(litert="tensorflow", saved_model="jax"), _erf),
    "Roll": Form(_pairs(litert="tensorflow"), _roll),
    "Argmax": Form(_pairs(litert="tensorflow", onnx="tensorflow"), _argmax),
}


def use_built_in_forms(graph: keras.Model, format: str, backend: str) -> None:
    """Lets a graph compute in forms that the format can hold, where Keras' own are not such.

    Args:
        graph: made by ``inference_graph``; its operations and layers are changed.
        format: a key of ``FORMATS``.
        backend: the running backend of Keras.
    """
    needed = {name: form for name, form in FORMS.items() if (format, backend) in form.needed}
    in_layers = [f for f in needed.values() if f.activation is not None]
    for operation in graph.operations:
        name = type(operation).__name__
        if name in needed and type(operation).__module__.startswith("keras."):
            operation.call = functools.partial(needed[name].function, operation)
        for form in in_layers:
            if getattr(operation, "activation", None) is form.activation:
                operation.activation = functools.partial(form.function, None)
                break
