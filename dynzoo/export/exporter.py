"""Export a model to ONNX, SavedModel, PyTorch's ExportedProgram or LiteRT, with its certificate.

The graph is plain inference (``dynzoo.export.inference_graph``), written by Keras' own exporters.
Beside it stands ``certificate.json``, from which anyone derives certified radii of the graph's
logits with NumPy alone. Before the folder appears, the graph is run by its own runtime and
compared.
"""

from __future__ import annotations

import os
import re
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.certificates import margins
from dynzoo.certificates.certificate import Certificate
from dynzoo.certificates.errors import ReferenceMismatchError
from dynzoo.certificates.graph import trace
from dynzoo.certificates.identity import input_dtype
from dynzoo.certificates.rounding.bound import rounding_kinds
from dynzoo.certificates.rounding.program import check_reference, probe_images, run_program
from dynzoo.export.built_in_forms import use_built_in_forms
from dynzoo.export.certificate import CERTIFICATE, certificate_of
from dynzoo.export.certificate import numbers_of as numbers_of
from dynzoo.export.certificate import radii as radii
from dynzoo.export.formats import FORMATS, check_writable
from dynzoo.export.inference_graph import inference_graph
from dynzoo.export.radius_outputs import OUTPUTS, with_radii
from dynzoo.export.runtimes import Run, load
from dynzoo.inference.model_layers import random_layers
from dynzoo.robustness import provenance
from dynzoo.utils import interruption
from dynzoo.utils.files import move_into_place, sha256, to_json
from dynzoo.utils.strict_json import short

__all__ = ["FORMATS", "ExportCheckError", "check_target", "export_model", "numbers_of", "radii"]

_IMAGES = 100
_TOLERANCE = 1e-4
_MEASURED = 16
# Images far outside of any range drive every pre-activation that is not bounded to its ends.
_SCALES = (-1e4, -1e2, 1e2, 1e4)


class ExportCheckError(ValueError):
    """An exported graph that does not compute what the model computes."""


