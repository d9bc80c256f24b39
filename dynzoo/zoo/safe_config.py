"""What a preset's ``config.json`` may name: Keras' own building blocks and dynzoo's, nothing else.

Keras' safe mode stops serialised lambdas. This check comes before any object is made, and is an
allow-list: a config from an unknown source can then only describe a network, not run code.
"""

import importlib
import re
from typing import Any

import keras

from dynzoo.operators.base import Operator
from dynzoo.utils.strict_json import short

_MODULES = (
    "keras.layers",
    "keras.models",
    "keras.initializers",
    "keras.constraints",
    "keras.regularizers",
    "keras.activations",
    "keras.dtype_policies",
    "keras.random",
    # classes that Keras does not export are stored under the module they are defined in:
    # functional models, and operations such as `x + y` in a functional graph
    "keras.src.layers",
    "keras.src.models",
    "keras.src.ops",
)
_FROM_KERAS_ITSELF = {"Model", "Sequential", "DTypePolicy", "FloatDTypePolicy", "DTypePolicyMap"}
_MODELS = {"Model", "Functional", "Sequential"}
_POLICIES = {"DTypePolicy", "FloatDTypePolicy", "DTypePolicyMap"}
# layers that hold code, read files named in their config, or keep tables of words
_REFUSED = {
    "Lambda",
    "TFSMLayer",
    "TorchModuleWrapper",
    "JaxLayer",
    "FlaxLayer",
    "IndexLookup",
    "StringLookup",
    "IntegerLookup",
    "TextVectorization",
    "Hashing",
    "HashedCrossing",
}
# operations that call a function they are given
_REFUSED |= {"Map", "Scan", "AssociativeScan", "Cond", "Switch", "ForiLoop", "WhileLoop"}
_REFUSED |= {"VectorizedMap", "CustomGradient"}
_PARTS = (
    keras.Operation,
    keras.initializers.Initializer,
    keras.constraints.Constraint,
    keras.regularizers.Regularizer,
    keras.random.SeedGenerator,
    Operator,
)
_PLAIN = {"__keras_tensor__", "__tensor__", "__numpy__", "__slice__", "__ellipsis__"}


def check_config(config: Any, where: str = "config.json") -> None:
    """Raise a ``ValueError`` if a serialised Keras object names a class that is not allowed.

    Allowed are layers, models, operations, initializers, constraints, regularizers, activations and
    dtype policies of Keras (without those that hold code or read files), and classes registered
    under ``dynzoo>``. Functions and lambdas are refused.

    Args:
        config: what ``keras.saving.serialize_keras_object`` gave, as parsed from JSON.
        where: name of the file, for the message.
    """
    pending = [config]
    while pending:  # a loop, for a deeply nested file must not exhaust Python's stack
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            if "class_name" in value:
                problem = _problem(value)
                if problem:
                    raise ValueError(
                        f"{where} is refused: {problem}. A preset may only name Keras' own "
                        "building blocks and classes registered under 'dynzoo>'."
                    )
            pending.extend(value.values())


def without_compile_config(config: Any) -> Any:
    """The same config, without optimizers and losses at any depth."""
    if isinstance(config, list):
        return [without_compile_config(value) for value in config]
    if isinstance(config, dict):
        return {
            key: without_compile_config(value)
            for key, value in config.items()
            if not (key == "compile_config" and "class_name" in config)
        }
    return config


def _problem(value: dict[str, Any]) -> str | None:
    class_name, module = value["class_name"], value.get("module")
    registered = value.get("registered_name")
    if not isinstance(class_name, str):
        return f"it contains {_text(class_name)}, which is not the name of a class"
    if class_name in _PLAIN:
        return _problem_of_plain(class_name, value.get("config"))
    if not re.fullmatch(r"[A-Z]\w*", class_name):
        return f"it contains {_text(class_name)}, which is not the name of a class"
    if isinstance(registered, str) and registered.startswith("dynzoo>"):
        cls = keras.saving.get_registered_object(registered)
        if cls is None:
            return f"this version of dynzoo has no class {_text(registered)}; a newer one may"
        return _problem_of_class(cls, registered)
    name = short(f"{module}.{class_name}", 80)
    if registered not in (None, class_name) or not isinstance(module, str):
        return f"it contains {_text(registered or class_name)} from the module {_text(module)}"
    allowed = any(module == m or module.startswith(m + ".") for m in _MODULES)
    if not allowed and not (module == "keras" and class_name in _FROM_KERAS_ITSELF):
        return f"it contains {name}"
    if class_name in _REFUSED:
        return f"it contains {name}, which can run code or read files"
    cls = _class(module, class_name)
    if cls is None:
        return f"this version of Keras has no class {name}"
    return _problem_of_class(cls, name)


def _class(module: str, class_name: str) -> Any:
    """The class that Keras would make, found without making it."""
    try:
        found = getattr(importlib.import_module(module), class_name, None)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, type) else None


def _problem_of_class(cls: Any, name: str) -> str | None:
    """Why no object of this class belongs into a preset, abstract bases among them."""
    if not isinstance(cls, type):
        return f"{name} is no class"
    # by module as well: the backends' mixins of every layer have names such as JaxLayer
    parents = [p.__name__ for p in cls.__mro__ if ".backend." not in p.__module__]
    if _REFUSED.intersection(parents):
        return f"it contains {name}, which can run code or read files"
    if issubclass(cls, keras.DTypePolicy) or cls.__name__ == "DTypePolicyMap":
        return None if cls.__name__ in _POLICIES else f"it contains {name}, a quantised type"
    if not issubclass(cls, _PARTS):
        return f"it contains {name}, which is no part of a network"
    if issubclass(cls, keras.Model):
        return None if cls.__name__ in _MODELS else f"it contains {name}, a model of its own kind"
    call = getattr(cls, "call", None)
    if issubclass(cls, keras.Layer):
        # what Keras does not export are bases, which lack a part that its subclasses bring
        exported = getattr(keras.layers, cls.__name__, None) is cls
        ours = cls.__module__.startswith("dynzoo.")
        if call is keras.Layer.call or not (exported or ours):
            return f"it contains {name}, an abstract layer, which computes nothing"
    elif issubclass(cls, keras.Operation) and call is keras.Operation.call:
        return f"it contains {name}, an abstract operation, which computes nothing"
    return None


def _problem_of_plain(class_name: str, config: Any) -> str | None:
    # NumPy takes "S1000000000" for a type, of one gigabyte an entry
    if class_name in ("__tensor__", "__numpy__"):
        dtype = config.get("dtype") if isinstance(config, dict) else None
        if not isinstance(dtype, str) or not re.fullmatch(r"bool|b?float\d\d|u?int\d\d?", dtype):
            return f"it contains a constant of type {_text(dtype)}"
    return None


def _text(value: Any) -> str:
    return short(repr(value), 60)
