"""Clean, attacked and certified accuracy side by side, each checked against the others."""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.attacks.base import Attack, check_images_or_stream
from dynzoo.attacks.ensembles import gradient_attack, makers, transfer_from, with_draws
from dynzoo.certificates.smoothing import SmoothedClassifier
from dynzoo.inference.answers import NO_ANSWER
from dynzoo.inference.class_names import names_of
from dynzoo.inference.draws import Draws
from dynzoo.inference.image_checks import check_shape, check_unit_range
from dynzoo.inference.model_identity import identity_of
from dynzoo.robustness.campaign import REPEATS, Found
from dynzoo.robustness.certified import (
    certificate_dict,
    check_sets_asked,
    claims_of,
    decisions_of,
    set_numbers,
    shared,
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
from dynzoo.robustness.outcomes import Outcomes
from dynzoo.robustness.progress import Progress
from dynzoo.robustness.provenance import fingerprint, runs, threat_model, versions
from dynzoo.robustness.refutation import CertificateViolation, refute
from dynzoo.robustness.report import RobustnessReport, attacked_images, decision_shares, spread
from dynzoo.robustness.shard_files import shard_file
from dynzoo.robustness.shards import (
    Packed,
    Shard,
    attack_packed,
    attack_shard,
    default_shards,
    labels_of,
    merge,
    pack,
    ranges,
)
from dynzoo.utils.arguments import integer, one_of, positive_floats
from dynzoo.utils.files import check_place
from dynzoo.utils.jobs import checked_jobs, run_jobs

__all__ = ["CertificateViolation", "evaluate", "radii_asked"]


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
    jobs: int | None = None,
    shards: int | None = None,
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
            ``certify_local`` in the same norm counts its own radii; with ``method="complete"`` it
            decides each image at each radius (``report.decisions``).
        seed: seed of the random starts, and of a model that is random at inference.
        verbose: 1 says which check runs, or where the attacks stand, the share that is done and the
            time that is left: one line that is updated on a terminal, elsewhere a line every few
            seconds.
        class_names: names of the classes, for the report; ``None`` for a preset's own.
        title: heading of the report.
        checkpoint: file (``.npz``) that is written after each batch of each attack. If it exists,
            the evaluation goes on from it and ends with the same outcomes. With ``jobs`` or
            ``shards`` it is a folder, of a file for each part.
        surrogates: other models for the same images; what fools them is tried on this one.
        attack_certified: which attacks try images whose certificate covers the radius: only the
            ``"first"``, ``"all"``, or ``"none"``. None can succeed if the certificate is right, and
            those that try test whether it is.
        checks: ``"full"``, ``"quick"`` without those checks that attack the model (convergence,
            planted examples), or ``"auto"``: quick for ``attacks="fast"``, else full.
        prediction_sets: alpha in (0, 1) for ``dynzoo.certificates.prediction_sets``: a half of the
            images, drawn by the seed, calibrates them, and the other half measures coverage and
            sizes (``report.prediction_sets``). L2 only. ``None`` for none.
        jobs: number of processes that work on parts of the images side by side, one thread each:
            attacks, and a certificate of ``certify_local`` or ``smooth``; or workers of another
            engine within ``joblib.parallel_config``. The outcomes do not depend on their number (a
            time limit of a certificate set aside); 1 attacks the same parts in this process, with
            its threads. ``None`` to attack all images here, as one part.
        shards: number of the parts, on which the outcomes depend a little, as on ``batch_size``;
            ``None`` for one without ``jobs``, and with them for eight of at least 25 images, or
            more where a batch is smaller.

    Returns:
        A ``RobustnessReport``.

    Raises:
        ValueError: if an argument is out of its range, the model gives NaN for every image, the
            checkpoint is of something else, or the certificate of another model.
        OSError: if the checkpoint cannot be written.
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
    _divide(run, jobs, shards)
    _check_wanted(run, certificate)
    if checks == "auto":
        run.checks = "quick" if attacks in ("fast", "none") else "full"
    if prediction_sets is not None:
        check_sets_asked(prediction_sets, norm, certificate, run.x)
    run.makers += [transfer_from(s, norm, seed, batch_size) for s in run.surrogates]
    run.progress = Progress(quiet=not verbose)
    with run.progress, Draws(model, seed) as draws, _counterexample_kept(checkpoint):
        _prepare(run, certificate, draws, prediction_sets)
        found = _attack(run, certificate)
        if run.attacked:
            _check_attacks(run, found)
    return _report(run, found, title, class_names)


def attack_part(
    model: Any,
    x: Any,
    y: Any,
    norm: str,
    eps: float | Iterable[float],
    attacks: str | Iterable[Any],
    batch_size: int,
    certificate: Any,
    seed: int,
    verbose: int,
    checkpoint: str | os.PathLike[str],
    attack_certified: str,
    shards: int,
    number: int,
) -> Outcomes:
    """One part of an evaluation, whose file in the folder ``checkpoint`` is all that is wanted.

    Args:
        number: of the part, from 0; all else as in ``evaluate``, which finds the file.
    """
    run = _plan(model, x, y, norm, eps, attacks, batch_size, seed)
    run.attack_certified = one_of("attack_certified", attack_certified, ("first", "all", "none"))
    run.checkpoint = checkpoint
    _divide(run, None, shards)
    _check_wanted(run, certificate)
    run.progress = Progress(quiet=not verbose)
    with run.progress, Draws(model, seed) as draws, _counterexample_kept(checkpoint):
        _prepare(run, certificate, draws, None)
        parts, about = ranges(len(run.y), run.shards), _about(run, certificate)
        part = _shard(run, number, parts[number], about)
        return attack_shard(model, run.planned, part, run.progress).outcomes


@contextlib.contextmanager
def _counterexample_kept(checkpoint: str | os.PathLike[str] | None) -> Iterator[None]:
    """Saves what refutes a certificate beside the checkpoint."""
    try:
        yield
    except CertificateViolation as violation:
        folder = Path(checkpoint).parent if checkpoint else Path(tempfile.gettempdir())
        violation.save(folder / f"counterexample_{violation.index}.npz")
        raise


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
    radii: dict[str, np.ndarray] = field(default_factory=dict)  # certified, by their norm
    cert_labels: Any = None  # what they are certified for, or None
    smoothed: dict[str, Any] | None = None
    sets: dict[str, Any] | None = None
    decisions: np.ndarray | None = None  # (radii, n), words
    planned: list[list[Attack]] = field(default_factory=list)
    jobs: int | None = None
    divided: bool = False  # whether checkpoints are those of parts
    shards: int = 1  # parts of the images that are attacked by themselves

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
    def counted(self) -> dict[str, np.ndarray]:
        """Certified radii by their norm, 0 where the answer is wrong."""
        right = self.cert_labels == self.y
        return {norm: np.where(right, radii, 0.0) for norm, radii in self.radii.items()}

    @property
    def proved(self) -> np.ndarray | None:
        """Bool (radii, n): right, and proved to stay so."""
        if not self.radii:
            return None
        proved = np.zeros((len(self.eps), len(self.y)), bool)
        for norm, radii in self.counted.items():
            factor = self.factor if norm == "l2" else 1.0
            proved |= np.stack([radii > e * factor for e in self.eps])
        return proved

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
    asked = radii_asked(eps, norm, x[0].size)
    batch_size, seed = integer("batch_size", batch_size), integer("seed", seed, least=0)
    attacked = not isinstance(attacks, str) or attacks != "none"
    made = makers(attacks, norm, seed, batch_size) if attacked else []
    return _Run(model, given, x, y, norm, asked, batch_size, seed, attacked, made)


def _divide(run: _Run, jobs: int | None, shards: int | None) -> None:
    """Into how many parts the images are divided, and who attacks them."""
    run.jobs = checked_jobs(jobs)
    if shards is not None:
        run.shards = integer("shards", shards)
        ranges(len(run.y), run.shards)  # not more than images
    elif jobs is not None and run.attacked:
        run.shards = default_shards(len(run.y), run.batch_size)
    run.divided = run.jobs is not None or shards is not None
    if run.divided and run.checkpoint is not None:
        folder = Path(run.checkpoint)
        if folder.exists() and not folder.is_dir():
            raise ValueError(
                "`checkpoint` must be a folder where the images are attacked in parts. Received: "
                f"checkpoint={str(folder)!r}, a file"
            )
        folder.mkdir(parents=True, exist_ok=True)
    elif run.checkpoint is not None:
        check_place(run.checkpoint)  # before what is certified, which may take long


def _check_wanted(run: _Run, certificate: Any) -> None:
    """What needs attacks is not asked for without."""
    if run.attacked:
        return
    asked = {
        "surrogates": bool(run.surrogates),
        "checkpoint": run.checkpoint is not None,
        "shards": run.shards > 1,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ValueError(f"`{name}` needs attacks. Received: attacks='none'")
    if run.jobs is not None and not shared(certificate, run.jobs):
        raise ValueError(
            "`jobs` needs attacks, or a certificate of `certify_local` or `smooth`. Received: "
            "attacks='none'"
        )


def _prepare(run: _Run, certificate: Any, draws: Draws, alpha: float | None) -> None:
    """All that comes before the attacks, and their list."""
    _answer(run)
    _certify(run, certificate, alpha)
    if run.radii:
        other = np.flatnonzero(run.labels != run.cert_labels)
        refute(run.x, run.x[other], other, run.labels[other], run.cert_labels, run.radii)
    _check_model(run, draws)
    run.planned = [[with_draws(make(e), run.random) for make in run.makers] for e in run.eps]


def _answer(run: _Run) -> None:
    """The model's answers to the clean images."""
    with run.progress.watching("clean accuracy"):
        run.warnings += check_layers(run.model, run.x)
        run.labels = labels_of(run.model, run.x, run.y, run.batch_size, run.seed)
        run.warnings += _check_answers(run.labels)


def _certify(run: _Run, certificate: Any, alpha: float | None) -> None:
    """What is proved: radii, numbers of a smoothed classifier, prediction sets."""
    with run.progress.watching("certificate"):
        if isinstance(certificate, SmoothedClassifier):
            at = [e * run.factor for e in run.eps]
            of = (certificate, run.model, run.given, run.y)
            how = (run.batch_size, run.jobs)
            run.smoothed, certificate = smoothed_numbers(*of, at, run.eps, *how), False
        found = claims_of(run.model, certificate, run.x, run.norm, run.batch_size, run.jobs)
    run.certificate, run.radii, run.cert_labels, notes = found
    run.warnings += notes
    if run.certificate is not None:
        with run.progress.watching("decisions at the images"):
            right = run.correct & (run.cert_labels == run.y)
            run.decisions = decisions_of(
                run.certificate, run.x, right, run.norm, run.eps, run.batch_size, run.jobs
            )
        if run.decisions is not None:
            # What is decided is a claim that every attack tests.
            claimed = run.radii.get(run.norm, np.zeros(len(run.y)))
            for e, words in zip(run.eps, run.decisions, strict=True):
                least = np.where(words == "certified", np.nextafter(e, np.inf), 0.0)
                claimed = np.maximum(claimed, least)
            run.radii[run.norm] = claimed
    if alpha is not None and run.certificate is not None:
        with run.progress.watching("prediction sets"):
            asked = (alpha, run.eps, run.seed, run.batch_size)
            run.sets = set_numbers(run.certificate, run.x, run.y, *asked)


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


def _attack(run: _Run, certificate_given: Any) -> Found:
    """All attacks at all radii, on the images that still resist; none without attacks."""
    about = _about(run, certificate_given)
    parts = ranges(len(run.y), run.shards)
    tasks = [partial(_shard, run, k, rows, about) for k, rows in enumerate(parts)]
    if run.jobs in (None, 1) or not run.attacked:
        found = [attack_shard(run.model, run.planned, make(), run.progress) for make in tasks]
        return merge(found, parts)
    packed = pack(run.model, run.planned, run.seed)
    found = run_jobs(
        attack_packed,
        [partial(_packed_with, packed, make) for make in tasks],
        run.jobs,
        finished=run.progress.counting(len(parts)),
        lost=run.progress.lost,
        environment={"KERAS_BACKEND": packed.backend},
    )
    return merge(found, parts)


def _packed_with(packed: Packed, make: Callable[[], Shard]) -> tuple[Packed, Shard]:
    return packed, make()


def _about(run: _Run, certificate_given: Any) -> dict[str, Any]:
    """What is evaluated, for checkpoints."""
    return {
        **fingerprint(run.model, run.given, run.y),
        "norm": run.norm,
        "seed": run.seed,
        "batch_size": run.batch_size,
        "attack_certified": run.attack_certified,
        "attacks": [[_config(attack) for attack in row] for row in run.planned],
        "surrogates": [identity_of(source) for source in run.surrogates],
        "certificate": _certificate_given(certificate_given),
    }


def _shard(run: _Run, number: int, rows: range, about: dict[str, Any]) -> Shard:
    """A part of the images with what is known of them."""
    part, file = slice(rows.start, rows.stop), run.checkpoint
    if run.divided:
        about = about | {"shard": [rows.start, rows.stop]}
        file = None if file is None else shard_file(file, number, run.shards)
    proved = None if run.attack_certified == "all" else run.proved
    return Shard(
        first=rows.start,
        x=run.given if len(rows) == len(run.y) else run.given[part],
        y=run.y[part],
        correct=run.correct[part],
        skip=None if proved is None else proved[:, part],
        skip_from=0 if run.attack_certified == "none" else 1,
        cert_labels=run.cert_labels[part] if run.radii else None,
        radii={norm: radii[part] for norm, radii in run.radii.items()},
        eps=run.eps,
        batch_size=run.batch_size,
        seed=run.seed,
        repeats=max(1, REPEATS // run.shards),
        about=about,
        checkpoint=file,
    )


def _check_attacks(run: _Run, found: Found) -> None:
    """Warns where the outcomes of the attacks are not to be believed."""
    outcomes = found.outcomes
    run.warnings += check_outcomes(outcomes, run.planned[0], found.repeated)
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
    run: _Run, found: Found, title: str | None, class_names: list[str] | None
) -> RobustnessReport:
    outcomes, proved, counted = found.outcomes, run.proved, run.counted
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
        for e, some in zip(run.eps, found.fooled, strict=True)
        for image in attacked_images(run.x, run.y, some, e, run.norm)
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
            # a ball of another norm holds the L2 ball of its radius
            "radii": counted.get("l2", counted.get("linf")),
            "linf_radii": counted.get("linf"),
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


def radii_asked(eps: float | Iterable[float], norm: str, entries: int) -> list[float]:
    """The radii in that norm, increasing, each once.

    Args:
        eps: radius or radii.
        norm: ``"l2"`` or ``"linf"``.
        entries: numbers of an image.

    Raises:
        ValueError: if the norm is another one, or a radius is none of images in [0, 1].

    Example:

    >>> radii_asked((0.2, 0.1, 0.2), "l2", 3072)
    [0.1, 0.2]
    """
    # Also without attacks, which would refuse it: of any other norm nothing is converted.
    one_of("norm", norm, ("l2", "linf"))
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
