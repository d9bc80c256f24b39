"""Which model it is: by what it computes, never by its name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dynzoo import backend
from dynzoo.inference.draws import seed_states
from dynzoo.utils.tensorflow_import import serialized

__all__ = ["architecture_of", "identity_of", "weights_hash"]

# Where a functional model's config refers to its layers by their names.
_REFERENCES = ("keras_history", "inbound_nodes", "input_layers", "output_layers")
# What does not change what the model computes at inference, or only says it once more.
_LEFT_OUT = ("name", "trainable", "build_config", "compile_config", "registered_name", "seed")


def identity_of(model: Any) -> dict[str, str]:
    """Hashes of a model's weights and of its architecture, the same in every process.

    Guarantee: two built models with one config but for names give the same, whatever was built
    before them; other weights, or another config, give others.

    Args:
        model: a built model; what is no Keras model is known by its class and variables.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    >>> identity_of(model) == identity_of(keras.models.clone_model(model))  # fresh weights
    False
    """
    return {"weights": weights_hash(model), "architecture": architecture_of(model)}


def weights_hash(model: Any) -> str:
    """SHA-256 of all variables but the states of random generators, which every draw moves."""
    digest, moving = hashlib.sha256(), {id(state) for state in seed_states(model)}
    for variable in getattr(model, "variables", []):
        if id(variable) not in moving:
            value = backend.to_numpy(variable.value)
            digest.update(f"{value.shape} {value.dtype}".encode() + value.tobytes())
    return digest.hexdigest()


def architecture_of(model: Any) -> str:
    """SHA-256 of the config, in which layers count by their place and not by their names."""
    try:
        config = serialized(model)
    except Exception:  # a class of the user's that says nothing of itself: what there is to see
        config = [_class(layer) for layer in (model, *getattr(model, "layers", []))]
    names: dict[str, int] = {}
    _number(config, names)
    plain = _without_names(config, names, False)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def _class(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _number(config: Any, names: dict[str, int]) -> None:
    if isinstance(config, dict):
        if isinstance(config.get("name"), str):
            names.setdefault(config["name"], len(names))
        for value in config.values():
            _number(value, names)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _number(value, names)


def _without_names(config: Any, names: dict[str, int], refers: bool) -> Any:
    if isinstance(config, dict):
        return {
            key: _without_names(value, names, refers or key in _REFERENCES)
            for key, value in config.items()
            if key not in _LEFT_OUT
        }
    if isinstance(config, (list, tuple)):
        return [_without_names(value, names, refers) for value in config]
    return names.get(config, config) if refers and isinstance(config, str) else config
