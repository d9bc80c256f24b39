"""What runs an exported graph without dynzoo: one loader for each format."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynzoo.export import certificate_file
from dynzoo.export.certificate_file import CERTIFICATE
from dynzoo.utils.files import sha256
from dynzoo.utils.strict_json import short

__all__ = ["FORMATS", "Format", "check_available", "load"]

Run = Callable[[np.ndarray], np.ndarray]


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


def check_available(format: str, backend: str, run: bool) -> None:
    """Refuses what cannot be written on this backend or with the packages at hand.

    Args:
        format: a key of `FORMATS`.
        backend: the running backend of Keras.
        run: whether the exported graph is to be run as well.

    Raises:
        ValueError: naming the reason and the way around.
    """
    if format not in FORMATS:
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


def load(format: str, path: str | Path) -> tuple[Run, str]:
    """The exported graph as a function from images to logits, and what runs it.

    Where a `certificate.json` stands beside the graph, the graph must be the one that it names. A
    graph is a program: run only those that you made or trust.

    Args:
        format: a key of `FORMATS`.
        path: the file or folder that was exported.

    Returns:
        (function of an array (n, ...) that gives logits (n, K), name and version of the runtime).

    Raises:
        ValueError: naming the file, if it is missing, is not the one that was certified, or cannot
            be read.

    Example:

    >>> run, runtime = load("onnx", "exported/model.onnx")
    >>> logits = run(x_test[:100])
    """
    makers = {"onnx": _onnx, "saved_model": _saved_model, "torch": _torch, "litert": _litert}
    if format not in makers:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received: {format!r}")
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist: export the model again.")
    _check_certified(path)
    try:
        return makers[format](path)
    except ImportError:
        raise
    except Exception as error:  # each runtime has its own kinds of errors
        raise ValueError(
            f"{path} is damaged or no graph of format {format!r}: {short(error)}"
        ) from error


def _check_certified(path: Path) -> None:
    """Refuse a graph that is not the one of the certificate beside it."""
    file = path.parent / CERTIFICATE
    if not file.is_file():
        return
    graph = certificate_file.read(file).get("graph")
    sums = graph.get("sha256") if isinstance(graph, dict) else None
    if not isinstance(sums, dict):
        raise ValueError(f"{file} is damaged: it does not name the files of its graph.")
    own = sorted(p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
    found = {p.relative_to(path.parent).as_posix(): sha256(p) for p in own}
    named = {n: s for n, s in sums.items() if n == path.name or n.startswith(path.name + "/")}
    for name in sorted(found.keys() | named.keys()):
        if found.get(name) != named.get(name):
            raise ValueError(
                f"{path.parent / name} is not the graph of {CERTIFICATE} beside it: its SHA-256 "
                "is another. Export the model again."
            )


def _named(package: str) -> str:
    return f"{package} {getattr(importlib.import_module(package), '__version__', '')}".strip()


def _onnx(path: Path) -> tuple[Run, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0], _named("onnxruntime")


def _saved_model(path: Path) -> tuple[Run, str]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda x: loaded.serve(tf.constant(x)).numpy(), _named("tensorflow")


def _torch(path: Path) -> tuple[Run, str]:
    import torch

    module = torch.export.load(str(path)).module()

    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()

    return run, _named("torch")


def _litert(path: Path) -> tuple[Run, str]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=str(path))
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(source, list(x.shape))
        interpreter.allocate_tensors()
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run, _named("ai_edge_litert")
