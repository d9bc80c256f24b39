"""Evaluating a preset: all images certified, the first ones attacked, the numbers on its card."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dynzoo.attacks.base import check_images_or_stream, check_labels
from dynzoo.certificates import UncertifiableLayerError, certify, certify_local
from dynzoo.inference.answers import answers
from dynzoo.inference.image_checks import check_unit_range
from dynzoo.inference.passes import predict_logits
from dynzoo.inference.streamed_images import StreamedImages, chunks
from dynzoo.robustness.evaluation import evaluate, radii_asked
from dynzoo.robustness.report import RobustnessReport
from dynzoo.utils.files import write_atomically
from dynzoo.utils.formatting import clock, percent, radius_text
from dynzoo.utils.jobs import checked_jobs
from dynzoo.zoo import files as preset_files
from dynzoo.zoo.cards import model_card

__all__ = ["Measurement", "accuracy", "measure", "radius_text", "update_card"]

_CHUNK = 1024
# Half a minute for a small network on a CPU core.
_AUDIT: dict[str, Any] = {"pairs": 16, "steps": 40, "restarts": 1}
# With ten classes or fewer, the first five are too many to say something.
_TOP5_CLASSES = 11
_SMOOTHING_LINES = 5.0  # seconds between two of them
# What of a preset's metadata an evaluation says, and replaces as a whole.
_MEASURED = (
    "accuracy",
    "certified_accuracy",
    "top5_accuracy",
    "certified_top5_accuracy",
    "attacked_accuracy",
    "smoothed_accuracy",
    "smoothed_certified_accuracy",
    "smoothing",
    "lipschitz",
    "body_lipschitz",
    "audited_slope",
    "evaluation",
)


@dataclass
class Measurement:
    """Accuracies of a model on `images` images; attacks ran on the first `attacked_images`.

    With more than ten classes, `top5` is the share of images whose label is among the five largest
    logits, and `certified_top5` the share for which that is proved to stay so within a radius.
    `smoothed` is what `SmoothedClassifier.accuracy` gives, with the number of `"images"`. Of a
    network with a layer that `certify` does not know, `certified` is empty and `lipschitz` `None`;
    `uncertified` says why.
    """

    norm: str
    images: int
    clean: float
    certified: dict[float, float]
    lipschitz: float | None
    attacked_images: int
    report: RobustnessReport | None
    audited_slope: float | None = None
    body_lipschitz: float | None = None
    top5: float | None = None
    certified_top5: dict[float, float] = field(default_factory=dict)
    smoothed: dict[str, Any] | None = None
    uncertified: str | None = None

    def rows(self) -> list[list[float | None]]:
        """(radius, certified on all, certified on the attacked ones, attacked); radius 0 first."""
        first = self.report
        if first is None or not first.attacked:
            return [
                [0.0, self.clean, None, None],
                *([eps, share, None, None] for eps, share in self.certified.items()),
            ]
        return [
            [0.0, self.clean, first.clean, first.clean],
            *([e, self.certified.get(e), first.certified[e], v] for e, v in first.robust.items()),
        ]


def measure(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    norm: str = "l2",
    eps: Sequence[float] = (36 / 255, 72 / 255, 108 / 255),
    attacks: str | list[str] = "standard",
    attack_limit: int = 1000,
    batch_size: int = 256,
    seed: int = 0,
    verbose: int = 0,
    class_names: list[str] | None = None,
    title: str | None = None,
    tick: Callable[[int], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    attack_certified: str = "first",
    audit: bool = False,
    corruptions: bool = False,
    report: bool = False,
    prediction_sets: float | None = None,
    local: str | None = None,
    time_limit: float | None = None,
    jobs: int | None = None,
    shards: int | None = None,
    smoothing: float | None = None,
    smoothing_samples: int = 10_000,
    smoothing_limit: int = 500,
) -> Measurement:
    """Clean and certified accuracy on all images, attacked accuracy on the first few.

    Args:
        model: a model that `certify` knows; of another one all but the certificate is measured.
        x: images (n, height, width, channels) in [0, 1].
        y: integer labels (n,).
        norm: `"l2"` or `"linf"`.
        eps: radii in the pixel range [0, 1].
        attacks: what `dynzoo.evaluate` takes, or `"none"`.
        attack_limit: number of images that are attacked, from the first one on.
        batch_size: images at once.
        seed: seed of the attacks.
        verbose: 1 prints a line an attack.
        class_names: names of the classes, for the report.
        title: heading of the report.
        tick: called with the number of images that were certified since its last call; with
            `local`, by local bounds.
        checkpoint: file of an attack that can be stopped and gone on with; smoothing goes on from
            one beside it, `smoothing_file`.
        attack_certified: which attacks try images that are proved at a radius: `"first"`, `"all"`
            or `"none"`.
        audit: search for the steepest slope, which refutes the Lipschitz bound or says how tight
            it is; a section of the report.
        corruptions: measure the attacked images under fifteen corruptions; a section of the report.
        report: make a report without attacks too, of all images; with them there is one anyway.
        prediction_sets: as in `dynzoo.evaluate`, of the images of the report; `None` for none.
        local: a method of `dynzoo.certificates.certify_local`, whose certificate the images of the
            report get in place of that of the Lipschitz bound; `None` for none.
        time_limit: its seconds for an image, or `None`.
        jobs: processes that work side by side, as in `dynzoo.evaluate`: on attacks, `local`
            certificates, the audit, the corruptions and smoothing.
        shards: parts of the images that are attacked by themselves, as in `dynzoo.evaluate`.
        smoothing: standard deviation of the noise of `dynzoo.certificates.smooth`, whose accuracy
            is measured too, in L2 only; a section of the report. `None`: not measured.
        smoothing_samples: its draws for an image.
        smoothing_limit: number of images that it is measured on, from the first one on.

    Returns:
        A `Measurement`; its `report` is `None` where none was asked for, its `audited_slope`
        where nothing is audited.

    Raises:
        UncertifiableLayerError: if the model has a layer without a known constant, and what needs
            its certificate is asked for: `local`, an audit, prediction sets; or neither attacks nor
            smoothing are.
        CertificateViolation: if an attack refutes the certificate.
        AuditViolation: if the audit refutes the Lipschitz bound.
    """
    x, y = check_images_or_stream(x, y)
    check_unit_range(model)
    eps, jobs = radii_asked(eps, norm, x[0].size), checked_jobs(jobs)
    _check_asked(norm, smoothing, jobs, attacks != "none" or local or audit or corruptions)
    needed = local or audit or prediction_sets or (attacks == "none" and smoothing is None)
    certificate, uncertified = _certificate(model, bool(needed))
    top = (1, 5) if model.output_shape[-1] >= _TOP5_CLASSES else (1,)
    counted = tick if local is None else None
    places, radii = _places_and_radii(model, certificate, x, y, top, batch_size, counted)
    correct, proved = places == 0, None if certificate is None else radii[:, 0]
    factor = float(np.sqrt(x[0].size)) if norm == "linf" else 1.0
    made, slope, smoothed = None, None, None
    if smoothing is not None:
        noisy = (x[:smoothing_limit], y[:smoothing_limit], eps)
        kept = None if checkpoint is None else smoothing_file(checkpoint)
        smoothed = _smoothed(model, *noisy, smoothing, smoothing_samples, seed, verbose, jobs, kept)
    first = slice(len(x) if attacks == "none" else attack_limit)
    if attacks != "none" or report or audit or corruptions or prediction_sets or local:
        claim: Any = certificate
        if local is not None:
            claim = _local_claim(model, local, norm, time_limit, tick, len(eps))
            if tick is not None:
                tick(len(x) - len(y[first]))
        made = evaluate(
            model,
            x if attacks == "none" else x[first],
            y[first],
            norm=norm,
            eps=eps,
            attacks=attacks,
            batch_size=batch_size,
            certificate=claim,
            seed=seed,
            verbose=verbose,
            class_names=class_names,
            title=title,
            checkpoint=None if attacks == "none" else checkpoint,
            attack_certified=attack_certified,
            prediction_sets=prediction_sets,
            jobs=None if attacks == "none" and local is None else jobs,
            shards=shards,
        )
        few = (x[:attack_limit], y[:attack_limit], batch_size, seed)
        slope = _add_sections(made, model, certificate, *few, audit, corruptions, jobs)
        if made.images < len(x):
            made.sections.append(_all_images(correct, proved, eps, factor))
        made.smoothed = smoothed
    return Measurement(
        norm=norm,
        images=len(x),
        clean=float(correct.mean()),
        certified=_shares(proved, eps, factor),
        lipschitz=None if certificate is None else float(certificate.lipschitz),
        attacked_images=made.images if made is not None and made.attacked else 0,
        report=made,
        audited_slope=slope,
        body_lipschitz=None if certificate is None else float(certificate.body_lipschitz),
        top5=float((places < 5).mean()) if 5 in top else None,
        certified_top5=_shares(radii[:, 1], eps, factor) if 5 in top and certificate else {},
        smoothed=smoothed,
        uncertified=uncertified,
    )


def _check_asked(norm: str, smoothing: float | None, jobs: int | None, shares: Any) -> None:
    """That `jobs` have something to share, and that the radii of smoothing are of its norm."""
    if jobs is not None and not (shares or smoothing):
        raise ValueError(
            "`jobs` needs attacks, `local`, `audit`, `corruptions` or `smoothing` to share"
        )
    if smoothing is not None and norm != "l2":
        raise ValueError(f"`smoothing` has L2 radii: `norm` must be 'l2'. Received: norm={norm!r}")


def _certificate(model: keras.Model, needed: bool) -> tuple[Any, str | None]:
    """The certificate of a model, or `None` and why there is none where it is not needed."""
    try:
        return certify(model), None
    except UncertifiableLayerError as error:
        if needed:
            raise
        return None, str(error)


def _local_claim(
    model: keras.Model,
    method: str,
    norm: str,
    time_limit: float | None,
    tick: Callable[[int], None] | None,
    radii: int,
) -> Any:
    """The certificate at each image, which tells `tick` of every image that is done."""
    of = "l2" if method == "movement" else norm  # "movement" knows no other
    claim = certify_local(model, method=method, norm=of, time_limit=time_limit)
    if tick is not None:
        claim.tick = _paced(tick, radii if method == "complete" else 1)
    return claim


def _places_and_radii(
    model: keras.Model,
    certificate: Any,
    x: np.ndarray | StreamedImages,
    y: np.ndarray,
    top: tuple[int, ...],
    batch_size: int,
    tick: Callable[[int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The place of each label among the logits, and its radii, of which there may be none."""
    parts = []
    for chunk in chunks(len(x), _CHUNK):
        if certificate is None:
            parts.append(_places(model, x[chunk], y[chunk], batch_size))
        else:
            parts.append(certificate.topk_radii(x[chunk], y[chunk], top, batch_size=batch_size))
        if tick is not None:
            tick(len(parts[-1][0]))
    places, radii = zip(*parts, strict=True)
    return np.concatenate(places), np.concatenate(radii)


