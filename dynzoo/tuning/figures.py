"""The two plots of a search: parallel coordinates, and the Pareto front."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynzoo import plots
from dynzoo.plots import ATTACKED, CLEAN, INK
from dynzoo.tuning.config import SearchConfig
from dynzoo.tuning.records import SearchResult, number
from dynzoo.tuning.space import Dimension
from dynzoo.utils.files import write_atomically

__all__ = ["pareto_figure", "pareto_front", "parallel_figure", "save_figures"]

_GRID = "#b8bfcc"


def save_figures(config: SearchConfig, result: SearchResult) -> None:
    """Writes ``parallel_coordinates.png`` and ``pareto.png`` into the folder of the search."""
    for name, figure in (
        ("parallel_coordinates", parallel_figure(config, result)),
        ("pareto", pareto_figure(config, result)),
    ):
        write_atomically(result.folder / f"{name}.png", plots.png(figure))


def parallel_figure(config: SearchConfig, result: SearchResult) -> Any:
    """A line a trial through all its values, to its objective, whose colour it has.

    Args:
        config: the search.
        result: its trials, of which those that were completed are drawn.

    Returns:
        A matplotlib ``Figure``.
    """
    from matplotlib import colormaps

    trials = sorted(result.completed, key=lambda t: t[result.objective])
    axes_of = [_Axis.of_dimension(d) for d in config.space]
    axes_of.append(_Axis.of_numbers("parameters", [t["parameters"] for t in trials], "{:,.0f}"))
    measured = [m for m in ("clean", "attacked", "certified") if m != result.objective]
    for name in [*(m for m in measured if _known(trials, m)), result.objective]:
        axes_of.append(_Axis.of_numbers(name, [t[name] for t in trials], "{:.1%}"))

    figure = plots.new_figure(max(7.6, 1.35 * len(axes_of)), 4.6)
    axes = figure.add_subplot()
    goal = axes_of[-1]
    for trial in trials:
        heights = [axis.height(trial) for axis in axes_of]
        best, first = trial is result.best, trial["trial"] == result.trials[0]["trial"]
        axes.plot(
            range(len(axes_of)), heights,
            color=ATTACKED if best else INK if first else
            colormaps["viridis"](0.05 + 0.85 * goal.height(trial)),
            linewidth=2.6 if best else 1.8 if first else 1.2,
            linestyle=(0, (4, 3)) if first and not best else "-",
            alpha=1.0 if best or first else 0.75, zorder=3 if best else 2,
            label=_special(trial, result),
        )  # fmt: skip
    for x, axis in enumerate(axes_of):
        axes.axvline(x, color=_GRID, linewidth=1.0, zorder=1)
        for height, text in axis.ticks:
            axes.text(
                x + 0.04, height, plots.literal(text), fontsize=7.5, color=INK, va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
                zorder=4,
            )  # fmt: skip
    axes.set_xlim(-0.1, len(axes_of) - 0.4)
    axes.set_ylim(-0.06, 1.06)
    titles = [plots.literal(axis.title) for axis in axes_of]
    axes.set_xticks(range(len(axes_of)), titles, fontsize=8.5)
    axes.set_yticks([])
    axes.tick_params(colors=INK, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.legend(loc="outside upper left", frameon=False, fontsize=9, ncols=2)
    return figure


class _Axis:
    """One vertical axis: where a trial crosses it, and what is written beside it."""

    def __init__(self, title: str, height: Any, ticks: Sequence[tuple[float, str]]):
        self.title = title
        self.height = height
        self.ticks = ticks

    @classmethod
    def of_dimension(cls, dimension: Dimension) -> _Axis:
        key = dimension.key
        title = ",\n".join(k.partition(".")[2].replace(".", "\n") for k in dimension.keys)
        if dimension.is_range:
            low, high = dimension.values["min"], dimension.values["max"]
            scale = np.log if dimension.logarithmic else float

            def height(trial: dict[str, Any]) -> float:
                share = scale(trial["values"][key]) - scale(low)
                return float(share / (scale(high) - scale(low)))

            return cls(title, height, [(0.0, f"{low:g}"), (1.0, f"{high:g}")])
        choices, labels = dimension.values, _labels(dimension.values)
        top = len(choices) - 1
        ticks = [(i / top, text) for i, text in enumerate(labels)]
        return cls(title, lambda trial: choices.index(trial["values"][key]) / top, ticks)

    @classmethod
    def of_numbers(cls, name: str, values: Sequence[float], style: str) -> _Axis:
        low, high = min(values), max(values)
        spread = high - low or 1.0

        def height(trial: dict[str, Any]) -> float:
            return (trial[name] - low) / spread

        distinct = sorted(set(values))
        ends = distinct if len(distinct) <= 2 else [low, high]
        return cls(name, height, [((v - low) / spread, style.format(v)) for v in ends])


def pareto_figure(config: SearchConfig, result: SearchResult) -> Any:
    """Proved against clean accuracy, the size of the mark that of the network; the Pareto front.

    Without a certificate the accuracy under attack takes its place, without attacks the number of
    parameters takes that of the clean accuracy.

    Args:
        config: the search.
        result: its trials, of which those that were completed are drawn.

    Returns:
        A matplotlib ``Figure``.
    """
    trials = result.completed
    upright = next((m for m in ("certified", "attacked") if _known(trials, m)), "clean")
    level = "parameters" if upright == "clean" else "clean"
    x = np.array([t[level] for t in trials], dtype=float)
    y = np.array([t[upright] for t in trials], dtype=float)
    sizes = np.array([t["parameters"] for t in trials], dtype=float)
    area = 30.0 + 220.0 * sizes / sizes.max()

    figure = plots.new_figure(7.6, 5.0)
    axes = figure.add_subplot()
    axes.scatter(x, y, s=area, color=plots.CERTIFIED, alpha=0.45, linewidth=0)
    front = pareto_front(-x if level == "parameters" else x, y)
    axes.plot(x[front], y[front], "-", color=plots.CERTIFIED, linewidth=1.4, label="Pareto front")
    for point, trial in enumerate(trials):
        label = _special(trial, result)
        if label is not None:
            color = ATTACKED if trial is result.best else INK
            axes.scatter(
                x[point], y[point], s=area[point], facecolor="none", edgecolor=color,
                linewidth=1.8, label=label,
            )  # fmt: skip
    for point in front:
        axes.annotate(
            f"{int(trials[point]['trial'])}", (x[point], y[point]), textcoords="offset points",
            xytext=(0, 3 + 0.5 * area[point] ** 0.5), ha="center", fontsize=8, color=INK,
        )  # fmt: skip
    for count in sorted({sizes.min(), sizes.max()}):
        axes.scatter(
            [], [], s=30.0 + 220.0 * count / sizes.max(), color=CLEAN, alpha=0.45, linewidth=0,
            label=f"{count:,.0f} parameters",
        )  # fmt: skip
    names = {
        "clean": "clean accuracy, held-out images",
        "certified": f"certified accuracy at {config.radius}",
        "attacked": f"accuracy under attack at {config.radius}",
        "parameters": "parameters",
    }
    axes.set_xlabel(names[level], color=INK)
    axes.set_ylabel(names[upright], color=INK)
    if level == "clean":
        axes.xaxis.set_major_formatter(_percent())
    axes.yaxis.set_major_formatter(_percent())
    axes.margins(0.12)
    plots.finish(axes)
    axes.legend(frameon=False, fontsize=9, loc="best", labelspacing=0.9)
    return figure


def pareto_front(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Numbers of the points that no other beats in one and equals or beats in the other, by x."""
    order = np.lexsort((-y, -x))  # from the largest x down, ties by the largest y
    front: list[int] = []
    for point in order:
        if not front or y[point] > y[front[-1]]:
            front.append(int(point))
    return front[::-1]


def _special(trial: dict[str, Any], result: SearchResult) -> str | None:
    if result.best is not None and trial["trial"] == result.best["trial"]:
        return f"best, {number(trial)}"
    first = result.trials[0]["trial"]
    return f"the recipe as it stands, {number(trial)}" if trial["trial"] == first else None


def _known(trials: Sequence[dict[str, Any]], name: str) -> bool:
    return bool(trials) and all(t[name] is not None for t in trials)


def _labels(choices: Sequence[Any]) -> list[str]:
    """Short texts for choices: 16-32 / 1-1 for lists, a mapping by its name, if it has its own."""
    texts = [_label(choice) for choice in choices]
    return [
        t if texts.count(t) == 1 else json.dumps(c) for t, c in zip(texts, choices, strict=True)
    ]


def _label(choice: Any) -> str:
    if isinstance(choice, dict) and "name" in choice:
        return str(choice["name"])
    if isinstance(choice, list):
        nested = any(isinstance(part, list | dict) for part in choice)
        return (" / " if nested else "-").join(_label(part) for part in choice)
    return choice if isinstance(choice, str) else json.dumps(choice)


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1.0)
