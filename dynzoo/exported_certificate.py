"""The certificate that travels beside an exported graph, and radii from it with NumPy alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.certificates import margins
from dynzoo.certificates.certificate import Certificate, certify

__all__ = ["CERTIFICATE", "certificate_of", "numbers_of", "radii"]

CERTIFICATE = "certificate.json"

_FORMULA = (
    "With the logits z of an image in float64 and i the index of the largest: the answer i does "
    "not change for any perturbation of the image of L2 norm up to r = min over j != i of "
    "(1 - 1e-12) * (z[i] - z[j] - 4 * rounding) / (body_lipschitz * pair_distances[i][j]). "
    "r is 0 if a numerator is not positive or a logit is not finite; otherwise a class j with "
    "pair_distances[i][j] = 0 sets no limit."
)
_ROUNDING = (
    "How far a computed logit may be from its real value: 10 times the largest difference that "
    "was seen on probe images between {} and a float64 reference. Hardware that multiplies in "
    "reduced precision (TF32, float16) needs a larger one."
)


def certificate_of(model: keras.Model) -> Certificate | str:
    """The certificate of a model, or the reason why it has none."""
    try:
        return certify(model)
    except ValueError as error:
        return " ".join(str(error).split())


def numbers_of(
    certificate: Certificate | str, rounding: float = 0.0, runtime: str | None = None
) -> dict[str, Any]:
    """What `radii` needs, as plain numbers; or that there is no certificate, and why.

    Args:
        certificate: what `certificate_of` returned.
        rounding: margin of the exported graph; the larger one of it and the model's own is kept.
        runtime: what the margin of the exported graph was measured with, if it was.
    """
    if isinstance(certificate, str):
        return {"certified": False, "reason": certificate}
    measured = " or ".join(filter(None, (f"Keras on {backend.name()}", runtime)))
    return {
        "certified": True,
        "norm": "l2",
        "lipschitz": certificate.lipschitz,
        "body_lipschitz": certificate.body_lipschitz,
        "pair_distances": certificate.pair_distances.tolist(),
        "rounding": max(certificate.rounding, rounding),
        "formula": _FORMULA,
        "rounding_note": _ROUNDING.format(measured),
        "model_weights_sha256": certificate.weights_sha256,
    }


def radii(
    logits: Any, certificate: Mapping[str, Any] | str | os.PathLike
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and certified L2 radii from the logits of an exported graph.

    Guarantee: as that of `Certificate.radii`, for the graph whose hashes the certificate names.

    Args:
        logits: array (n, K) that the exported graph gave for n images.
        certificate: the content of `certificate.json`, or its path.

    Returns:
        (labels (n,) int64, radii (n,) float64 in the units of the images).

    Raises:
        ValueError: if there is no certificate, or the logits are not those of its classes.

    Example:

    >>> logits = onnxruntime.InferenceSession("exported/model.onnx").run(None, {"images": x})[0]
    >>> labels, radii = dynzoo.export.radii(logits, "exported/certificate.json")
    """
    if isinstance(certificate, (str, os.PathLike)):
        numbers = json.loads(Path(certificate).read_text(encoding="utf-8"))
    else:
        numbers = dict(certificate)
    if not numbers.get("certified"):
        raise ValueError(f"The model has no certificate: {numbers.get('reason', 'unknown')}")
    distances = np.asarray(numbers["pair_distances"], dtype=np.float64)
    z = np.asarray(logits)
    if z.ndim != 2 or z.shape[1] != len(distances):
        raise ValueError(
            f"`logits` must have shape (n, {len(distances)}). Received: logits.shape={z.shape}"
        )
    labels = np.argmax(margins.replaced(z), axis=1).astype(np.int64)
    speeds = margins.product(float(numbers["body_lipschitz"]), distances)
    limits = margins.limits(z, labels, speeds, float(numbers["rounding"]))
    return labels, np.maximum(limits.min(axis=1), 0.0)
