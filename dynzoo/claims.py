"""What is certified of an evaluated model."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.attacks.warnings import EvaluationWarning
from dynzoo.certificates.smoothing import SmoothedClassifier
from dynzoo.streamed_images import StreamedImages, chunks, read_whole

__all__ = ["certificate_dict", "claims_of", "smoothed_numbers"]


def claims_of(model: Any, certificate: Any, x: np.ndarray, batch_size: int) -> tuple:
    """(certificate, radii, labels, warnings); radii are `None` where there is no certificate."""
    if certificate is False:
        return None, None, None, []
    if certificate is None:
        from dynzoo.certificates import certify

        try:
            certificate = certify(model)
        except (ValueError, TypeError, NotImplementedError) as error:
            note = f"The model has no certificate: {error}"
            return None, None, None, [EvaluationWarning("not-certified", note)]
    if isinstance(x, StreamedImages):
        found = [certificate.radii(x[part], batch_size=batch_size) for part in chunks(len(x))]
        labels, radii = (np.concatenate(column) for column in zip(*found, strict=True))
    else:
        labels, radii = certificate.radii(x, batch_size=batch_size)
    return certificate, np.asarray(radii, dtype=np.float64), np.asarray(labels), []


def smoothed_numbers(
    certificate: SmoothedClassifier,
    model: Any,
    x: np.ndarray,
    y: np.ndarray,
    radii: list[float],
    names: list[float],
    batch_size: int,
) -> dict[str, Any]:
    """Numbers of a smoothed classifier of the model at L2 radii, under other names for these."""
    _check_smooths(certificate, model)
    result = certificate.accuracy(read_whole(x), y, radii, batch_size)
    result["certified"] = dict(zip(names, result["certified"].values(), strict=True))
    return result


def certificate_dict(certificate: Any) -> dict[str, Any] | None:
    """What a certificate says of itself, JSON-able."""
    if certificate is None:
        return None
    to_dict = getattr(certificate, "to_dict", None)
    return to_dict() if callable(to_dict) else {"type": type(certificate).__name__}


def _check_smooths(certificate: SmoothedClassifier, model: Any) -> None:
    if certificate.model is not model:
        raise ValueError(
            "`certificate` must smooth the model that is evaluated: `smooth(model, sigma)`. "
            f"Received: a smoothed {getattr(certificate.model, 'name', 'model')!r}"
        )
