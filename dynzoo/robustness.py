"""Clean, attacked and certified accuracy side by side, each checked against the others."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.answers import NO_ANSWER, answers
from dynzoo.attacks.active_test import check_active
from dynzoo.attacks.base import Attack, check_images_or_stream, check_labels, positive_floats
from dynzoo.attacks.campaign import Campaign
from dynzoo.attacks.checks import (
    check_convergence,
    check_layers,
    check_outputs,
    check_unbounded,
)
from dynzoo.attacks.ensembles import gradient_attack, makers, transfer_from, with_draws
from dynzoo.attacks.gradient_check import check_gradients
from dynzoo.attacks.outcome_checks import check_outcomes
from dynzoo.attacks.passes import mean_logits, noise
from dynzoo.attacks.progress import Progress
from dynzoo.attacks.warnings import SAMPLE, EvaluationWarning
from dynzoo.certificates.smoothing import SmoothedClassifier
from dynzoo.claims import (
    certificate_dict,
    check_sets_asked,
    claims_of,
    set_numbers,
    smoothed_numbers,
)
from dynzoo.image_checks import check_shape, check_unit_range
from dynzoo.labels import names_of
from dynzoo.model_identity import identity_of
from dynzoo.provenance import fingerprint, runs, threat_model, versions
from dynzoo.random_layers import Draws
from dynzoo.refutation import CertificateViolation, refute
from dynzoo.report import RobustnessReport, attacked_images, spread

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
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    surrogates: Iterable[Any] = (),
    attack_certified: str = "first",
    checks: str = "auto",
    prediction_sets: float | None = None,
) -> RobustnessReport:
    r"""Clean, attacked and certified accuracy of a classifier.

    The true robust accuracy lies between the two numbers:
    $\text{certified}(\varepsilon) \le \text{robust}(\varepsilon) \le \text{attacked}(\varepsilon)
    \le \text{clean}$, image by image. An image counts as attacked if **any** attack fools it at
    this or a smaller radius. Without attacks (`"none"`) the third is left open. For Linf the
    certificate is the L2 one of radius $\varepsilon\sqrt{d}$, which holds the Linf ball.

    An image for which a logit is NaN has no answer: clean, it is wrong; attacked, it has fallen.

    A model that is random at inference, or mixes the images of a batch, is evaluated too, with a
    named warning. The answer of a random model is that of the mean logits of some draws, and the
    attacks on it follow the mean of 20 draws (expectation over transformation). A smoothed
    classifier answers otherwise than the model that it smooths, so its certified accuracy
    stands beside its own accuracy (`report.smoothed`), not above the attacks.

    Args:
        model: Built Keras model, images to logits.
        x: Array of shape (n, ...) with values in [0, 1], or `StreamedImages`.
        y: Integer labels of shape (n,).
        norm: `"l2"` or `"linf"`.
        eps: Radius or radii, in units of the pixel range, > 0.
        attacks: `"standard"`, `"fast"`, another name of `dynzoo.attacks.ensembles.makers`, or a
            list of names, attack objects (templates: their radius is replaced by each of `eps`) or
            factories called with `norm`, `eps` and `seed`; `"none"` for what is certified alone.
        batch_size: Images processed at once.
        certificate: `None` to certify the model, `False` for no certificate, or an object whose
            `radii(x, batch_size)` gives (labels, L2 radii), or `smooth(model, sigma)`.
        seed: Seed of the random starts, and of a model that is random at inference.
        verbose: 1 says which check runs, or where the attacks stand, the share that is done and the
            time that is left: one line that is updated on a terminal, elsewhere a line every few
            seconds.
        class_names: Names of the classes, for the report; `None` for a preset's own.
        title: Heading of the report.
        checkpoint: File (`.npz`) that is written after each batch of each attack. If it exists, the
            evaluation goes on from it and ends with the same outcomes.
        surrogates: Other models for the same images; what fools them is tried on this one.
        attack_certified: Which attacks try images whose certificate covers the radius: only the
            `"first"`, `"all"`, or `"none"`. None can succeed if the certificate is right, and those
            that try test whether it is.
        checks: `"full"`, `"quick"` without those checks that attack the model (convergence, planted
            examples), or `"auto"`: quick for `attacks="fast"`, else full.
        prediction_sets: Alpha in (0, 1) for `dynzoo.certificates.prediction_sets`: a half of the
            images, drawn by the seed, calibrates them, and the other half measures coverage and
            sizes (`report.prediction_sets`). L2 only. `None` for none.

    Returns:
        A `RobustnessReport`.

    Raises:
        ValueError: If an argument is out of its range, the model gives NaN for every image, or the
            checkpoint is of something else.
        CertificateViolation: If an attack refutes the certificate; the counterexample is saved
            beside the checkpoint, or in the folder for temporary files.

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
    began = time.perf_counter()
    given, y = check_images_or_stream(x, y)
    x = given.astype(np.float32, copy=False)
    check_shape(x, model)
    check_unit_range(model)
    radii_asked = _radii_asked(eps, norm, x[0].size)
    if attack_certified not in ("first", "all", "none"):
        raise ValueError(
            f"`attack_certified` must be 'first', 'all' or 'none'. Received: {attack_certified!r}"
        )
    if checks not in ("auto", "full", "quick"):
        raise ValueError(f"`checks` must be 'auto', 'full' or 'quick'. Received: {checks!r}")
    surrogates, given_certificate = list(surrogates), certificate
    attacked = not isinstance(attacks, str) or attacks != "none"
    if not attacked and (surrogates or checkpoint is not None):
        name = "surrogates" if surrogates else "checkpoint"
        raise ValueError(f"`{name}` needs attacks. Received: attacks='none'")
    if checks == "auto":
        checks = "quick" if attacks in ("fast", "none") else "full"
    if prediction_sets is not None:
        check_sets_asked(prediction_sets, norm, certificate, x)
    make_attacks = makers(attacks, norm, seed, batch_size) if attacked else []
    make_attacks += [transfer_from(source, norm, seed, batch_size) for source in surrogates]
    factor = float(np.sqrt(x[0].size)) if norm == "linf" else 1.0

    progress = Progress(quiet=not verbose)
    with progress, Draws(model, seed) as draws:
        with progress.watching("clean accuracy"):
            warnings = check_layers(model, x)
            clean_labels = _labels(model, x, y, batch_size, seed)
            warnings += _check_answers(clean_labels)
        correct = clean_labels == y
        smoothed = None
        with progress.watching("certificate"):
            if isinstance(certificate, SmoothedClassifier):
                at = [e * factor for e in radii_asked]
                numbers = (certificate, model, given, y, at, radii_asked, batch_size)
                smoothed, certificate = smoothed_numbers(*numbers), False
            certificate, radii, cert_labels, notes = claims_of(model, certificate, x, batch_size)
        warnings += notes
        sets = None
        if prediction_sets is not None and certificate is not None:
            with progress.watching("prediction sets"):
                asked = (prediction_sets, radii_asked, seed, batch_size)
                sets = set_numbers(certificate, x, y, *asked)
        counted = proved = None
        if radii is not None:
            counted = np.where(cert_labels == y, radii, 0.0)
            proved = np.stack([counted > e * factor for e in radii_asked])

        def judge(attack: Attack, rows: np.ndarray) -> tuple[Any, Any]:
            points = attack(model, given[rows], y[rows], indices=rows)
            labels = _labels(model, points, y[rows], batch_size, seed)
            if radii is not None:
                refute(x, points, rows, labels, cert_labels, radii)
            return points, labels

        sample = np.flatnonzero(correct)[:SAMPLE]
        try:
            if radii is not None:
                other = np.flatnonzero(clean_labels != cert_labels)
                refute(x, x[other], other, clean_labels[other], cert_labels, radii)
            if sample.size:
                known = {w.name for w in warnings}
                with progress.watching("outputs of two passes"):
                    found = check_outputs(model, x[sample], draws)
                warnings += [w for w in found if w.name not in known]
            if sample.size and attacked:
                with progress.watching("gradients against differences"):
                    warnings += check_gradients(model, x[sample], y[sample])
                with progress.watching("attack without a limit"):
                    warnings += check_unbounded(model, x[sample], y[sample], norm, seed)
            random = any(w.name == "randomised-model" for w in warnings)
            planned = [[with_draws(make(e), random) for make in make_attacks] for e in radii_asked]
            campaign = Campaign(
                planned,
                radii_asked,
                y,
                correct,
                judge,
                skip=None if attack_certified == "all" else proved,
                skip_from=0 if attack_certified == "none" else 1,
                batch_size=batch_size,
                about={
                    **fingerprint(model, given, y),
                    "norm": norm,
                    "seed": seed,
                    "batch_size": batch_size,
                    "attack_certified": attack_certified,
                    "attacks": [[_config(attack) for attack in row] for row in planned],
                    "surrogates": [identity_of(source) for source in surrogates],
                    "certificate": _certificate_given(given_certificate),
                },
                checkpoint=checkpoint,
                tick=progress,
            )
            outcomes = campaign.run()
        except CertificateViolation as violation:
            folder = Path(checkpoint).parent if checkpoint else Path(tempfile.gettempdir())
            violation.save(folder / f"counterexample_{violation.index}.npz")
            raise
        if attacked:
            warnings += check_outcomes(outcomes, planned[0], campaign.repeated)
        if checks == "full" and sample.size and attacked:
            middle = (len(radii_asked) - 1) // 2
            survivors = np.flatnonzero(outcomes.robust()[middle])
            steps = max([getattr(attack, "steps", 1) for attack in planned[0]])
            with progress.watching("attack of twice the steps"):
                warnings += check_convergence(
                    model, x, y, survivors, radii_asked[middle], norm, steps, seed
                )
            if (attack := gradient_attack(planned[middle])) is not None and not random:
                with progress.watching("attack on planted examples"):
                    warnings += check_active(model, x[sample], attack, seed)

    robust = outcomes.robust()
    certified: dict[float, float | None] = dict.fromkeys(radii_asked)
    if proved is not None:
        # `refute` has judged every point; this guards the book-keeping.
        if np.any(proved & ~robust) or np.any(robust & ~correct):
            raise RuntimeError("An image counts as certified, but not as robust or not as right.")
        certified = dict(zip(radii_asked, proved.mean(axis=1).tolist(), strict=True))
    examples = [
        image
        for e, found in zip(radii_asked, campaign.fooled, strict=True)
        for image in attacked_images(x, y, found, e, norm)
    ]
    return RobustnessReport(
        norm=norm,
        clean=float(correct.mean()),
        robust=dict(zip(radii_asked, robust.mean(axis=1).tolist(), strict=True))
        if attacked
        else dict.fromkeys(radii_asked),
        certified=certified,
        smoothed=smoothed,
        prediction_sets=sets,
        warnings=warnings,
        per_image={
            "correct": correct,
            "robust": robust if attacked else None,
            "radii": counted,
            "labels": y,
        },
        outcomes=outcomes,
        examples=spread(examples),
        title=title or f"Robustness of {getattr(model, 'name', 'the model')}",
        class_names=class_names or names_of(model),
        details={
            "model": getattr(model, "name", None),
            "image_shape": list(x.shape[1:]),
            "threat_model": threat_model(norm, radii_asked, planned[0], attack_certified),
            "certificate": certificate_dict(certificate),
            "runs": runs(outcomes, planned),
            "checks": checks,
            "seed": seed,
            "batch_size": batch_size,
            "seconds": round(time.perf_counter() - began, 3),
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
        },
    )


