"""The formats of export: what writes and reads each, and where it can be had. Needs no Keras."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

from dynzoo.utils.files import check_place, folder_of

__all__ = ["FORMATS", "Format", "check_available", "check_writable"]


class Format(NamedTuple):
    """A format of export: its name with Keras, its file, and where it can be made.

    `packages` are those (beside Keras and the backend) that write the format on each backend, and
    `reader` the one that runs it. `refused` gives the reason for each backend that cannot.
    """

    keras_name: str
    file: str
    packages: dict[str, tuple[str, ...]]
    reader: str
    refused: dict[str, str]


FORMATS = {
    "onnx": Format(
        "onnx",
        "model.onnx",
        {"torch": ("onnx",), "tensorflow": ("tf2onnx", "onnx")},
        "onnxruntime",
        {"jax": "on JAX, Keras writes ONNX by way of jax2onnx, which needs flax and equinox"},
    ),
    "saved_model": Format(
        "tf_saved_model",
        "saved_model",
        {"tensorflow": (), "jax": ("tensorflow",)},
        "tensorflow",
        {"torch": "on PyTorch, Keras writes a SavedModel for one batch size only"},
    ),
    "torch": Format(
        "torch",
        "model.pt2",
        {"torch": ()},
        "torch",
        dict.fromkeys(("tensorflow", "jax"), "only PyTorch traces a model to an ExportedProgram"),
    ),
    "litert": Format(
        "litert",
        "model.tflite",
        {"tensorflow": ()},
        "ai_edge_litert",
        {
            "jax": "Keras writes LiteRT from TensorFlow and PyTorch only",
            "torch": "on PyTorch, Keras writes LiteRT for one batch size only",
        },
    ),
}


def check_writable(path: str | os.PathLike[str], format: str, backend: str, run: bool) -> Path:
    """The absolute path of an export, if there is nothing and the format can be written there.

    Raises:
        ValueError, OSError: naming the reason; see `check_available`.
    """
    check_available(format, backend, run)
    target = folder_of(path)
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already: choose another folder.")
    return check_place(target, folder=True)


def check_available(format: str, backend: str, run: bool) -> None:
    """Refuses what cannot be written on this backend or with the packages at hand.

    Args:
        format: a key of `FORMATS`.
        backend: the running backend of Keras.
        run: whether the exported graph is to be run as well.

    Raises:
        ValueError: naming the reason and the way around.
    """
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received: {format!r}")
    about = FORMATS[format]
    if backend not in about.packages:
        others = " or ".join(f"`--backend {name}`" for name in about.packages)
        reason = about.refused.get(backend, f"Keras does not write it on {backend}")
        raise ValueError(
            f"Format {format!r} cannot be written here: {reason}. Presets are the same on every "
            f"backend: use {others} (in Python: KERAS_BACKEND)."
        )
    needed = [*about.packages[backend], *([about.reader] if run else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        install = " ".join(name.replace("_", "-") for name in missing)
        raise ValueError(f"Format {format!r} needs {', '.join(missing)}: pip install {install}")
