"""What runs an exported graph without dynzoo: one loader for each format."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.export import certificate_file
from dynzoo.export.certificate_file import CERTIFICATE
from dynzoo.export.formats import FORMATS as FORMATS
from dynzoo.utils.files import sha256
from dynzoo.utils.strict_json import short

__all__ = ["FORMATS", "load"]

Run = Callable[[np.ndarray], np.ndarray]


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
