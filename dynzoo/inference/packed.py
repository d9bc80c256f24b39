"""A model on its way to other processes, with whatever is asked of it there."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.utils.extras import extra
from dynzoo.utils.tensorflow_import import without_tensorflow

__all__ = ["Packed", "pack", "unpacked"]


@dataclass
class Packed:
    """A model and what goes with it, as bytes.

    Args:
        content: both, as bytes.
        digest: hash of them.
        backend: on which the model runs.
        seed: of the draws of a random model.
    """

    content: np.ndarray
    digest: str
    backend: str
    seed: int


def pack(content: Any, models: Sequence[Any], seed: int = 0) -> Packed:
    """A model, alone or among other things, for ``unpacked``; the same bytes for all workers.

    Args:
        content: what is sent.
        models: the models in it, whose classes may be the user's own.
        seed: of the draws of a random model.

    Raises:
        ValueError: if it cannot be sent to another process.
    """
    with extra("parallel"):  # where there are jobs alone
        import cloudpickle

    try:
        with without_tensorflow():
            inner = cloudpickle.dumps(content)
            whole = cloudpickle.dumps((_own_classes(models), inner))
    except Exception as error:  # of any class of the user's in the model
        raise ValueError(
            "`jobs` needs a model and attacks that can be pickled, to send them to other "
            f"processes. {getattr(models[0], 'name', 'The model')} cannot: {error}"
        ) from error
    digest = hashlib.sha256(whole).hexdigest()
    # As an array, which joblib shares between processes in place of sending it with every part.
    return Packed(np.frombuffer(whole, dtype=np.uint8), digest, backend.name(), seed)


def _own_classes(models: Sequence[Any]) -> dict[str, Any]:
    """Classes of the user's, which Keras finds by name where it makes a model: name -> class."""
    found: dict[str, Any] = {}
    for one in models:
        flatten = getattr(one, "_flatten_layers", None)
        for layer in flatten() if flatten is not None else ():
            kind = type(layer)
            if kind.__module__.split(".")[0] not in ("keras", "dynzoo"):
                found[kind.__name__] = kind
    return found


# What this process has unpacked last: one model, for which nothing need be compiled again.
_UNPACKED: dict[str, Any] = {}


def unpacked(packed: Packed) -> Any:
    """What was packed, in a process of its own; kept until something else is unpacked.

    Raises:
        ValueError: if the process runs another backend, or does not know a class of the model's.
    """
    if backend.name() != packed.backend:
        raise ValueError(
            f"All workers must run Keras on {packed.backend}: start them with "
            f"KERAS_BACKEND={packed.backend}. One runs on {backend.name()}"
        )
    if packed.digest not in _UNPACKED:
        _UNPACKED.clear()
        _UNPACKED[packed.digest] = _unpack(packed.content)
    return _UNPACKED[packed.digest]


def _unpack(content: np.ndarray) -> Any:
    with warnings.catch_warnings():
        # the state of an optimizer, which an evaluation has no use for
        warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
        try:
            # written by the process that started this one
            classes, inner = pickle.loads(content.tobytes())
            with keras.saving.custom_object_scope(classes), without_tensorflow():
                return pickle.loads(inner)
        except Exception as error:
            raise ValueError(
                "A worker cannot make the model. Where it has classes or functions of yours, let "
                f"them stand in a module that workers can import: {error}"
            ) from error
