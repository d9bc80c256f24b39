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
from dynzoo.utils.strict_json import short

__all__ = ["FORMATS", "load"]

Run = Callable[[np.ndarray], Any]


def load(format: str, path: str | Path) -> tuple[Run, str]:
    """The exported graph as a function from images to logits, and what runs it.

    Where a `certificate.json` stands beside the graph, the graph must be the one that it names. A
    graph is a program: run only those that you made or trust.

    Args:
        format: a key of `FORMATS`.
        path: the file or folder that was exported.

    Returns:
        (function of an array (n, ...), name and version of the runtime). The function gives logits
        (n, K); of a graph with radii the tuple (logits, labels (n,) int, radii (n,)).

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
    if file.is_file():
        certificate_file.check_graph(path, certificate_file.read(file), f"{CERTIFICATE} beside it")


def _named(package: str) -> str:
    return f"{package} {getattr(importlib.import_module(package), '__version__', '')}".strip()


def _answers(outputs: Any) -> Any:
    """Of one output the array, of several a tuple."""
    arrays = tuple(np.asarray(part) for part in outputs)
    return arrays[0] if len(arrays) == 1 else arrays


def _onnx(path: Path) -> tuple[Run, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: _answers(session.run(None, {name: x})), _named("onnxruntime")


def _saved_model(path: Path) -> tuple[Run, str]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda x: _answers(tf.nest.flatten(loaded.serve(tf.constant(x)))), _named("tensorflow")


def _torch(path: Path) -> tuple[Run, str]:
    import torch

    module = torch.export.load(str(path)).module()

    def run(x: np.ndarray) -> Any:
        with torch.no_grad():
            outputs = module(torch.from_numpy(x))
        return _answers([outputs] if torch.is_tensor(outputs) else outputs)

    return run, _named("torch")


def _litert(path: Path) -> tuple[Run, str]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=str(path))
    source = interpreter.get_input_details()[0]["index"]
    # Their order in the file is none; their names end with their places.
    details = sorted(interpreter.get_output_details(), key=lambda about: about["name"])
    targets = [about["index"] for about in details]

    def run(x: np.ndarray) -> Any:
        interpreter.resize_tensor_input(source, list(x.shape))
        interpreter.allocate_tensors()
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return _answers(interpreter.get_tensor(target) for target in targets)

    return run, _named("ai_edge_litert")
