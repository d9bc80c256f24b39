"""Whether what a layer states of itself was stated of what it computes.

A bound is proved for one forward pass. A subclass that computes something else inherits the number
without the proof, and so does an object on which a method was put.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import keras

__all__ = ["FRAMEWORKS", "defined_at", "redefined", "replaced_method", "used_names"]

# Their own classes do what their names say; nothing is followed into them.
FRAMEWORKS = ("keras", "tensorflow", "torch", "jax", "flax", "numpy", "scipy", "builtins")
# Where a forward pass starts, and what can stand between it and its attributes.
_ENTRIES = ("__call__", "call", "call_float64", "quantized_call", "__getattr__", "__getattribute__")
# Keras itself wraps these on every object; neither changes what a built layer computes.
_WRAPPED_BY_KERAS = frozenset({"build", "quantize"})
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def defined_at(cls: type, name: str) -> int:
    """Place of the first class of the MRO that defines a name; the length of the MRO if none."""
    mro = cls.__mro__
    return next((i for i, base in enumerate(mro) if name in vars(base)), len(mro))


def redefined(cls: type, statement: str) -> str | None:
    """What the forward pass uses and a class further down than ``statement`` defines, or None.

    Args:
        cls: class of a layer.
        statement: name of the method that states something of ``call`` and ``call_float64``.
    """
    place = defined_at(cls, statement)
    below = {name for base in cls.__mro__[:place] for name in vars(base)}
    if not below:
        return None
    return next((name for name in used_names(cls, _ENTRIES) if name in below), None)


def used_names(cls: type, entries: Iterable[str]) -> Iterator[str]:
    """Attributes of a class that its methods ``entries`` use, and what these use in turn.

    Read from the compiled code, so rather too many than too few: a name counts wherever it
    stands, in nested functions, in functions of the modules that are called, and in strings.
    """
    base = set(keras.layers.Layer.__mro__)
    names, seen = list(entries), set(entries)
    codes: set[types.CodeType] = set()
    while names:
        name = names.pop(0)
        definitions = [vars(c)[name] for c in cls.__mro__ if name in vars(c)]
        if not definitions:
            continue
        yield name
        for c in cls.__mro__:
            if name in vars(c) and c not in base:
                new = sorted(_names_in(vars(c)[name], codes) - seen)
                seen.update(new)
                names.extend(new)


def _names_in(value: Any, codes: set[types.CodeType]) -> set[str]:
    """Names in the code behind a class attribute, once for each piece of code."""
    found: set[str] = set()
    functions = list(_functions(value))
    while functions:
        function = functions.pop()
        if function.__code__ in codes:
            continue
        codes.add(function.__code__)
        names = set(_code_names(function.__code__))
        found |= names
        for cell in function.__closure__ or ():
            try:
                functions.extend(_functions(cell.cell_contents))
            except ValueError:  # an empty cell
                continue
        for name in names:
            for helper in _global(function, name, names):
                functions.extend(_functions(helper))
        wrapped = getattr(function, "__wrapped__", None)
        functions.extend(_functions(wrapped))
    return found


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The Python functions behind a function, property, partial, method or callable object."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, property):
        yield from _functions(value.fget)
    elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
        yield from _functions(value.__func__)
    elif isinstance(value, (functools.partial, functools.partialmethod)):
        yield from _functions(value.func)
    elif isinstance(value, functools.cached_property):
        yield from _functions(value.func)
    elif callable(value) and not isinstance(value, type):
        yield from _functions(vars(type(value)).get("__call__"))


def _global(function: types.FunctionType, name: str, names: set[str]) -> Iterator[Any]:
    """Functions of the user's own modules that a function reaches by a global name."""
    value = function.__globals__.get(name)
    if isinstance(value, types.FunctionType) and not _of_framework(value.__module__):
        yield value
    elif isinstance(value, types.ModuleType) and not _of_framework(value.__name__):
        for attribute in names:
            inner = vars(value).get(attribute)
            if isinstance(inner, types.FunctionType) and not _of_framework(inner.__module__):
                yield inner


def _of_framework(module: str | None) -> bool:
    return (module or "").split(".")[0] in FRAMEWORKS


def _code_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_names(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant


def replaced_method(obj: Any, among: set[str] | None = None) -> str | None:
    """A method of its class that an object itself replaces (or a hook on it), or None.

    Args:
        obj: a layer or model.
        among: names to look at; all if ``None``.
    """
    for name in vars(obj):
        if name in _WRAPPED_BY_KERAS or (among is not None and name not in among):
            continue
        for base in type(obj).__mro__:
            if name in vars(base):
                value = vars(base)[name]
                # A property is not replaced by what is stored under its name.
                if isinstance(value, (staticmethod, classmethod)) or callable(value):
                    return name
                break
    # PyTorch modules call these around the forward pass and take what they return.
    return next((hook for hook in _HOOKS if vars(obj).get(hook)), None)