def _config(attack: Attack) -> dict[str, Any]:
    """Without the name of another model, which it does not keep when it is built anew."""
    return {key: value for key, value in attack.get_config().items() if key != "source_model"}


def _certificate_given(certificate: Any) -> Any:
    """What was given for a certificate, as far as it can be told; of the model's own nothing."""
    if certificate is None or certificate is False:
        return certificate
    numbers = getattr(certificate, "__dict__", {}).items()
    plain = {k: v for k, v in numbers if isinstance(v, (bool, int, float, str))}
    return {"class": type(certificate).__name__, **plain}


def _radii_asked(eps: float | Iterable[float], norm: str, entries: int) -> list[float]:
    values = sorted(set(positive_floats("eps", eps)))
    if not values:
        raise ValueError("`eps` must hold at least one radius. Received: an empty sequence")
    # The box of all images has this size: a larger radius is one in bytes.
    largest = 1.0 if norm == "linf" else float(np.sqrt(entries))
    if values[-1] > largest and values[-1] >= 1.0:
        raise ValueError(
            f"`eps` must be at most {largest:g}, the size of all images with pixels in [0, 1]: "
            f"divide radii in bytes by 255. Received: eps={values[-1]:g}"
        )
    return values


def _labels(model: Any, x: np.ndarray, y: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """Labels by the mean logits, over draws that no attack with this seed has seen."""
    with noise(model, x, batch_size, seed + 1):
        logits = mean_logits(model, x, batch_size)
    check_labels(y, logits.shape[1])
    return answers(logits)


def _check_answers(labels: np.ndarray) -> list[EvaluationWarning]:
    """A warning if the model gives NaN for some clean images, a ValueError if for all of them."""
    broken = int((labels == NO_ANSWER).sum())
    if not broken:
        return []
    if broken == len(labels):
        raise ValueError(
            f"`model` must give logits that are numbers. All of {broken} images give NaN: are all "
            "weights finite?"
        )
    return [
        EvaluationWarning(
            "nan-logits",
            f"{broken} of {len(labels)} clean images give NaN. They count as wrong, and so does "
            "every attacked image that does.",
        )
    ]
