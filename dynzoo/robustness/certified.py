"""What is certified of an evaluated model."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.certificates.identity import check_is_of
from dynzoo.certificates.local.certificate import LocalCertificate
from dynzoo.certificates.smoothing import SmoothedClassifier
from dynzoo.inference.streamed_images import StreamedImages, chunks, read_whole
from dynzoo.robustness.checks.warning import EvaluationWarning
from dynzoo.utils.arguments import number

__all__ = [
    "certificate_dict",
    "check_sets_asked",
    "claims_of",
    "decisions_of",
    "set_numbers",
    "shared",
    "smoothed_numbers",
]


def shared(certificate: Any, jobs: int | None) -> dict[str, int]:
    """``jobs`` for the questions to a certificate, where it can share them among processes."""
    shares = isinstance(certificate, LocalCertificate | SmoothedClassifier)
    return {"jobs": jobs} if shares and jobs is not None else {}


def claims_of(
    model: Any,
    certificate: Any,
    x: np.ndarray,
    norm: str,
    batch_size: int,
    jobs: int | None = None,
) -> tuple:
    """(certificate, radii by their norm, labels, warnings); no radii where nothing is certified.

    L2 radii serve in either norm, those of cubes (``"linf"``) in their own.
    """
    if certificate is False:
        return None, {}, None, []
    check_is_of(certificate, model)
    if certificate is None:
        from dynzoo.certificates import certify

        try:
            certificate = certify(model)
        except (ValueError, TypeError, NotImplementedError) as error:
            note = f"The model has no certificate: {error}"
            return None, {}, None, [EvaluationWarning("not-certified", note)]
    # One that decides radius by radius: its own radii would be found by a search for each image.
    bound = certificate.certificate if hasattr(certificate, "decide") else certificate
    of = getattr(bound, "norm", "l2")
    if of not in ("l2", norm):
        raise _of_another_norm(norm, of)
    asked: dict[str, Any] = {"batch_size": batch_size, **shared(bound, jobs)}
    if isinstance(x, StreamedImages):
        found = [bound.radii(x[part], **asked) for part in chunks(len(x))]
        labels, radii = (np.concatenate(column) for column in zip(*found, strict=True))
    else:
        labels, radii = bound.radii(x, **asked)
    return certificate, {of: np.asarray(radii, dtype=np.float64)}, np.asarray(labels), []


def decisions_of(
    certificate: Any,
    x: Any,
    right: np.ndarray,
    norm: str,
    eps: list[float],
    batch_size: int,
    jobs: int | None = None,
) -> np.ndarray | None:
    """What a certificate that decides finds of each image at each radius: words (radii, n).

    An answer that is wrong is falsified by the image itself. `None` where the certificate gives
    radii alone.
    """
    if not hasattr(certificate, "decide"):
        return None
    if certificate.norm != norm:
        raise _of_another_norm(norm, certificate.norm)
    images = read_whole(x) if isinstance(x, StreamedImages) else x
    found = np.full((len(eps), len(images)), "falsified", dtype="<U9")
    left = np.flatnonzero(right)
    for row, e in zip(found, eps, strict=True):
        decided = certificate.decide(images[left], e, batch_size, **shared(certificate, jobs))
        row[left] = decided.outcomes
        left = left[row[left] != "falsified"]
    return found


def _of_another_norm(norm: str, received: str) -> ValueError:
    return ValueError(
        f"`certificate` must be one in the norm of the evaluation, {norm!r}. Received: "
        f"certificate.norm={received!r}"
    )


def smoothed_numbers(
    certificate: SmoothedClassifier,
    model: Any,
    x: np.ndarray,
    y: np.ndarray,
    radii: list[float],
    names: list[float],
    batch_size: int,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Numbers of a smoothed classifier of the model at L2 radii, under other names for these."""
    check_is_of(certificate, model)
    result = certificate.accuracy(read_whole(x), y, radii, batch_size, jobs)
    result["certified"] = dict(zip(names, result["certified"].values(), strict=True))
    return result


def check_sets_asked(alpha: float, norm: str, certificate: Any, x: Any) -> None:
    """A ValueError where an evaluation cannot have prediction sets."""
    from dynzoo.certificates import Certificate

    number("prediction_sets", alpha, 0.0, 1.0, closed="none")
    if norm != "l2":
        raise ValueError(f"`prediction_sets` need `norm='l2'`. Received: norm={norm!r}")
    if certificate is not None and not isinstance(certificate, Certificate):
        raise ValueError(
            "`prediction_sets` need the Lipschitz bound of a `dynzoo.certify`. Received: "
            f"certificate={certificate!r}"
        )
    if isinstance(x, StreamedImages):
        raise ValueError("`prediction_sets` need images in memory: take some of them, x[:5000]")
    if len(x) < 2:
        raise ValueError("`prediction_sets` need images to calibrate and others to measure on")


def set_numbers(
    certificate: Any,
    x: np.ndarray,
    y: np.ndarray,
    alpha: float,
    radii: list[float],
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Prediction sets of half of the images, drawn at random, measured on the other half."""
    from dynzoo.certificates import prediction_sets

    # Drawn, for images may come sorted, and the halves must be exchangeable.
    order = np.random.default_rng(seed).permutation(len(x))
    ours, others = np.sort(order[: len(x) // 2]), np.sort(order[len(x) // 2 :])
    sets = prediction_sets(certificate, x[ours], y[ours], alpha, radii[0], batch_size)
    low, high = certificate.distances_behind(x[others], batch_size)
    inside = {e: sets.holding(low, e) for e in (0.0, *radii)}
    right = np.arange(len(others)), y[others]
    return {
        "alpha": sets.alpha,
        "threshold": sets.threshold if np.isfinite(sets.threshold) else None,
        "calibration_images": sets.images,
        "images": len(others),
        "certified_coverage": float((high[right] <= sets.threshold).mean()),
        "coverage": {e: float(rows[right].mean()) for e, rows in inside.items()},
        "size": {e: float(rows.sum(axis=1).mean()) for e, rows in inside.items()},
    }


def certificate_dict(certificate: Any) -> dict[str, Any] | None:
    """What a certificate says of itself, JSON-able."""
    if certificate is None:
        return None
    to_dict = getattr(certificate, "to_dict", None)
    return to_dict() if callable(to_dict) else {"type": type(certificate).__name__}
