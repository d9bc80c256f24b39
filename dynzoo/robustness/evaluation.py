"""Clean, attacked and certified accuracy side by side, each checked against the others."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.attacks.base import Attack, check_images_or_stream, check_labels
from dynzoo.attacks.ensembles import gradient_attack, makers, transfer_from, with_draws
from dynzoo.certificates.smoothing import SmoothedClassifier
from dynzoo.inference.answers import NO_ANSWER, answers
from dynzoo.inference.class_names import names_of
from dynzoo.inference.draws import Draws
from dynzoo.inference.image_checks import check_shape, check_unit_range
from dynzoo.inference.model_identity import identity_of
from dynzoo.inference.passes import mean_logits, noise
from dynzoo.robustness.campaign import Campaign
from dynzoo.robustness.certified import (
    certificate_dict,
    check_sets_asked,
    claims_of,
    decisions_of,
    set_numbers,
    smoothed_numbers,
)
from dynzoo.robustness.checks.gradients import check_gradients
from dynzoo.robustness.checks.model import (
    check_convergence,
    check_layers,
    check_outputs,
    check_unbounded,
)
from dynzoo.robustness.checks.outcomes import check_outcomes
from dynzoo.robustness.checks.planted import check_active
from dynzoo.robustness.checks.warning import SAMPLE, EvaluationWarning
from dynzoo.robustness.progress import Progress
from dynzoo.robustness.provenance import fingerprint, runs, threat_model, versions
from dynzoo.robustness.refutation import CertificateViolation, refute
from dynzoo.robustness.report import RobustnessReport, attacked_images, decision_shares, spread
from dynzoo.utils.arguments import one_of, positive_floats

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
    this or a smaller radius. Without attacks (``"none"``) the third is left open. For Linf the
    certificate is the L2 one of radius $\varepsilon\sqrt{d}$, which holds the Linf ball.

    An image for which a logit is NaN has no answer: clean, it is wrong; attacked, it has fallen.

    A model that is random at inference, or mixes the images of a batch, is evaluated too, with a
    named warning. The answer of a random model is that of the mean logits of some draws, and the
    attacks on it follow the mean of 20 draws (expectation over transformation). A smoothed
    classifier answers otherwise than the model that it smooths, so its certified accuracy
    stands beside its own accuracy (``report.smoothed``), not above the attacks.

    Args:
        model: built Keras model, images to logits.
        x: array of shape (n, ...) with values in [0, 1], or ``StreamedImages``.
        y: integer labels of shape (n,).
        norm: ``"l2"`` or ``"linf"``.
        eps: radius or radii, in units of the pixel range, > 0.
        attacks: ``"standard"``, ``"fast"``, another name of ``dynzoo.attacks.ensembles.makers``, or
            a list of names, attack objects (templates: their radius is replaced by each of ``eps``)
            or factories called with ``norm``, ``eps`` and ``seed``; ``"none"`` for what is
            certified alone.
        batch_size: images processed at once.
        certificate: ``None`` to certify the model, ``False`` for no certificate, or an object whose
            ``radii(x, batch_size)`` gives (labels, L2 radii), or ``smooth(model, sigma)``. One of
            ``certify_local(method="complete")`` decides each image at each radius
            (``report.decisions``).
        seed: seed of the random starts, and of a model that is random at inference.
        verbose: 1 says which check runs, or where the attacks stand, the share that is done and the
            time that is left: one line that is updated on a terminal, elsewhere a line every few
            seconds.
        class_names: names of the classes, for the report; ``None`` for a preset's own.
        title: heading of the report.
        checkpoint: file (``.npz``) that is written after each batch of each attack. If it exists,
            the evaluation goes on from it and ends with the same outcomes.
        surrogates: other models for the same images; what fools them is tried on this one.
        attack_certified: which attacks try images whose certificate covers the radius: only the
            ``"first"``, ``"all"``, or ``"none"``. None can succeed if the certificate is right, and
            those that try test whether it is.
        checks: ``"full"``, ``"quick"`` without those checks that attack the model (convergence,
            planted examples), or ``"auto"``: quick for ``attacks="fast"``, else full.
        prediction_sets: alpha in (0, 1) for ``dynzoo.certificates.prediction_sets``: a half of the
            images, drawn by the seed, calibrates them, and the other half measures coverage and
            sizes (``report.prediction_sets``). L2 only. ``None`` for none.

    Returns:
        A ``RobustnessReport``.

    Raises:
        ValueError: if an argument is out of its range, the model gives NaN for every image, or the
            checkpoint is of something else.
        CertificateViolation: if an attack refutes the certificate; the counterexample is saved
            beside the checkpoint, or in the folder for temporary files.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> report = dynzoo.evaluate(model, x, y, eps=0.1, attacks="fast", certificate=False)
    >>> report.robust[0.1] <= report.clean
    True

    Reference: Carlini et al., "On evaluating adversarial robustness" (2019); Tsuzuku, Sato and
    Sugiyama, "Lipschitz-margin training" (2018), for the certificate.
    """
    run = _plan(model, x, y, norm, eps, attacks, batch_size, seed)
    run.attack_certified = one_of("attack_certified", attack_certified, ("first", "all", "none"))
    run.checks = one_of("checks", checks, ("auto", "full", "quick"))
    run.surrogates, run.checkpoint = list(surrogates), checkpoint
    if not run.attacked and (run.surrogates or checkpoint is not None):
        name = "surrogates" if run.surrogates else "checkpoint"
        raise ValueError(f"`{name}` needs attacks. Received: attacks='none'")
    if checks == "auto":
        run.checks = "quick" if attacks in ("fast", "none") else "full"
    if prediction_sets is not None:
        check_sets_asked(prediction_sets, norm, certificate, run.x)
    run.makers += [transfer_from(s, norm, seed, batch_size) for s in run.surrogates]
    run.progress = Progress(quiet=not verbose)
    with run.progress, Draws(model, seed) as draws:
        _answer(run)
        _certify(run, certificate, prediction_sets)
        try:
            if run.radii is not None:
                other = np.flatnonzero(run.labels != run.cert_labels)
                _refute(run, run.x[other], other, run.labels[other])
            _check_model(run, draws)
            campaign = _attack(run, certificate)
        except CertificateViolation as violation:
            folder = Path(checkpoint).parent if checkpoint else Path(tempfile.gettempdir())
            violation.save(folder / f"counterexample_{violation.index}.npz")
            raise
        if run.attacked:
            _check_attacks(run, campaign)
    return _report(run, campaign, title, class_names)


