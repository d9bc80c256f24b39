"""What the layers of a model are set to, frozen, so that a later change is noticed.

A bound is computed from weights and from settings: slopes, scales, strides, the activation that is
called. Keras lets each of them be changed in place. The weights have their hash; this is the rest.
"""

from __future__ import annotations

import functools
import hashlib
import math
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from dynzoo.backend import to_numpy
from dynzoo.certificates.graph import Program

__all__ = ["Settings", "difference", "freeze_settings", "not_finite", "sublayers"]

# What Keras and PyTorch keep for themselves on a layer does not change what it computes, but these.
_MEANS_SOMETHING = {"_dtype_policy", "autocast", "_forward_hooks", "_forward_pre_hooks"}
# Where TensorFlow writes down what a checkpoint depends on.
_OF_TENSORFLOW = ("_self_", "_obj_reference_counts")
_PLAIN = (bool, int, str, bytes, type(None), type(Ellipsis), np.bool_, np.integer)


class Settings(NamedTuple):
    """Frozen settings: of the graph as a whole, and of each of its layers by name."""

    graph: Any
    layers: dict[str, dict[str, Any]]


class _Same:
    """Equal to itself only; keeps the object alive, so that its place is not taken."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def freeze_settings(program: Program, model: keras.Model) -> Settings:
    """Settings of all layers of a program; cheap, for it runs with every question for radii."""
    tracked = {id(v) for v in model.variables}
    layers: dict[str, dict[str, Any]] = {}
    done: set[int] = set()
    for step in program.steps:
        if id(step.layer) not in done:
            done.add(id(step.layer))
            layers[step.name] = _Freezer(tracked).attributes_of(step.layer)
    wiring = tuple((step.name, step.inputs, step.output) for step in program.steps)
    configured = (keras.config.epsilon(), keras.config.floatx())
    graph = (wiring, program.output, program.input_shape, program.num_classes, configured)
    return Settings(graph, layers)


def difference(old: Settings, new: Settings) -> str | None:
    """What differs, in words: the first layer and its setting, or the graph; None if nothing."""
    if old.graph[-1] != new.graph[-1]:
        return "`keras.config.epsilon()` or `keras.config.floatx()` was changed"
    if old.graph != new.graph or old.layers.keys() != new.layers.keys():
        return "it has other layers or connections"
    for name, before in old.layers.items():
        after = new.layers[name]
        if before == after:
            continue
        keys = [*before, *after]
        changed = next(k for k in keys if before.get(k, _Same) != after.get(k, _Same))
        return f"`{changed}` of layer '{name}' was changed"
    return None


def sublayers(layer: Any) -> Iterator[Any]:
    """A layer and the layers that it holds, an activation that is a layer among them."""
    seen: set[int] = set()
    waiting = [layer]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, keras.layers.Layer) and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting.extend(v for _, v in _attributes(value))
            waiting.extend(value._flatten_layers(include_self=False, recursive=False))


def not_finite(layer: Any) -> tuple[str, Any] | None:
    """A setting of a layer that is NaN or infinite, and its value; None if there is none.

    A private attribute may be infinite: it may be the start of a search, or a limit that is none.
    """
    for name, value in _attributes(layer):
        if any(math.isnan(n) or not (name[0] == "_" or math.isfinite(n)) for n in _floats(value)):
            return name, value
    return None


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, (float, np.floating)):
        yield float(value)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _floats(part)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
        # The smallest and largest entry: NaN if one is.
        yield float(np.min(value))
        yield float(np.max(value))


@functools.cache
def _bookkeeping() -> frozenset[str]:
    notes = {**vars(keras.Operation()), **vars(keras.layers.Layer())}
    return frozenset(notes) - _MEANS_SOMETHING


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    """What an object was given, without Keras' own notes on it."""
    known: frozenset[str] = frozenset()
    if isinstance(obj, keras.Operation):
        known = _bookkeeping()
    if isinstance(obj, keras.layers.Layer):
        # PyTorch keeps the layers that a layer holds apart from its other attributes.
        modules = vars(obj).get("_modules") or {}
        yield from ((k, v) for k, v in modules.items() if isinstance(v, keras.layers.Layer))
    for cls in type(obj).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name != "__dict__" and hasattr(obj, name):
                yield name, getattr(obj, name)
    for name, value in getattr(obj, "__dict__", {}).items():
        if name not in known and not name.startswith(_OF_TENSORFLOW):
            yield name, value


class _Freezer:
    """Turns what a layer holds into values that compare equal as long as nothing changes.

    An object that is met again, as in a cycle, is its number in the order of meeting.
    """

    def __init__(self, tracked: set[int]):
        self._tracked = tracked
        self._met: dict[int, int] = {}

    def attributes_of(self, obj: Any) -> dict[str, Any]:
        """Class and attributes of an object, by name."""
        self._met[id(obj)] = len(self._met)
        frozen: dict[str, Any] = {"class": _Same(type(obj))}
        for name, value in _attributes(obj):
            frozen[name] = self.value(value)
        return frozen

    def value(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return (type(value), value)
        if isinstance(value, (float, complex, np.floating)):
            return (type(value), repr(value))  # a NaN is equal to itself here
        if isinstance(value, tuple):
            return (type(value), tuple(self.value(v) for v in value))
        if isinstance(value, np.ndarray):
            return _digest(value)
        if isinstance(value, keras.Variable):
            same = _Same(value)
            return same if id(value) in self._tracked else (same, _digest(to_numpy(value)))
        if isinstance(value, (type, types.FunctionType, types.ModuleType, keras.KerasTensor)):
            return _Same(value)
        if keras.ops.is_tensor(value):
            return _digest(to_numpy(value))
        if id(value) in self._met:
            return ("met", self._met[id(value)])
        return self._container(value)

    def _container(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return (_Same(value.__func__), self.value(value.__self__))
        if isinstance(value, functools.partial):
            return (self.value(value.func), self.value(value.args), self.value(value.keywords))
        if isinstance(value, keras.Model):
            return (_Same(value), tuple(self.value(layer) for layer in value.layers))
        if isinstance(value, (set, frozenset)):
            return (type(value), frozenset(self.value(v) for v in value))
        if isinstance(value, dict):
            self._met[id(value)] = len(self._met)
            return (dict, tuple((self.value(k), self.value(v)) for k, v in value.items()))
        if isinstance(value, list):
            self._met[id(value)] = len(self._met)
            return (list, tuple(self.value(v) for v in value))
        if hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
            # By what it holds: an equal object in its place computes the same.
            return tuple(self.attributes_of(value).items())
        return _Same(value)


def _digest(array: np.ndarray) -> Any:
    array = np.ascontiguousarray(array)
    if array.dtype.hasobject:
        return (array.shape, repr(array.tolist()))
    return (array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest())
