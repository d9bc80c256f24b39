"""How large a model is by its config, found out without making it.

Whoever writes a config may declare any size in a few bytes. So the config is looked through as
text, then built without a value in any weight, and compared with what the files hold; only then
does it get memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras

# Keras has no public name for the list of weights that wait for their values
from keras.src.backend.common import global_state

from dynzoo import backend
from dynzoo.utils.strict_json import short

__all__ = ["MAX_ENTRIES", "Declared", "check_numbers", "check_tensors", "planned"]

# of one tensor for one image: 64 MiB in float32, as 64 channels of 512x512 pixels
MAX_ENTRIES = 2**24
_MAX_LAYERS = 4096
_MAX_VALUES = 2**18  # about 100 a layer
# loops that a layer unrolls: each turn costs time and memory when the model is traced
_LOOPS = {"steps", "substeps", "iterations", "projection_steps", "samples"}
_MAX_TURNS = 1000
_FREE = {"seed", "shared_object_id"}  # integers that are no sizes
_POLICIES = {"float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16"}
_TYPES = {
    *_POLICIES,
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
}
_WAITING = "uninitialized_variables"


def check_numbers(config: Any, where: str) -> None:
    """Refuse sizes, numbers of loops and types that no preset needs.

    Args:
        config: the parsed config.
        where: name of the file, for the message.

    Raises:
        ValueError: naming the key and what is allowed.
    """
    room = _MAX_VALUES
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        key, value = pending.pop()
        problem = None
        if isinstance(value, (dict, list)):
            room -= len(value)
        if room < 0:  # before they are looked at one by one
            problem = f"it holds more than {_MAX_VALUES:,} values"
        elif isinstance(value, dict):
            problem = _problem_of_object(value)
            pending.extend(value.items())
        elif isinstance(value, list):
            if key in ("batch_shape", "shape", "input_shape", "batch_input_shape"):
                problem = _problem_of_shape(key, value)
            pending.extend((key, item) for item in value)
        elif isinstance(value, int) and not isinstance(value, bool) and key not in _FREE:
            limit = _MAX_TURNS if key in _LOOPS else MAX_ENTRIES
            if abs(value) > limit:
                problem = f"{_name(key)} is {short(str(value), 40)}, at most {limit:,} is allowed"
        elif isinstance(value, str) and key == "dtype" and value not in _TYPES:
            problem = f"{_name(key)} is {short(repr(value), 60)}, which is no plain type of numbers"
        if problem:
            raise ValueError(f"{where} is refused: {problem}.")


def _name(key: str) -> str:
    return f"`{short(key, 40)}`"


def _problem_of_object(value: dict[str, Any]) -> str | None:
    if value.get("compile_config"):
        return "`compile_config` is not allowed, a preset has no optimizer"
    if value.get("quantization_config") or value.get("quantization_mode"):
        return "quantised weights are not allowed"
    layers = value.get("layers")
    if isinstance(layers, list) and len(layers) > _MAX_LAYERS:
        return f"it has {len(layers):,} layers, at most {_MAX_LAYERS:,} are allowed"
    inner = value.get("config")
    if str(value.get("class_name")).endswith("DTypePolicy") and isinstance(inner, dict):
        if inner.get("name") not in _POLICIES:
            return f"the type {short(repr(inner.get('name')), 60)} is not allowed for weights"
    return None


def _problem_of_shape(key: str, value: list[Any]) -> str | None:
    sizes = [n for n in value if isinstance(n, int) and not isinstance(n, bool)]
    if any(n < 0 for n in sizes) or math.prod(sizes) > MAX_ENTRIES:
        text = short(str(value), 60)
        return f"{_name(key)} is {text}, at most {MAX_ENTRIES:,} entries are allowed"
    return None


class Declared(list[Any]):
    """The weights that a model declares while it is built; too many end the building.

    Args:
        entries: how many entries the weights files hold.
        arrays: how many arrays they hold.
    """

    def __init__(self, entries: int, arrays: int):
        super().__init__()
        self.room, self.arrays = entries, arrays
        self.refusal: str | None = None

    def append(self, variable: Any) -> None:
        """Called by Keras for each new weight."""
        entries = math.prod(variable.shape)
        # the states of random generators stand in no file
        if entries > 2 or "int" not in variable.dtype:
            self.room -= entries
            self.arrays -= 1
        too_many = self.room < 0 or self.arrays < 0 or len(self) > 4 * _MAX_LAYERS
        if self.refusal is None and too_many:
            name, shape = short(variable.path, 80), short(str(tuple(variable.shape)), 60)
            self.refusal = (
                f"with the weight {name} of shape {shape} the model declares more than the "
                "files hold"
            )
        if self.refusal is not None:
            raise ValueError(self.refusal)
        super().append(variable)


@contextlib.contextmanager
def planned(declared: Declared) -> Iterator[Callable[[keras.Model], None]]:
    """A scope in which models are built without values: shapes and names, no memory.

    The scope gives a function that draws the initial values of a model built in it, as if there
    had been no scope. Without that call its weights stay empty, and are forgotten with the model.

    Args:
        declared: takes down what is declared, and ends the building where that is too much.
    """
    before = global_state.get_global_attribute(_WAITING)
    global_state.set_global_attribute(_WAITING, declared)

    def fill(model: keras.Model) -> None:
        global_state.set_global_attribute(_WAITING, declared)
        try:
            with keras.StatelessScope():  # Keras draws the values when it leaves the scope
                pass
        finally:
            global_state.set_global_attribute(_WAITING, before)
        backend.track_weights(model)

    try:
        with keras.StatelessScope(initialize_variables=False), backend.small_traces(MAX_ENTRIES):
            yield fill
    finally:
        global_state.set_global_attribute(_WAITING, before)


def check_tensors(model: keras.Model, where: str) -> None:
    """Refuse a model that makes a tensor of more than ``MAX_ENTRIES`` of one image.

    Raises:
        ValueError: naming the layer and the shape.
    """
    pending, seen = [model], set()
    while pending:
        operation = pending.pop()
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        for node in getattr(operation, "_inbound_nodes", []):
            for tensor in node.output_tensors:
                shape = tuple(tensor.shape)
                if math.prod(n for n in shape if n is not None) > MAX_ENTRIES:
                    raise ValueError(
                        f"{where} is refused: {short(operation.name, 80)!r} gives the shape "
                        f"{short(str(shape), 60)}, at most {MAX_ENTRIES:,} entries are allowed."
                    )
        pending.extend(getattr(operation, "operations", []) or [])
        pending.extend(getattr(operation, "layers", []) or [])
        inner = getattr(operation, "layer", None)
        pending.extend([inner] if isinstance(inner, keras.Operation) else [])