@dataclass
class _Run:
    """An evaluation: what was asked for, and what its stages have found so far.

    Args:
        model: the model.
        given: images as the caller gave them, around which the balls are.
        x: the same as float32, as the model sees them.
        y: labels (n,).
        norm: ``"l2"`` or ``"linf"``.
        eps: radii, increasing.
        batch_size: images at once.
        seed: of the attacks.
        attacked: whether there are attacks at all.
        makers: functions from a radius to an attack.
    """

    model: Any
    given: Any
    x: Any
    y: np.ndarray
    norm: str
    eps: list[float]
    batch_size: int
    seed: int
    attacked: bool
    makers: list[Callable[[float], Attack]]
    attack_certified: str = "first"
    checks: str = "full"
    surrogates: list[Any] = field(default_factory=list)
    checkpoint: str | os.PathLike[str] | None = None
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))
    began: float = field(default_factory=time.perf_counter)
    warnings: list[EvaluationWarning] = field(default_factory=list)
    labels: Any = None  # the model's answers to the clean images
    certificate: Any = None
    radii: np.ndarray | None = None  # certified, of the answers in cert_labels
    cert_labels: Any = None
    smoothed: dict[str, Any] | None = None
    sets: dict[str, Any] | None = None
    decisions: np.ndarray | None = None  # (radii, n), words
    planned: list[list[Attack]] = field(default_factory=list)

    @property
    def correct(self) -> np.ndarray:
        """Which clean images are answered right."""
        return self.labels == self.y

    @property
    def sample(self) -> np.ndarray:
        """Rows of a few right images, on which the model and the attacks are checked."""
        return np.flatnonzero(self.correct)[:SAMPLE]

    @property
    def factor(self) -> float:
        """How many L2 lengths a radius in the norm asked for has."""
        return float(np.sqrt(self.x[0].size)) if self.norm == "linf" else 1.0

    @property
    def counted(self) -> np.ndarray | None:
        """Certified radii, 0 where the answer is wrong."""
        return None if self.radii is None else np.where(self.cert_labels == self.y, self.radii, 0.0)

    @property
    def proved(self) -> np.ndarray | None:
        """Bool (radii, n): right, and proved to stay so."""
        counted = self.counted
        if counted is None:
            return None
        proved = np.stack([counted > e * self.factor for e in self.eps])
        return proved if self.decisions is None else proved | (self.decisions == "certified")

    @property
    def random(self) -> bool:
        """Whether the model answers otherwise each time."""
        return any(w.name == "randomised-model" for w in self.warnings)


