"""Keeps Keras on JAX and PyTorch from importing TensorFlow to look for what cannot be there.

To write down a layer's config, or to set a seed, Keras asks whether TensorFlow is installed by
importing it: seconds, and as much memory as the rest of the process, for a question whose answer
is no. Where TensorFlow has not been imported, nothing can be of its types, and it has no seed that
has been set.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import keras

__all__ = ["config_of", "serialized", "set_random_seed", "without_tensorflow"]


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Within it Keras takes TensorFlow for missing unless it has been imported already.

    What runs in it must not need TensorFlow. Afterwards Keras asks anew.

    Example:

    >>> import keras
    >>> with without_tensorflow():
    ...     config = keras.layers.Dense(3).get_config()
    >>> config["units"]
    3
    """
    lazy = _lazy_tensorflow()
    if "tensorflow" in sys.modules or getattr(lazy, "_available", False) is not None:
        yield
        return
    lazy._available = False
    try:
        yield
    finally:
        lazy._available = None


def config_of(thing: Any) -> dict[str, Any]:
    """``thing.get_config()`` of something of Keras', ``without_tensorflow``."""
    with without_tensorflow():
        return dict(thing.get_config())


def serialized(thing: Any) -> Any:
    """``keras.saving.serialize_keras_object``, ``without_tensorflow``."""
    with without_tensorflow():
        return keras.saving.serialize_keras_object(thing)


def set_random_seed(seed: int) -> None:
    """``keras.utils.set_random_seed``, ``without_tensorflow``."""
    with without_tensorflow():
        keras.utils.set_random_seed(seed)


def _lazy_tensorflow() -> Any:
    """What Keras imports TensorFlow by; ``None`` in a release that does it otherwise."""
    try:
        return importlib.import_module("keras.src.utils.module_utils").tensorflow
    except (ImportError, AttributeError):
        return None