def export_model(
    model: keras.Model,
    path: str | os.PathLike,
    format: str,
    *,
    x: Any = None,
    check: bool = True,
    radii: bool = False,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a folder with the model as a graph of plain inference, and its certificate.

    The batch size of the graph stays open. The folder is written whole or not at all: an existing
    one is never touched, and a graph that fails the check is removed.

    Guarantee: with ``check``, the graph's logits of 100 images, run by the format's own runtime,
    are within 1e-4 of the model's (or of float32 rounding, where logits are above 8), and the radii
    derived from them exceed those of ``certify(model)`` by no more than the rounding margin allows;
    its logits of images up to 10,000 times as large are as near to a float64 reference as certified
    (without a certificate: to the model). With ``radii`` no radius of the graph's is above the one
    that ``dynzoo.export.radii`` derives in float64.

    Args:
        model: built model from one input of fixed shape to logits. What cannot be certified is
            exported too; ``certificate.json`` then gives the reason.
        path: the folder to write; must not exist.
        format: "onnx", "saved_model", "torch" or "litert".
        x: images for the check, in the scale of the model; default: uniform noise in [0, 1].
        check: run the exported graph and compare.
        radii: whether the graph gives labels (n,) and certified radii (n,) after the logits, under
            the default assumption on roundings.
        source: where the model comes from; kept in the certificate.

    Returns:
        The content of ``certificate.json``.

    Raises:
        ValueError: if the backend cannot write the format, a package is missing, or radii are asked
            of a model without a certificate.
        FileExistsError: if the path exists.
        ExportCheckError: (a ValueError) if the exported graph computes something else.

    Example:

    >>> import keras
    >>> from dynzoo.export import export_model
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> about = export_model(model, "exported", "onnx")
    >>> about["graph"]["file"]
    'model.onnx'
    """
    target = check_target(path, format, check)
    _check_model(model)
    if not isinstance(source, Mapping | None):
        raise ValueError(f"`source` must be a mapping or None. Received: source={source!r}")
    certificate = certificate_of(model)
    graph = _graph(model, format)
    if radii:
        if isinstance(certificate, str):
            raise ValueError(f"`radii` must be False: the model has no certificate. {certificate}")
        graph = with_radii(graph, certificate)
    images = _images(model, x)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    with interruption.scratch(work):
        file = work / FORMATS[format].file
        _write(graph, file, format)
        checked = _checked(model, certificate, format, file, images, radii) if check else None
        about = {
            "format": 1,
            "model": model.name,
            "graph": {
                "format": format,
                "file": file.name,
                "input": ["batch", *model.input_shape[1:]],
                "dtype": keras.backend.standardize_dtype(model.inputs[0].dtype),
                "classes": model.output_shape[-1],
                "outputs": list(OUTPUTS if radii else OUTPUTS[:1]),
                "sha256": _hashes(work),
            },
            **numbers_of(certificate, _range(model, images)),
            "check": checked,
            "source": dict(source or {}),
            "versions": provenance.versions(),
        }
        (work / CERTIFICATE).write_text(to_json(about), encoding="utf-8")
        move_into_place(work, target)
    return about


def _checked(
    model: keras.Model,
    certificate: Certificate | str,
    format: str,
    file: Path,
    images: np.ndarray,
    radii: bool,
) -> dict[str, Any]:
    """Runs the written graph and compares; what was found, for the certificate's file."""
    loaded, runtime = load(format, file)

    def answers(x: np.ndarray) -> Any:
        try:
            return loaded(x)
        except Exception as error:  # each runtime has its own kinds of errors
            raise ExportCheckError(f"{runtime} cannot run the graph: {short(error)}") from error

    run: Run = (lambda x: answers(x)[0]) if radii else answers
    checked = {"runtime": runtime, **_compare(model, run, images)}
    if isinstance(certificate, Certificate):
        checked["largest_logit_error"] = _check_rounding(certificate, model, run, images)
        checked["largest_radius_excess"] = _compare_radii(certificate, run(images), images)
    if not random_layers(model):
        _check_large(certificate, model, run)
    if radii and isinstance(certificate, Certificate):
        for batch in (images, _large(model)):
            _check_outputs(certificate, answers(batch), batch)
    return checked


def check_target(path: str | os.PathLike, format: str, check: bool = True) -> Path:
    """The absolute path of an export; refuses one that exists, and formats that cannot be had.

    Raises:
        ValueError: if the backend cannot write the format, or a package is missing.
        FileExistsError: if the path exists.
    """
    return check_writable(path, format, backend.name(), run=check)


def _check_model(model: keras.Model) -> None:
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    fixed = len(inputs) == 1 and None not in inputs[0].shape[1:]
    if not (fixed and len(outputs) == 1 and len(outputs[0].shape) == 2):
        raise ValueError(
            "`model` must be a built model from one input of fixed shape to logits (n, K). "
            f"Received: {model!r} with {len(inputs)} input(s) and {len(outputs)} output(s)"
        )


def _graph(model: keras.Model, format: str) -> keras.Model:
    try:
        graph = inference_graph(model)
    except ValueError:
        # A graph that cannot be read is exported as it is: the same function, only not as lean.
        return model
    use_built_in_forms(graph, format, backend.name())
    return graph


def _write(graph: keras.Model, file: Path, format: str) -> None:
    options: dict[str, Any] = {}
    if format == "onnx":
        # Keras exports only models that were called.
        graph(np.zeros((1, *graph.input_shape[1:]), input_dtype(graph)))
    if format == "litert":
        import tensorflow as tf

        # Without this Keras allows operations that only an interpreter with TensorFlow's own runs.
        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    if format == "torch":
        import torch

        options["dynamic_shapes"] = {0: torch.export.Dim("batch", min=1)}
    with warnings.catch_warnings():
        # The exporters warn of values that a trace keeps as constants: here all of them shall be.
        warnings.simplefilter("ignore")
        try:
            graph.export(str(file), format=FORMATS[format].keras_name, verbose=False, **options)
        except Exception as error:  # each exporter has its own kinds of errors
            raise ValueError(f"Keras could not write format {format!r}: {_why(error)}") from error


def _why(error: Exception) -> str:
    """One line; of the many of LiteRT's converter, the one that names the operations."""
    lacking = re.search(r"TF Select ops: *([^\n]+)", str(error))
    if lacking:
        return f"LiteRT has no built-in operation for {lacking[1].strip()}."
    return short(error)


def _images(model: keras.Model, x: Any) -> np.ndarray:
    shape = tuple(model.input_shape[1:])
    if x is None:
        x = np.random.default_rng(0).uniform(size=(_IMAGES, *shape))
    images = np.asarray(x)
    if images.shape[1:] != shape or not len(images) or images.dtype.kind != "f":
        raise ValueError(
            f"`x` must be float images of shape (n, {', '.join(map(str, shape))}). "
            f"Received: x.shape={images.shape}, x.dtype={images.dtype}"
        )
    return images[:_IMAGES].astype(input_dtype(model))


def _range(model: keras.Model, images: np.ndarray) -> tuple[float, float]:
    """The range of the images that the graph is made for: [0, 1], and what the check has seen."""
    high = 1.0
    for layer in getattr(model, "layers", []):
        scale = np.max(np.abs(layer.scale)) if type(layer) is keras.layers.Rescaling else 0.0
        if 0 < scale < 1.0 / 64.0:  # a model that takes bytes and divides by 255
            high = max(high, 1.0 / float(scale))
    return min(0.0, float(images.min())), max(high, float(images.max()))


def _check_rounding(
    certificate: Certificate, model: keras.Model, run: Run, images: np.ndarray
) -> float:
    """Largest error of the graph's logits in its own runtime.

    Raises:
        ExportCheckError: if one is above the bound that the certificate counts on.
    """
    program, largest = trace(model), 0.0
    probes = probe_images(program.input_shape).astype(images.dtype)
    for batch in (probes, probes[:1], images[:_MEASURED]):
        values, logits = run_program(program, batch), np.asarray(run(batch))
        allowed = certificate.logit_error(batch, "worst-case")
        try:
            check_reference(values, program.output, logits, allowed)
        except ReferenceMismatchError as error:
            raise ExportCheckError(
                f"The exported graph is less exact than certified. {error}"
            ) from error
        gaps = np.linalg.norm(values[program.output] - logits, axis=1)
        largest = max(largest, float(np.max(gaps, initial=0.0, where=np.isfinite(gaps))))
    return largest


def _large(model: keras.Model) -> np.ndarray:
    """White images and noise, many times as large and of either sign."""
    base = probe_images(tuple(model.input_shape[1:]))[1:3]
    return np.concatenate([scale * base for scale in _SCALES]).astype(input_dtype(model))


def _check_large(certificate: Certificate | str, model: keras.Model, run: Run) -> None:
    """Refuses a graph that overflows, or loses digits, where the model does not.

    Raises:
        ExportCheckError: if it does.
    """
    images = _large(model)
    logits = np.asarray(run(images), np.float64)
    if isinstance(certificate, Certificate):
        bound = certificate.rounding_bound
        s = bound.distances(images)
        within = np.max([margins.reach(bound, s[:, k], k) for k in range(s.shape[1])], axis=0) > 0
        program = trace(model)
        expected = run_program(program, images)[program.output]
        # Not `logit_error`, which refuses images outside of a preset's range.
        head = certificate.lipschitz / certificate.body_lipschitz * (1 + 1e-12)
        allowed = bound.of_logits(images, rounding_kinds("worst-case"), head)
    else:
        expected = np.asarray(model.predict(images, verbose=0), np.float64)
        sizes = np.abs(images).reshape(len(images), -1).max(axis=1)
        within = np.ones(len(images), bool)
        allowed = _TOLERANCE * np.maximum(sizes, np.linalg.norm(expected, axis=1))
    rows = within & np.all(np.isfinite(expected), axis=1)
    gaps = np.linalg.norm(logits - expected, axis=1)
    wrong = rows & ~(gaps <= allowed)
    if np.any(wrong):
        k = int(np.flatnonzero(wrong)[0])
        raise ExportCheckError(
            f"The exported graph fails on images as large as {np.max(np.abs(images[k])):.0e}: its "
            f"logits differ by {gaps[k]:.3g}, more than {allowed[k]:.1g}; nothing was written."
        )


def _check_outputs(certificate: Certificate, answers: Any, images: np.ndarray) -> None:
    """Labels and radii of a graph that gives them, against those in float64 from its logits.

    Raises:
        ExportCheckError: if a label is another, a radius larger, or much smaller.
    """
    logits, labels, found = (np.asarray(part) for part in answers)
    expected_labels, exact = radii(logits, numbers_of(certificate), images)
    if not np.array_equal(labels, expected_labels) or found.shape != exact.shape:
        raise ExportCheckError("The exported graph's labels are not those of its logits.")
    if not (np.all(found <= exact) and np.all(found >= 0)):
        raise ExportCheckError(
            "The exported graph's radii exceed those in float64 by "
            f"{float(np.max(found - exact)):.3g}: this runtime does not compute in IEEE arithmetic."
        )


def _compare(model: keras.Model, run: Run, images: np.ndarray) -> dict[str, Any]:
    """Runs graph and model on the same images.

    Raises:
        ExportCheckError: if they differ by more than rounding.
    """
    expected = np.asarray(model.predict(images, verbose=0))
    logits = np.asarray(run(images))
    if logits.shape != expected.shape:
        raise ExportCheckError(
            f"The exported graph gives shape {logits.shape}, the model {expected.shape}."
        )
    if random_layers(model):
        return {"images": len(images), "compared": "shapes only: the model draws in every pass"}
    alone = np.asarray(run(images[:1]))
    size = float(np.max(np.abs(expected)))
    allowed = max(_TOLERANCE, 100.0 * float(np.finfo(expected.dtype).eps) * size)
    gap = max(float(np.max(np.abs(logits - expected))), float(np.max(np.abs(alone - expected[:1]))))
    if not gap <= allowed:
        raise ExportCheckError(
            f"The exported graph's logits differ from the model's by {gap:.3g}, more than "
            f"{allowed:.1g}; nothing was written."
        )
    return {"images": len(images), "largest_logit_difference": gap}


def _compare_radii(certificate: Certificate, logits: np.ndarray, images: np.ndarray) -> float:
    """How much larger than the model's own the graph's radii are: no more than rounding allows."""
    labels, own = certificate.radii(images)
    exported_labels, exported = radii(logits, numbers_of(certificate), images)
    certain = own > 0
    if np.any(certain & (labels != exported_labels)):
        raise ExportCheckError("The exported graph gives other labels than the model.")
    distances = certificate.pair_distances[labels]
    nearest = np.where(distances > 0, distances, np.inf).min(axis=1)
    error = certificate.logit_error(images, "worst-case")
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = 2.0 * error / (certificate.body_lipschitz * nearest)
        excess = np.where(exported == own, 0.0, exported - own)
    if np.any(np.abs(excess) > 4.0 * unit):
        raise ExportCheckError(
            "The radii derived from the exported graph's logits differ from the model's by "
            f"{float(np.max(np.abs(excess))):.3g}, more than rounding explains."
        )
    return float(np.max(excess, initial=0.0))


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}