def _plan(
    model: Any,
    x: Any,
    y: Any,
    norm: str,
    eps: float | Iterable[float],
    attacks: Any,
    batch_size: int,
    seed: int,
) -> _Run:
    """Checks what is evaluated and makes the list of attacks."""
    given, y = check_images_or_stream(x, y)
    x = given.astype(np.float32, copy=False)
    check_shape(x, model)
    check_unit_range(model)
    asked = _radii_asked(eps, norm, x[0].size)
    attacked = not isinstance(attacks, str) or attacks != "none"
    made = makers(attacks, norm, seed, batch_size) if attacked else []
    return _Run(model, given, x, y, norm, asked, batch_size, seed, attacked, made)


def _answer(run: _Run) -> None:
    """The model's answers to the clean images."""
    with run.progress.watching("clean accuracy"):
        run.warnings += check_layers(run.model, run.x)
        run.labels = _labels(run.model, run.x, run.y, run.batch_size, run.seed)
        run.warnings += _check_answers(run.labels)


def _certify(run: _Run, certificate: Any, alpha: float | None) -> None:
    """What is proved: radii, numbers of a smoothed classifier, prediction sets."""
    with run.progress.watching("certificate"):
        if isinstance(certificate, SmoothedClassifier):
            at = [e * run.factor for e in run.eps]
            of = (certificate, run.model, run.given, run.y)
            run.smoothed, certificate = smoothed_numbers(*of, at, run.eps, run.batch_size), False
        found = claims_of(run.model, certificate, run.x, run.batch_size)
    run.certificate, run.radii, run.cert_labels, notes = found
    run.warnings += notes
    if run.certificate is not None:
        with run.progress.watching("decisions at the images"):
            right = run.correct & (run.cert_labels == run.y)
            run.decisions = decisions_of(
                run.certificate, run.x, right, run.norm, run.eps, run.batch_size
            )
        if run.decisions is not None and run.norm == "l2":
            # What is decided is a claim that every attack tests.
            for e, words in zip(run.eps, run.decisions, strict=True):
                least = np.where(words == "certified", np.nextafter(e, np.inf), 0.0)
                run.radii = np.maximum(run.radii, least)
    if alpha is not None and run.certificate is not None:
        with run.progress.watching("prediction sets"):
            asked = (alpha, run.eps, run.seed, run.batch_size)
            run.sets = set_numbers(run.certificate, run.x, run.y, *asked)


def _refute(run: _Run, points: Any, rows: np.ndarray, labels: np.ndarray) -> None:
    if run.radii is not None:
        refute(run.x, points, rows, labels, run.cert_labels, run.radii)


def _check_model(run: _Run, draws: Draws) -> None:
    """Warns where attacks on this model would not say what they seem to."""
    rows = run.sample
    if not rows.size:
        return
    known = {w.name for w in run.warnings}
    with run.progress.watching("outputs of two passes"):
        found = check_outputs(run.model, run.x[rows], draws)
    run.warnings += [w for w in found if w.name not in known]
    if not run.attacked:
        return
    with run.progress.watching("gradients against differences"):
        run.warnings += check_gradients(run.model, run.x[rows], run.y[rows])
    with run.progress.watching("attack without a limit"):
        run.warnings += check_unbounded(run.model, run.x[rows], run.y[rows], run.norm, run.seed)


