"""What a preset's `config.json` may name: Keras' own building blocks and dynzoo's, nothing else.

Keras' safe mode stops serialised lambdas. This check comes before any object is made, and is an
allow-list: a config from an unknown source can then only describe a network, not run code.
"""

import re

import keras

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
# layers that hold code, or that read files named in their config
_REFUSED = {
    "Lambda",
    "TFSMLayer",
    "TorchModuleWrapper",
    "JaxLayer",
    "FlaxLayer",
    "StringLookup",
    "IntegerLookup",
    "TextVectorization",
}
_PLAIN = {"__keras_tensor__", "__tensor__", "__numpy__", "__slice__", "__ellipsis__"}


def check_config(config, where: str = "config.json") -> None:
    """Raise a `ValueError` if a serialised Keras object names a class that is not allowed.

    Allowed are layers, models, operations, initializers, constraints, regularizers, activations and
    dtype policies of Keras (without those that hold code or read files), and classes registered
    under `dynzoo>`. Functions and lambdas are refused.

    Args:
        config: what `keras.saving.serialize_keras_object` gave, as parsed from JSON.
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


def without_compile_config(config):
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


def _problem(value: dict) -> str | None:
    class_name, module = value["class_name"], value.get("module")
    registered = value.get("registered_name")
    if not isinstance(class_name, str):
        return f"it contains {class_name!r}, which is not the name of a class"
    if class_name in _PLAIN:
        return None
    if not re.fullmatch(r"[A-Z]\w*", class_name):
        return f"it contains {class_name!r}, which is not the name of a class"
    if isinstance(registered, str) and registered.startswith("dynzoo>"):
        if keras.saving.get_registered_object(registered) is None:
            return f"this version of dynzoo has no class {registered!r}; a newer one may"
        return None
    name = f"{module}.{class_name}"
    if registered not in (None, class_name) or not isinstance(module, str):
        return f"it contains {registered or class_name!r} from the module {module!r}"
    if class_name in _REFUSED:
        return f"it contains {name}, which can run code or read files"
    allowed = any(module == m or module.startswith(m + ".") for m in _MODULES)
    if allowed or (module == "keras" and class_name in _FROM_KERAS_ITSELF):
        return None
    return f"it contains {name}"