def _places(
    model: keras.Model, x: np.ndarray, y: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The place of the label among the logits, the last one of all for NaN; and no radii."""
    logits = predict_logits(model, x, batch_size)
    check_labels(y, logits.shape[1])
    order = np.argsort(-logits, axis=1, kind="stable")  # of equal ones the first is the answer
    places = (order == np.asarray(y).reshape(-1, 1)).argmax(axis=1)
    places[np.isnan(logits).any(axis=1)] = logits.shape[1]
    return places, np.zeros((len(x), 0))


def smoothing_file(checkpoint: str | os.PathLike[str]) -> Path:
    """Where smoothing keeps what it has, beside the checkpoint of attacks."""
    return Path(f"{Path(checkpoint)}.smoothing.json")


def _smoothed(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    eps: Sequence[float],
    sigma: float,
    samples: int,
    seed: int,
    verbose: int,
    jobs: int | None,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Accuracy of the smoothed classifier, and on how many images."""
    from dynzoo.certificates.smoothing import smooth

    begin = last = time.monotonic()
    first: int | None = None

    def said(done: int, total: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        first = done if first is None else first  # what a checkpoint had took no time
        if verbose and (done == total or now - last >= _SMOOTHING_LINES):
            last, each = now, (now - begin) / (done - first + 1)
            left = f", left {clock(each * (total - done))}"
            print(
                f"smoothing: {done} of {total} images  after {clock(now - begin)}{left}", flush=True
            )

    smoothed = smooth(model, sigma, samples=samples, seed=seed, progress=said)
    return smoothed.accuracy(x, y, eps, jobs=jobs, checkpoint=checkpoint)


def _paced(tick: Callable[[int], Any], rounds: int) -> Callable[[int], None]:
    """Tells of an image when it was done so many times."""
    done = 0

    def count(images: int) -> None:
        nonlocal done
        before, done = done // rounds, done + images
        tick(done // rounds - before)

    return count


def _add_sections(
    report: Any,
    model: keras.Model,
    certificate: Any,
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    seed: int,
    audit: bool,
    corruptions: bool,
    jobs: int | None,
) -> float | None:
    """Sections of a report that are asked for beside it; the slope that an audit found."""
    slope = None
    if audit:
        from dynzoo.certificates.audit import audit as search

        found = search(model, x, certificate=certificate, seed=seed, jobs=jobs, **_AUDIT)
        report.sections.append(found.section())
        slope = found.slope
    if corruptions:
        from dynzoo.robustness.corruptions import evaluate_corruptions

        measured = evaluate_corruptions(model, x, y, batch_size=batch_size, seed=seed, jobs=jobs)
        report.sections.append(measured.section())
    return slope


def _shares(radii: np.ndarray | None, eps: Sequence[float], factor: float) -> dict[float, float]:
    """Share of the images that are proved at each radius; `factor` L2 lengths in one of eps."""
    if radii is None:
        return {}
    return {e: float((radii > e * factor).mean()) for e in sorted(eps)}


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray, batch_size: int = 256) -> float:
    """Share of the images that a model classifies right."""
    x, y = check_images_or_stream(x, y)
    check_unit_range(model)
    parts = chunks(len(x), _CHUNK) if isinstance(x, StreamedImages) else [slice(None)]
    asked = [model.predict(x[part], batch_size=batch_size, verbose=0) for part in parts]
    logits = np.concatenate(asked)
    check_labels(y, logits.shape[1])
    return float((answers(logits) == y).mean())


def _all_images(
    correct: np.ndarray, proved: np.ndarray | None, eps: Sequence[float], factor: float
) -> tuple[str, Any]:
    rows = [("clean", percent(correct.mean()))]
    for e, share in _shares(proved, eps, factor).items():
        rows.append((f"certified at {radius_text(e)}", percent(share)))
    return f"All {len(correct)} images, not attacked", rows


def update_card(
    folder: Path, measured: Measurement, about: Mapping[str, Any], keep_attacks: bool = False
) -> dict[str, Any]:
    """Put the numbers of a measurement into a preset's metadata and write its card again.

    Each of the two files is replaced in one step; the model and its weights are not touched.

    Args:
        folder: a preset folder.
        measured: L2 numbers; the numbers that stand there are replaced, all of them.
        about: how they were measured, for the card: split, attacks, command.
        keep_attacks: leave what attacks and audit have found, with how that was measured; only the
            clean and the certified numbers, and the Lipschitz bound, are replaced.

    Returns:
        The new metadata.

    Raises:
        ValueError: if the numbers are not L2 ones, which is what a card holds.

    Example:

    >>> update_card(Path("my_preset"), measure(model, x, y), {"split": "test"})
    """
    if measured.norm != "l2":
        raise ValueError(f"A model card holds L2 numbers. Received: norm={measured.norm!r}")
    metadata = preset_files.read_metadata(folder)
    before = dict(metadata)
    for key in _MEASURED:
        metadata.pop(key, None)
    metadata["accuracy"] = measured.clean
    if measured.certified:
        metadata["certified_accuracy"] = {radius_text(e): v for e, v in measured.certified.items()}
    if measured.top5 is not None:
        metadata["top5_accuracy"] = measured.top5
        if measured.certified_top5:
            metadata["certified_top5_accuracy"] = {
                radius_text(e): v for e, v in measured.certified_top5.items()
            }
    if measured.lipschitz is not None:
        metadata["lipschitz"] = measured.lipschitz
    if measured.body_lipschitz is not None:
        metadata["body_lipschitz"] = measured.body_lipschitz
    if measured.audited_slope is not None:
        metadata["audited_slope"] = measured.audited_slope
    evaluation: dict[str, Any] = {"images": measured.images}
    if measured.smoothed is not None:
        metadata.update(_of_the_smoothed(measured.smoothed))
    if measured.report is not None and measured.attacked_images:
        metadata["attacked_accuracy"] = {
            radius_text(e): v for e, v in measured.report.robust.items()
        }
        evaluation["attacked_images"] = measured.attacked_images
        evaluation["warnings"] = [warning.name for warning in measured.report.warnings]
    metadata["evaluation"] = {**evaluation, **about}
    if keep_attacks and not measured.attacked_images:
        names = ["attacked_accuracy", "audited_slope"]
        if measured.smoothed is None:
            names += ["smoothed_accuracy", "smoothed_certified_accuracy", "smoothing"]
        kept: dict[str, Any] = {name: before[name] for name in names if name in before}
        metadata.update(kept)
        command = about.get("command")
        again = {"certified_numbers": f"`{command}` on {about.get('backend')}"} if command else {}
        metadata["evaluation"] = {**before.get("evaluation", {}), **again}
        metadata["evaluation"]["images"] = measured.images
        metadata = {key: metadata[key] for key in dict.fromkeys([*before, *metadata])}
    text = preset_files.to_json(metadata)
    card = model_card(json.loads(text))
    write_atomically(folder / "metadata.json", text.encode())
    write_atomically(folder / "README.md", card.encode())
    return metadata


def _of_the_smoothed(smoothed: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata say of the smoothed classifier."""
    settings = {k: v for k, v in smoothed["settings"].items() if k != "type"}
    return {
        "smoothed_accuracy": smoothed["clean"],
        "smoothed_certified_accuracy": {
            radius_text(e): v for e, v in smoothed["certified"].items()
        },
        "smoothing": {**settings, "images": smoothed["images"]},
    }