def _attack(run: _Run, certificate_given: Any) -> Campaign:
    """All attacks at all radii, on the images that still resist; none without attacks."""
    run.planned = [[with_draws(make(e), run.random) for make in run.makers] for e in run.eps]

    def judge(attack: Attack, rows: np.ndarray) -> tuple[Any, Any]:
        points = attack(run.model, run.given[rows], run.y[rows], indices=rows)
        labels = _labels(run.model, points, run.y[rows], run.batch_size, run.seed)
        _refute(run, points, rows, labels)
        return points, labels

    campaign = Campaign(
        run.planned,
        run.eps,
        run.y,
        run.correct,
        judge,
        skip=None if run.attack_certified == "all" else run.proved,
        skip_from=0 if run.attack_certified == "none" else 1,
        batch_size=run.batch_size,
        about={
            **fingerprint(run.model, run.given, run.y),
            "norm": run.norm,
            "seed": run.seed,
            "batch_size": run.batch_size,
            "attack_certified": run.attack_certified,
            "attacks": [[_config(attack) for attack in row] for row in run.planned],
            "surrogates": [identity_of(source) for source in run.surrogates],
            "certificate": _certificate_given(certificate_given),
        },
        checkpoint=run.checkpoint,
        tick=run.progress,
    )
    campaign.run()
    return campaign


def _check_attacks(run: _Run, campaign: Campaign) -> None:
    """Warns where the outcomes of the attacks are not to be believed."""
    outcomes = campaign.outcomes
    run.warnings += check_outcomes(outcomes, run.planned[0], campaign.repeated)
    if run.checks != "full" or not run.sample.size:
        return
    middle = (len(run.eps) - 1) // 2
    survivors = np.flatnonzero(outcomes.robust()[middle])
    steps = max(1, *(attack.steps for attack in run.planned[0]))
    with run.progress.watching("attack of twice the steps"):
        more = (survivors, run.eps[middle], run.norm, steps, run.seed)
        run.warnings += check_convergence(run.model, run.x, run.y, *more)
    attack = gradient_attack(run.planned[middle])
    if attack is not None and not run.random:
        with run.progress.watching("attack on planted examples"):
            run.warnings += check_active(run.model, run.x[run.sample], attack, run.seed)


def _report(
    run: _Run, campaign: Campaign, title: str | None, class_names: list[str] | None
) -> RobustnessReport:
    outcomes, proved = campaign.outcomes, run.proved
    robust = outcomes.robust()
    certified: dict[float, float | None] = dict.fromkeys(run.eps)
    if proved is not None:
        # `refute` has judged every point; this guards the book-keeping.
        if np.any(proved & ~robust) or np.any(robust & ~run.correct):
            raise RuntimeError("An image counts as certified, but not as robust or not as right.")
        certified = dict(zip(run.eps, proved.mean(axis=1).tolist(), strict=True))
    survived: dict[float, float | None] = dict.fromkeys(run.eps)
    if run.attacked:
        survived = dict(zip(run.eps, robust.mean(axis=1).tolist(), strict=True))
    examples = [
        image
        for e, found in zip(run.eps, campaign.fooled, strict=True)
        for image in attacked_images(run.x, run.y, found, e, run.norm)
    ]
    name = getattr(run.model, "name", None)
    return RobustnessReport(
        norm=run.norm,
        clean=float(run.correct.mean()),
        robust=survived,
        certified=certified,
        smoothed=run.smoothed,
        prediction_sets=run.sets,
        decisions=decision_shares(run.eps, run.decisions),
        warnings=run.warnings,
        per_image={
            "correct": run.correct,
            "robust": robust if run.attacked else None,
            "radii": run.counted,
            "labels": run.y,
        },
        outcomes=outcomes,
        examples=spread(examples),
        title=title or f"Robustness of {name or 'the model'}",
        class_names=class_names or names_of(run.model),
        details={
            "model": name,
            "image_shape": list(run.x.shape[1:]),
            "threat_model": threat_model(run.norm, run.eps, run.planned[0], run.attack_certified),
            "certificate": certificate_dict(run.certificate),
            "runs": runs(outcomes, run.planned),
            "checks": run.checks,
            "seed": run.seed,
            "batch_size": run.batch_size,
            "seconds": round(time.perf_counter() - run.began, 3),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
