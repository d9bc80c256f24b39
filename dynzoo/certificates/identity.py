"""What a certificate holds for: this model and its weights, and images of this type of number."""

from __future__ import annotations

import hashlib
from typing import Any

import keras
import numpy as np

from dynzoo.backend import has_float64, to_numpy

__all__ = ["check_float64", "check_is_of", "input_dtype", "weights_hash"]


def input_dtype(model: keras.Model) -> str:
    """The type of images when they reach the model: Keras rounds them to ``floatx`` first."""
    dtypes = (keras.backend.standardize_dtype(model.inputs[0].dtype), keras.config.floatx())
    for dtype in dtypes:
        if dtype not in ("float32", "float64"):
            raise ValueError(
                "The model's input and `keras.config.floatx()` must be float32 or float64: a "
                "perturbation of an integer image has no radius, and a 16-bit image is not the "
                f"one that was given. Received: input dtype {dtypes[0]}, floatx {dtypes[1]}"
            )
    dtype = min(dtypes)
    if dtype == "float64":
        check_float64("The model takes float64 images")
    return dtype


def check_float64(what: str) -> None:
    """Refuses what was asked to be float64 where the backend makes float32 of it."""
    if not has_float64():
        raise ValueError(
            f"{what}, but JAX computes in float32 unless told otherwise. Call "
            "`jax.config.update('jax_enable_x64', True)` before anything runs, or use float32."
        )


def weights_hash(model: keras.Model) -> str:
    """SHA-256 of all weights, in order, with shapes and types; independent of layer names."""
    digest = hashlib.sha256()
    for weight in model.weights:
        array = np.ascontiguousarray(to_numpy(weight))
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def check_is_of(certificate: Any, model: keras.Model) -> None:
    """A ValueError where a certificate is none, or says of itself that it is another model's.

    Args:
        certificate: one of ``certify``, ``certify_local`` or ``smooth``, or a caller's own kind;
            ``None`` passes.
        model: what it is used for.
    """
    if certificate is not None and not any(hasattr(certificate, n) for n in ("radii", "decide")):
        raise ValueError(
            "`certificate` must be what `dynzoo.certify`, `certify_local` or `smooth` gave, or an "
            f"object with their method `radii`. Received: certificate={certificate!r}"
        )
    of = getattr(certificate, "model", None)
    if isinstance(of, keras.Model) and of is not model:
        raise ValueError(
            f"`certificate` must be of the model that it is given with, {model.name!r}. Received: "
            f"that of another model, {of.name!r}"
        )
