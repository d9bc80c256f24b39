"""Accuracy against the strength of random noise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from dynzoo import plots
from dynzoo.attacks.base import check_images
from dynzoo.corruptions import Streams, add_noise
from dynzoo.corruptions.noise import KINDS
from dynzoo.inference.draws import Draws
from dynzoo.inference.image_checks import check_unit_range
from dynzoo.robustness.checks.model import check_examples
from dynzoo.robustness.corruptions import hits, hits_of
from dynzoo.utils.arguments import array, integer, listed
from dynzoo.utils.formatting import percent

__all__ = ["LEVELS", "NoiseCurve", "noise_curve"]

LEVELS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)

_COLORS = {"gaussian": plots.CERTIFIED, "uniform": plots.CLEAN, "salt_and_pepper": plots.ATTACKED}


@dataclass(frozen=True)
class NoiseCurve:
    """What ``noise_curve`` found.

    Args:
        levels: the levels of each kind of noise.
        accuracies: of each kind, float64 array of shape (levels, draws).
        clean: accuracy without noise.
        images: number of images.
        details: seed, model and what else is needed to make the numbers again.
    """

    levels: dict[str, tuple[float, ...]]
    accuracies: dict[str, np.ndarray]
    clean: float
    images: int
    details: dict[str, Any] = field(default_factory=dict)

    def mean(self, kind: str) -> np.ndarray:
        """Mean accuracy over the draws, shape (levels,)."""
        return self.accuracies[kind].mean(axis=1)

    def deviation(self, kind: str) -> np.ndarray:
        """Standard deviation over the draws of the noise (0 for one draw), shape (levels,).

        It says nothing of the choice of the images, which are the same in each draw.
        """
        draws = self.accuracies[kind].shape[1]
        return self.accuracies[kind].std(axis=1, ddof=min(1, draws - 1))

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a point of a curve."""
        return [
            {
                "noise": kind,
                "level": level,
                "accuracy": float(mean),
                "deviation": float(deviation),
                "draws": self.accuracies[kind].shape[1],
            }
            for kind, levels in self.levels.items()
            for level, mean, deviation in zip(
                levels, self.mean(kind), self.deviation(kind), strict=True
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-able data."""
        return {"images": self.images, "clean": self.clean, "curve": self.rows(), **self.details}

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Accuracy versus level as a matplotlib figure; saved too if ``path`` is given."""
        figure = plots.new_figure(7.6, 4.2)
        axes = figure.add_subplot()
        for kind, levels in self.levels.items():
            axes.errorbar(
                [0.0, *levels],
                [self.clean, *self.mean(kind)],
                yerr=[0.0, *self.deviation(kind)],
                fmt="o-", color=_COLORS[kind], linewidth=1.6, markersize=5, capsize=3,
                label=kind.replace("_", " "),
            )  # fmt: skip
        axes.axhline(
            self.clean, color=plots.CLEAN, linewidth=1.2, linestyle=(0, (4, 3)), label="clean"
        )
        unit = {
            "standard deviation": any(k != "salt_and_pepper" for k in self.levels),
            "share of salt and pepper": "salt_and_pepper" in self.levels,
        }
        axes.set_xlabel(" or ".join(name for name, used in unit.items() if used), color=plots.INK)
        plots.accuracy_axis(axes)
        axes.grid(color="#e4e7ee", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        if path is not None:
            figure.savefig(path, dpi=160)
        return figure

    def section(self) -> tuple[str, Any]:
        """Heading and content for ``RobustnessReport.sections``."""
        facts = [("clean accuracy", percent(self.clean, 1))]
        facts += [
            (
                f"{row['noise'].replace('_', ' ')}, {row['level']:g}",
                f"{percent(row['accuracy'], 1)} ± {percent(row['deviation'], 1, unit='')}",
            )
            for row in self.rows()
        ]
        facts += [(w["name"], w["text"]) for w in self.details.get("warnings", [])]
        text = (
            "Accuracy under random noise, clipped to [0, 1]. The level is the standard deviation "
            "before the clip, or the share of the values that become 0 or 1; after ± the standard "
            f"deviation over the draws of the noise, on the same {self.images} images."
        )
        return "Noise curves", (text, plots.svg(self.plot()), facts)


def noise_curve(
    model: Any,
    x: Any,
    y: Any,
    kinds: Iterable[str] = ("gaussian", "uniform", "salt_and_pepper"),
    levels: Iterable[float] | Mapping[str, Iterable[float]] = LEVELS,
    draws: int = 3,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    jobs: int | None = None,
) -> NoiseCurve:
    r"""Accuracy on $\mathrm{clip}(x + \sigma n)$ against $\sigma$, for several kinds of noise.

    The noise of an image depends on the seed, the kind, the draw and its index alone: it is the
    same at each level, up to the factor, and in any batch. What else the model's answers depend on
    is in ``details["warnings"]``.

    Args:
        model: built Keras model, inputs to logits.
        x: array of shape (n, ...) with values in [0, 1].
        y: integer labels of shape (n,).
        kinds: some of ``"gaussian"``, ``"uniform"``, ``"salt_and_pepper"``.
        levels: levels > 0 for all kinds, or those of each kind: a standard deviation in units of
            the pixel range, or the share of the values, at most 1, that become 0 or 1.
        draws: draws of the noise, >= 1.
        batch_size: images processed at once.
        seed: seed of the noise, and of a model that is random at inference.
        progress: called with the number of draws that are done and their total.
        jobs: number of processes that work on draws side by side, as in
            ``dynzoo.evaluate_corruptions``; ``None`` for none.

    Returns:
        A ``NoiseCurve``.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> curve = dynzoo.noise_curve(model, x, y, kinds=["gaussian"], levels=[0.1, 0.2])
    >>> curve.mean("gaussian").shape
    (2,)

    Reference: Hendrycks and Dietterich, "Benchmarking neural network robustness to common
    corruptions and perturbations" (ICLR 2019), for the kinds of noise.
    """
    x, y = check_images(x, y)
    check_unit_range(model)
    chosen = _levels(tuple(listed(kinds)), levels)
    draws, seed = integer("draws", draws), integer("seed", seed, least=0)
    batch_size = integer("batch_size", batch_size)
    total = draws * sum(len(v) for v in chosen.values())
    with Draws(model, seed) as states:
        warnings = check_examples(model, x)
        clean = hits(model, lambda rows: x[rows], y, batch_size, states, must_answer=True)
    changes = [
        partial(_noisy, kind, level, f"{kind} noise, draw {draw}", seed)
        for kind, values in chosen.items()
        for level in values
        for draw in range(draws)
    ]

    def tick(done: int, of: int) -> None:
        if progress is not None and done % len(x) == 0:
            progress(done // len(x), total)

    found = iter(hits_of(model, changes, x, y, batch_size, seed, jobs, tick))
    accuracies = {
        kind: np.array([[next(found).mean() for _ in range(draws)] for _ in values])
        for kind, values in chosen.items()
    }
    details = {
        "model": getattr(model, "name", None),
        "seed": seed,
        "draws": draws,
        "batch_size": batch_size,
        "warnings": [warning.to_dict() for warning in warnings],
    }
    return NoiseCurve(chosen, accuracies, float(clean.mean()), len(x), details)


def _noisy(kind: str, level: float, key: str, seed: int, x: np.ndarray, rows: slice) -> np.ndarray:
    indices = np.arange(rows.start, rows.stop)
    return add_noise(x[rows], kind, level, Streams(seed, key, indices))


def _levels(
    kinds: tuple[str, ...], levels: Iterable[float] | Mapping[str, Iterable[float]]
) -> dict[str, tuple[float, ...]]:
    """The sorted levels of each kind, checked."""
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"`kinds` must be some of {list(KINDS)}. Received: kinds={kinds}")
    if isinstance(levels, Mapping):
        if missing := [kind for kind in kinds if kind not in levels]:
            raise ValueError(f"`levels` must have levels of each kind. Received: none of {missing}")
    else:
        levels = dict.fromkeys(kinds, tuple(listed(levels)))
    given = {kind: array("levels", listed(levels[kind])).ravel() for kind in kinds}
    result = {kind: tuple(sorted({*values.tolist()})) for kind, values in given.items()}
    for kind, values in result.items():
        high = 1.0 if kind == "salt_and_pepper" else np.inf
        if not values or not all(0.0 < v <= high and np.isfinite(v) for v in values):
            limit = "in (0, 1]" if high == 1.0 else "positive and finite"
            raise ValueError(f"`levels` of {kind!r} must be {limit}. Received: {values}")
    return result
