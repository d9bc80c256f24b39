"""Clean, attacked and certified accuracy side by side, each checked against the others."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.attacks.base import Attack, check_images, check_labels, positive_float, predict_logits
from dynzoo.attacks.checks import (
    SAMPLE,
    TOLERANCE,
    EvaluationWarning,
    check_curve,
    check_gradients,
    check_layers,
    check_outputs,
    check_unbounded,
)
from dynzoo.attacks.ensembles import makers
from dynzoo.certificates.smoothing import SmoothedClassifier
from dynzoo.random_layers import Draws
from dynzoo.refutation import CertificateViolation, refute
from dynzoo.report import AttackedImage, RobustnessReport, attacked_images, spread

__all__ = ["CertificateViolation", "evaluate"]


def evaluate(
    model: Any,
    x: Any,
    y: Any,
    norm: str = "l2",
    eps: float | Iterable[float] = (36 / 255, 72 / 255, 108 / 255),
    attacks: str | Iterable[Any] = "standard",
    batch_size: int = 256,
    certificate: Any = None,
    seed: int = 0,
    verbose: int = 0,
    class_names: list[str] | None = None,
    title: str | None = None,
) -> RobustnessReport:
    r"""Clean, attacked and certified accuracy of a classifier.

    The true robust accuracy lies between the two numbers:
    $\text{certified}(\varepsilon) \le \text{robust}(\varepsilon) \le \text{attacked}(\varepsilon)
    \le \text{clean}$, image by image. An image counts as attacked if **any** attack fools it at
    this or a smaller radius. For Linf the certificate is the L2 one of radius
    $\varepsilon\sqrt{d}$, which holds the Linf ball.

    A model that is random at inference, or mixes the images of a batch, is evaluated too, with a
    named warning: its numbers are of one draw each (the same for the same seed), or of the batches
    that it saw. A smoothed classifier answers otherwise than the model that it smooths, so its
    certified accuracy stands beside its own accuracy (`report.smoothed`), not above the attacks.

    Args:
        model: Built Keras model, images to logits.
        x: Array of shape (n, ...) with values in [0, 1].
        y: Integer labels of shape (n,).
        norm: `"l2"` or `"linf"`.
        eps: Radius or radii, in units of the pixel range, > 0.
        attacks: `"standard"`, `"fast"`, or a list of names (`"pgd"`, `"fgsm"`, the two
            ensembles), attack objects (templates: their radius is replaced by each of `eps`) or
            factories called with `norm`, `eps` and `seed`.
        batch_size: Images processed at once.
        certificate: `None` to certify the model, `False` for no certificate, or an object whose
            `radii(x, batch_size)` gives (labels, L2 radii), or `smooth(model, sigma)`.
        seed: Seed of the random starts, and of a model that is random at inference.
        verbose: 1 prints a line for each attack.
        class_names: Names of the classes, for the report.
        title: Heading of the report.

    Returns:
        A `RobustnessReport`.

    Raises:
        ValueError: If an argument is out of its range.
        CertificateViolation: If an attack refutes the certificate.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> report = evaluate(model, x, y, eps=0.1, attacks="fast", certificate=False)
    >>> report.robust[0.1] <= report.clean
    True

    Reference: Carlini et al., *On evaluating adversarial robustness* (2019); Tsuzuku, Sato and
    Sugiyama, *Lipschitz-margin training* (2018), for the certificate.
    """
    with Draws(model, seed) as draws:
        return _evaluate(
            draws, model, x, y, norm, eps, attacks, batch_size, certificate, seed, verbose,
            class_names, title,
        )  # fmt: skip


def _evaluate(
    draws: Draws, model: Any, x: Any, y: Any, norm: str, eps: Any, attacks: Any, batch_size: int,
    certificate: Any, seed: int, verbose: int, class_names: list[str] | None, title: str | None,
) -> RobustnessReport:  # fmt: skip
    began = time.perf_counter()
    given, y = check_images(x, y)
    x = given.astype(np.float32, copy=False)
    radii_asked = _radii_asked(eps)
    make_attacks = makers(attacks, norm, seed, batch_size)
    factor = float(np.sqrt(x[0].size)) if norm == "linf" else 1.0

    warnings = check_layers(model, x)
    draws.fresh()
    clean_labels = _labels(model, x, y, batch_size)
    correct = clean_labels == y
    smoothed = None
    if isinstance(certificate, SmoothedClassifier):
        _check_smooths(certificate, model)
        smoothed = certificate.accuracy(given, y, [e * factor for e in radii_asked], batch_size)
        smoothed["certified"] = dict(zip(radii_asked, smoothed["certified"].values(), strict=True))
        certificate = False
    certificate, radii, cert_labels, notes = _certify(model, certificate, x, batch_size)
    warnings += notes
    if radii is not None:
        refute(x, x, np.arange(len(x)), clean_labels, cert_labels, radii)
    sample = np.flatnonzero(correct)[:SAMPLE]
    if sample.size:
        known = {w.name for w in warnings}
        warnings += [w for w in check_outputs(model, x[sample], draws) if w.name not in known]
        warnings += check_gradients(model, x[sample], y[sample])
        warnings += check_unbounded(model, x[sample], y[sample], norm, seed)

    def run(attack: Attack, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        draws.fresh()
        points = attack(model, given[rows], y[rows], indices=rows)
        draws.fresh()  # a random model is judged by another draw than the attack saw
        labels = predict_logits(model, points, batch_size).argmax(axis=1)
        if radii is not None:
            refute(x, points, rows, labels, cert_labels, radii)
        return points, labels

    alive, matrix, runs = correct.copy(), [], []
    examples: list[AttackedImage] = []
    for e in radii_asked:
        fallen = np.flatnonzero(correct & ~alive)[:SAMPLE]
        ensemble = [make(e) for make in make_attacks]
        for attack in ensemble:
            rows = np.flatnonzero(alive)
            start, hit = time.perf_counter(), np.zeros(0, dtype=bool)
            if rows.size:
                points, labels = run(attack, rows)
                hit = labels != y[rows]
                examples += attacked_images(x, points, rows, hit, y, labels, e, norm)
                alive[rows[hit]] = False
            record = {
                "eps": e,
                "attack": type(attack).__name__,
                "config": attack.get_config(),
                "attacked": int(rows.size),
                "broken": int(hit.sum()),
                "seconds": round(time.perf_counter() - start, 3),
            }
            runs.append(record)
            if verbose:
                print(
                    f"eps {e:.4f}  {record['attack']:<6} {getattr(attack, 'loss', ''):<8} broke "
                    f"{record['broken']} of {rows.size}  robust {alive.mean():.4f}",
                    flush=True,
                )
        # What fell in a smaller ball stays fallen; an attack that cannot repeat it is weak.
        total = fallen.size
        for attack in ensemble:
            if fallen.size:
                fallen = fallen[run(attack, fallen)[1] == y[fallen]]
        if fallen.size > max(1.0, TOLERANCE * total):
            warnings.append(
                EvaluationWarning(
                    "attack-not-monotone",
                    f"At eps {e:.4g} the attacks miss {fallen.size} of {total} images that they "
                    "broke in a smaller ball (counted as broken): their steps do not suit this "
                    "radius.",
                )
            )
        matrix.append(alive.copy())

    robust = {e: float(row.mean()) for e, row in zip(radii_asked, matrix, strict=True)}
    clean = float(correct.mean())
    warnings += check_curve(clean, robust, len(x))
    certified: dict[float, float | None] = dict.fromkeys(radii_asked)
    if radii is not None:
        radii = np.where(cert_labels == y, radii, 0.0)
        certified = {e: float((radii > e * factor).mean()) for e in radii_asked}
    return RobustnessReport(
        norm=norm,
        clean=clean,
        robust=robust,
        certified=certified,
        smoothed=smoothed,
        warnings=warnings,
        per_image={
            "correct": correct,
            "robust": np.stack(matrix),
            "radii": radii,
        },
        examples=spread(examples),
        title=title or f"Robustness of {getattr(model, 'name', 'the model')}",
        class_names=class_names,
        details={
            "model": getattr(model, "name", None),
            "image_shape": list(x.shape[1:]),
            "certificate": _certificate_dict(certificate),
            "runs": runs,
            "seed": seed,
            "batch_size": batch_size,
            "seconds": round(time.perf_counter() - began, 3),
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": _versions(),
        },
    )


def _radii_asked(eps: float | Iterable[float]) -> list[float]:
    values = [eps] if isinstance(eps, (int, float)) else list(eps)
    values = sorted({positive_float("eps", e) for e in values})
    if not values:
        raise ValueError("`eps` must hold at least one radius. Received: an empty sequence")
    return values


def _labels(model: Any, x: np.ndarray, y: np.ndarray, batch_size: int) -> np.ndarray:
    logits = predict_logits(model, x, batch_size)
    check_labels(y, logits.shape[1])
    return logits.argmax(axis=1)


def _certify(model: Any, certificate: Any, x: np.ndarray, batch_size: int) -> tuple:
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
    labels, radii = certificate.radii(x, batch_size=batch_size)
    return certificate, np.asarray(radii, dtype=np.float64), np.asarray(labels), []


def _check_smooths(certificate: SmoothedClassifier, model: Any) -> None:
    if certificate.model is not model:
        raise ValueError(
            "`certificate` must smooth the model that is evaluated: `smooth(model, sigma)`. "
            f"Received: a smoothed {getattr(certificate.model, 'name', 'model')!r}"
        )


def _certificate_dict(certificate: Any) -> dict[str, Any] | None:
    if certificate is None:
        return None
    to_dict = getattr(certificate, "to_dict", None)
    return to_dict() if callable(to_dict) else {"type": type(certificate).__name__}


def _versions() -> dict[str, str]:
    try:
        own = metadata.version("dynzoo")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {
        "dynzoo": own,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "keras": keras.__version__,
        "backend": backend.name(),
        "backend_version": backend.version(),
    }
