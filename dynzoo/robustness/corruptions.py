"""Accuracy under the fifteen common corruptions: regenerated ones, or the official files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from dynzoo import plots
from dynzoo.attacks.base import check_images, check_labels
from dynzoo.corruptions import CORRUPTIONS, PROVENANCE, SEVERITIES, check_pictures, corrupt
from dynzoo.corruptions.official import OfficialFiles
from dynzoo.inference.answers import NO_ANSWER, answers
from dynzoo.inference.draws import Draws
from dynzoo.inference.image_checks import check_unit_range
from dynzoo.inference.packed import Packed, pack, unpacked
from dynzoo.inference.passes import predict_logits
from dynzoo.robustness.checks.model import check_examples
from dynzoo.utils.arguments import integer, listed
from dynzoo.utils.formatting import percent
from dynzoo.utils.jobs import run_jobs

__all__ = ["CorruptionResult", "evaluate_corruptions", "hits", "hits_of"]

# Images and a slice of rows to the changed images of the rows.
Change = Callable[[np.ndarray, slice], np.ndarray]

_OFFICIAL = "The official files of the benchmark were used."


@dataclass(frozen=True)
class CorruptionResult:
    """What ``evaluate_corruptions`` found.

    Args:
        names: the corruptions.
        severities: the severities.
        correct: whether each image was classified correctly, bool array of shape (corruptions,
            severities, n).
        clean: accuracy on the clean images.
        official: whether the official files were used.
        details: seed, model and what else is needed to make the numbers again.
    """

    names: tuple[str, ...]
    severities: tuple[int, ...]
    correct: np.ndarray
    clean: float
    official: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracies, float64 array of shape (corruptions, severities)."""
        return self.correct.mean(axis=-1)

    @property
    def mean(self) -> float:
        """Mean accuracy over all corruptions and severities, the convention of RobustBench."""
        return float(self.accuracy.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean, for the choice of the images (the same ones in each entry of the table)."""
        return float(self.correct.mean(axis=(0, 1)).std() / np.sqrt(self.correct.shape[-1]))

    @property
    def provenance(self) -> str:
        """Where the corrupted images come from, in a sentence for every report."""
        return _OFFICIAL if self.official else PROVENANCE

    def rows(self) -> list[dict[str, Any]]:
        """The table as one dictionary a corruption: its name, each severity, their mean."""
        return [
            {
                "corruption": name,
                **{str(s): float(v) for s, v in zip(self.severities, line, strict=True)},
                "mean": float(line.mean()),
            }
            for name, line in zip(self.names, self.accuracy, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-able data, without the answers image by image."""
        return {
            "images": self.correct.shape[-1],
            "clean": self.clean,
            "mean": self.mean,
            "standard_error": self.standard_error,
            "severities": list(self.severities),
            "table": self.rows(),
            "official": self.official,
            "provenance": self.provenance,
            **self.details,
        }

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The table as a coloured matplotlib figure; saved too if ``path`` is given."""
        figure = plots.new_figure(6.4, 1.4 + 0.34 * len(self.names))
        self.draw(figure.add_subplot())
        if path is not None:
            figure.savefig(path, dpi=160)
        return figure

    def draw(self, axes: Any) -> None:
        """The table on given matplotlib axes, a row a corruption."""
        table = np.column_stack([self.accuracy, self.accuracy.mean(axis=1)])
        axes.imshow(table, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
        for (i, j), value in np.ndenumerate(table):
            color = "white" if value < 0.6 else plots.INK
            axes.text(j, i, f"{100 * value:.1f}", ha="center", va="center", color=color, fontsize=8)
        axes.set_yticks(range(len(self.names)), [name.replace("_", " ") for name in self.names])
        axes.set_xticks(range(table.shape[1]), [*map(str, self.severities), "mean"])
        axes.axvline(len(self.severities) - 0.5, color="white", linewidth=3)
        axes.set_xlabel("severity", color=plots.INK)
        kind = "official files" if self.official else "regenerated, not the official files"
        images = self.correct.shape[-1]
        low, high = plots.wilson_interval(0.5, images)  # where it is widest
        axes.set_title(
            f"percent correct: clean {100 * self.clean:.1f}, mean {100 * self.mean:.1f} "
            f"\N{PLUS-MINUS SIGN} {100 * plots.Z95 * self.standard_error:.1f}\n({kind})\n"
            f"{images:,} images, 95 % interval of a field: "
            f"\N{PLUS-MINUS SIGN} {50 * (high - low):.1f} at most",
            fontsize=9.5,
            color=plots.INK,
        )
        axes.tick_params(colors=plots.INK, length=0, labelsize=8.5)
        for side in axes.spines.values():
            side.set_visible(False)

    def section(self) -> tuple[str, Any]:
        """Heading and content for ``RobustnessReport.sections``."""
        lines = self.accuracy.mean(axis=1)
        worst, best = int(lines.argmin()), int(lines.argmax())
        facts = [
            ("clean accuracy", percent(self.clean, 1)),
            (
                f"mean over {lines.size} corruptions at {len(self.severities)} severities",
                f"{percent(self.mean, 1)} "
                f"(standard error {percent(self.standard_error, 1, unit='')} points)",
            ),
            ("lowest", f"{self.names[worst]}, {percent(lines[worst], 1)}"),
            ("highest", f"{self.names[best]}, {percent(lines[best], 1)}"),
            ("images", self.correct.shape[-1]),
            *((w["name"], w["text"]) for w in self.details.get("warnings", [])),
        ]
        return "Common corruptions", (self.provenance, facts, plots.svg(self.plot()))


def evaluate_corruptions(
    model: Any,
    x: Any,
    y: Any,
    names: str | Iterable[str] = "all",
    severities: int | Iterable[int] = SEVERITIES,
    batch_size: int = 256,
    seed: int = 0,
    official: str | os.PathLike[str] | None = None,
    verbose: int = 0,
    progress: Callable[[int, int], None] | None = None,
    jobs: int | None = None,
) -> CorruptionResult:
    r"""Accuracy under the corruptions of CIFAR-10-C, regenerated with a fixed seed.

    $\mathrm{mean} = \frac{1}{75}\sum_{c,s} \mathrm{accuracy}_{c,s}$ over the 15 corruptions and 5
    severities, not divided by the errors of a reference network. Unless ``official`` is given the
    images are regenerated: not the official files; numbers are close to but not the same as those
    of CIFAR-10-C. They do not depend on the batch size or the order of the images, unless the
    model's own answers do, which ``details["warnings"]`` says.

    Args:
        model: built Keras model, images to logits.
        x: clean images, array of shape (n, h, w, channels) with values in [0, 1]; see
            ``dynzoo.corruptions.corrupt`` for the sizes.
        y: integer labels of shape (n,).
        names: ``"all"``, or some of the names of ``dynzoo.corruptions.CORRUPTIONS``.
        severities: one or some of 1 to 5.
        batch_size: images processed at once.
        seed: seed of the corruptions, and of a model that is random at inference.
        official: folder of the official files: ``labels.npy``, and for each corruption
            ``NAME.npy``, uint8 of shape (5 m, h, w, channels) with the severities one after another
            (m = 10,000 in CIFAR-10-C). ``x`` and ``y`` must be the first n <= m images of the test
            set.
        verbose: 1 prints a line for each corruption.
        progress: called after each batch with the number of corrupted images that are done and
            their total, n for each entry of the table; with ``jobs`` after each entry.
        jobs: number of processes that work on entries of the table side by side, one thread each,
            or of another engine of joblib (see ``dynzoo.evaluate``); the answers are those of one
            process with one thread. ``None`` for none.

    Returns:
        A ``CorruptionResult``.

    Raises:
        ValueError: if an argument is out of its range, an official file has another shape or type,
            or its labels are not ``y``.
        FileNotFoundError: if an official file is missing.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> layers = [keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    >>> model = keras.Sequential(layers)
    >>> x, y = np.random.default_rng(0).random((5, 16, 16, 3)), np.zeros(5, "int64")
    >>> dynzoo.evaluate_corruptions(model, x, y, names=["fog", "snow"]).accuracy.shape
    (2, 5)

    Reference: Hendrycks and Dietterich, "Benchmarking neural network robustness to common
    corruptions and perturbations" (ICLR 2019); the mean: Croce et al., "RobustBench" (NeurIPS 2021
    datasets and benchmarks).
    """
    x, y = check_images(x, y)
    check_unit_range(model)
    chosen = tuple(CORRUPTIONS) if isinstance(names, str) and names == "all" else _names(names)
    levels = tuple(listed(severities))
    if not levels or any(isinstance(s, bool) or s not in SEVERITIES for s in levels):
        raise ValueError(f"`severities` must be some of {SEVERITIES}. Received: {levels}")
    batch_size, seed = integer("batch_size", batch_size), integer("seed", seed, least=0)
    if official is not None:
        OfficialFiles(official, chosen, x, y)  # which says what is wrong with them
    check_pictures(x)

    with Draws(model, seed) as draws:
        warnings = check_examples(model, x)
        clean = hits(model, lambda rows: x[rows], y, batch_size, draws, must_answer=True)
    changes: list[Change] = [
        partial(_corrupted, name, severity, seed)
        if official is None
        else partial(_official, os.fspath(official), name, severity, y)
        for name in chosen
        for severity in levels
    ]
    found = hits_of(model, changes, x, y, batch_size, seed, jobs, progress)
    correct = np.reshape(found, (len(chosen), len(levels), len(y)))
    if verbose:
        for name, line in zip(chosen, correct.mean(axis=-1), strict=True):
            print(f"{name:<18} " + "  ".join(f"{100 * v:5.1f}" for v in line), flush=True)
    details = {
        "model": getattr(model, "name", None),
        "seed": seed,
        "batch_size": batch_size,
        "folder": None if official is None else str(official),
        "warnings": [warning.to_dict() for warning in warnings],
    }
    return CorruptionResult(
        chosen, levels, correct, float(clean.mean()), official is not None, details
    )


def _corrupted(name: str, severity: int, seed: int, x: np.ndarray, rows: slice) -> np.ndarray:
    return corrupt(x[rows], name, severity, seed, np.arange(rows.start, rows.stop))


def _official(
    folder: str, name: str, severity: int, y: np.ndarray, x: np.ndarray, rows: slice
) -> np.ndarray:
    # Mapped anew for each batch: a map that travels to another process becomes the whole file.
    return OfficialFiles(folder, (name,), x, y)(name, severity, rows)


def hits_of(
    model: Any,
    changes: Sequence[Change],
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    seed: int,
    jobs: int | None,
    tick: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """``hits`` of several changes of one data set, each by itself, in processes if asked for.

    Args:
        model: built Keras model, images to logits.
        changes: functions of (images, slice of rows) to the changed images of the rows; pickled.
        x, y: images and int64 labels.
        batch_size: images of a batch.
        seed: of a model that is random at inference; before these, one pass was over the images.
        jobs: number of processes, or ``None``.
        tick: called with the number of images that are done, of all changes, and their total.
    """
    batches = -(-len(y) // batch_size)
    starts = [(k + 1) * batches for k in range(len(changes))]
    total, done = len(y) * len(changes), 0

    def told(images: int) -> None:
        if tick is not None:
            tick(images, total)

    if jobs is None or integer("jobs", jobs) == 1:
        found = []
        for number, (change, first) in enumerate(zip(changes, starts, strict=True)):
            before = number * len(y)
            with Draws(model, seed, first) as draws:
                images = partial(change, x)
                here = partial(_add, told, before)
                found.append(hits(model, images, y, batch_size, draws, here))
        return found

    def finished(number: int, result: np.ndarray) -> None:
        nonlocal done
        done += 1  # in whatever order they come
        told(done * len(y))

    packed = pack(model, [model], seed)
    return run_jobs(
        _hits_packed,
        [
            partial(tuple, (packed, x, y, change, batch_size, first))
            for change, first in zip(changes, starts, strict=True)
        ],
        integer("jobs", jobs),
        finished=finished,
        environment={"KERAS_BACKEND": packed.backend},
    )


def _add(tell: Callable[[int], None], before: int, here: int) -> None:
    tell(before + here)


def _hits_packed(
    packed: Packed, x: np.ndarray, y: np.ndarray, change: Change, batch_size: int, first: int
) -> np.ndarray:
    model = unpacked(packed)
    with Draws(model, packed.seed, first) as draws:
        return hits(model, partial(change, x), y, batch_size, draws)


def hits(
    model: Any,
    images: Callable[[slice], np.ndarray],
    y: np.ndarray,
    batch_size: int,
    draws: Draws,
    tick: Callable[[int], None] | None = None,
    must_answer: bool = False,
) -> np.ndarray:
    """Which images a model classifies correctly, bool of shape (n,).

    Args:
        model: built Keras model, images to logits.
        images: gives the images of a slice of rows, so that a changed data set is never held whole.
        y: int64 labels of shape (n,).
        batch_size: images of a batch.
        draws: seeds of a model that is random at inference.
        tick: called with the number of images that are done.
        must_answer: whether it is an error that every image of the first batch gives NaN; elsewhere
            an image whose logits have NaN is wrong.

    Raises:
        ValueError: if no image is answered that must be, or a label is not below the number of
            logits.
    """
    correct = np.zeros(len(y), dtype=bool)
    for start in range(0, len(y), batch_size):
        rows = slice(start, min(start + batch_size, len(y)))
        draws.fresh()
        logits = predict_logits(model, images(rows), batch_size)
        check_labels(y, logits.shape[1])
        labels = answers(logits)
        if must_answer and not start and (labels == NO_ANSWER).all():
            raise ValueError(
                "The model must return finite logits. Received: NaN for every clean image"
            )
        correct[rows] = labels == y[rows]
        if tick is not None:
            tick(rows.stop)
    return correct


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    given = tuple(listed(names))
    unknown = [name for name in given if name not in CORRUPTIONS]
    if unknown or not given:
        raise ValueError(
            f"`names` must be 'all' or some of {list(CORRUPTIONS)}. Received: names={names!r}"
        )
    return given
