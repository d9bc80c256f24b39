"""Figures, drawn by matplotlib without a display and without touching its global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dynzoo.utils.extras import extra
from dynzoo.utils.formatting import eps_text as eps_text
from dynzoo.utils.formatting import norm_text as norm_text
from dynzoo.utils.formatting import percent

INK = "#1d2433"
CERTIFIED = "#1b7f5c"
ATTACKED = "#c2410c"
CLEAN = "#5b6478"
_MARKERS = "os^DvP"
# Of the attacks of an ensemble, first to last.
_DASHES = ((0, (1, 1.5)), (0, (4, 2)), (0, (6, 1.5, 1, 1.5)), (0, (8, 2)))


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Any:
    """An empty matplotlib `Figure` of so many inches, for files only: it knows of no display."""
    with extra("plots"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def certified_curve(radii: np.ndarray, stop: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Certified accuracy by radius: $c(\varepsilon) = \#\{i : r_i > \varepsilon\}/n$.

    Args:
        radii: Certified radius of each image, 0 for a wrong one. Shape (n,).
        stop: Largest radius of the curve.

    Returns:
        Radii and accuracies, ready to draw as a step that changes at each radius.
    """
    inner = np.unique(radii[(radii > 0.0) & (radii < stop)])
    grid = np.concatenate([[0.0], inner, [stop]])
    ordered = np.sort(radii)
    return grid, 1.0 - np.searchsorted(ordered, grid, side="right") / len(radii)


# A normal variable lies within so many standard deviations of its mean in 95 of 100 cases.
Z95 = 1.959963984540054


def wilson_interval(share: float, images: int) -> tuple[float, float]:
    r"""The 95 % Wilson interval of a share of so many images.

    $$\frac{p + z^2/2n \mp z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}, \qquad z = 1.96$$

    Args:
        share: Share p that was found, in [0, 1].
        images: Number n of images that it was found on.

    Example:

    >>> low, high = wilson_interval(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    z = Z95
    middle, scale = share + z * z / (2 * images), 1 + z * z / images
    half = z * (share * (1 - share) / images + (z / (2 * images)) ** 2) ** 0.5
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def robustness_figure(
    clean: float,
    robust: Mapping[float, float | None],
    radii: np.ndarray | None,
    norm: str,
    members: Mapping[str, Mapping[float, float]] | None = None,
) -> Any:
    """Accuracy versus radius: the certified curve, the attacked points, and the gap between.

    Args:
        clean: Clean accuracy.
        robust: Attacked accuracy at each radius; `None` values if nothing was attacked.
        radii: Certified radius of each image in the same norm, 0 for a wrong one, or `None`.
        norm: `"l2"` or `"linf"`, for the label.
        members: Accuracy at each radius after each attack of an ensemble, in its order.

    Returns:
        A matplotlib `Figure`.
    """
    figure = new_figure(7.6, 4.2)
    axes = figure.add_subplot()
    points = [0.0, *sorted(robust)]
    known = [share for e in sorted(robust) if (share := robust[e]) is not None]
    attacked = len(known) == len(robust)
    values = [clean, *(known if attacked else [clean] * len(robust))]
    stop = 1.12 * points[-1]
    if radii is not None:
        grid, curve = certified_curve(radii, stop)
        axes.fill_between(grid, curve, step="post", color=CERTIFIED, alpha=0.13, linewidth=0)
        axes.step(grid, curve, where="post", color=CERTIFIED, linewidth=2, label="certified")
        dense = np.union1d(grid[grid <= points[-1]], points)
        lower = 1.0 - np.searchsorted(np.sort(radii), dense, side="right") / len(radii)
        # the proof falls in steps: each value holds until the next radius
        dense, lower = np.repeat(dense, 2)[1:], np.repeat(lower, 2)[:-1]
        upper = np.interp(dense, points, values)
        axes.fill_between(
            dense, lower, upper, where=upper >= lower, color=ATTACKED, alpha=0.12, linewidth=0,
            label="undecided: no proof, no attack" if attacked else "not proved",
        )  # fmt: skip
    # The last of them is the whole ensemble, which gets the thick line.
    earlier = list((members or {}).items())[:-1]
    for number, (name, shares) in enumerate(earlier):
        line = [clean, *(shares[e] for e in sorted(shares))]
        axes.plot(
            points, line, linestyle=_DASHES[number % len(_DASHES)], color=ATTACKED, linewidth=0.9,
            alpha=0.7, label=("after " if not number else "and after ") + literal(name),
        )  # fmt: skip
    if attacked:
        axes.plot(
            points, values, "o-", color=ATTACKED, linewidth=1.6, markersize=6, label="under attack"
        )
    axes.axhline(clean, color=CLEAN, linewidth=1.2, linestyle=(0, (4, 3)), label="clean")
    axes.set_xlim(0.0, stop)
    _radius_axis(axes, points, norm)
    if len(points) > 8:
        axes.tick_params(axis="x", labelrotation=45)
    accuracy_axis(axes)
    finish(axes)
    axes.legend(frameon=False, loc="best", fontsize=9)
    return figure


def comparison_figure(
    models: Mapping[str, tuple[float, Mapping[float, float | None], Mapping[float, float | None]]],
    norm: str,
) -> Any:
    """Attacked and certified accuracy of several models by radius, a colour a model.

    Args:
        models: Name, and (clean accuracy, attacked accuracy by radius, certified by radius).
        norm: `"l2"` or `"linf"`, for the label.

    Returns:
        A matplotlib `Figure`.
    """
    figure = new_figure(7.6, 4.2)
    axes = figure.add_subplot()
    ticks = {0.0}
    for number, (color, (name, (clean, robust, certified))) in enumerate(
        zip(_colors(len(models)), models.items(), strict=True)
    ):
        marker = _MARKERS[number % len(_MARKERS)]  # tells them apart without colours, too
        name = literal(name)
        radii = [0.0, *sorted(robust)]
        ticks |= set(radii)
        known = [v for e in radii[1:] if (v := robust[e]) is not None]
        if len(known) == len(radii) - 1:
            label = f"{name}, under attack"
            axes.plot(radii, [clean, *known], f"{marker}-", color=color, linewidth=1.8, label=label)
        else:
            axes.plot([0.0], [clean], marker, color=color, label=f"{name}, clean")
        proved = [v for e in radii[1:] if (v := certified.get(e)) is not None]
        if len(proved) == len(radii) - 1:
            axes.plot(
                radii[1:], proved, marker, color=color, linestyle=(0, (4, 3)), linewidth=1.3,
                markerfacecolor="white", label=f"{name}, certified",
            )  # fmt: skip
    _radius_axis(axes, sorted(ticks), norm)
    accuracy_axis(axes)
    finish(axes)
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def literal(text: str) -> str:
    """Text as it is, where matplotlib reads mathematics and hides what an underscore begins."""
    shown = text.replace("$", r"\$")
    return f"\N{HAIR SPACE}{shown}" if shown.startswith("_") else shown


def accuracy_axis(axes: Any) -> None:
    """The vertical axis of all figures of accuracies: 0 to 100 %."""
    ticks = np.linspace(0, 1, 6)
    axes.set_ylabel("accuracy", color=INK)
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks(ticks, [percent(v, 0, unit="%") for v in ticks])


def _radius_axis(axes: Any, radii: Sequence[float], norm: str) -> None:
    """The horizontal axis of radii, of which the first is 0."""
    axes.set_xlabel(f"{norm_text(norm)} radius of the perturbation", color=INK)
    axes.set_xticks(radii, [eps_text(e) if e else "0" for e in radii])


def finish(axes: Any) -> None:
    """The look of all axes: a light grid behind, no frame above and to the right."""
    axes.grid(color="#e4e7ee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b8bfcc")
    axes.tick_params(colors=INK)


def error_figure(
    curves: Mapping[str, list[tuple[float, Sequence[float]]]],
    xlabel: str,
    ylabel: str,
    published: float | None = None,
) -> Any:
    """Errors against a size, on logarithmic axes: one line a curve of (size, errors) points.

    Args:
        curves: Label and points of each line: a size, and the errors of the networks of that size,
            one or several. The line goes through their median, a bar from the least to the
            greatest.
        xlabel: Name of the size.
        ylabel: Name of the error.
        published: An error of the literature, drawn as a dashed line.

    Returns:
        A matplotlib `Figure`.
    """
    figure = new_figure(6.2, 4.0)
    axes = figure.add_subplot()
    for color, (label, points) in zip(_colors(len(curves)), curves.items(), strict=True):
        sizes = [size for size, _ in points]
        middle = np.array([np.median(errors) for _, errors in points])
        ends = np.array([(np.min(errors), np.max(errors)) for _, errors in points]).T
        axes.errorbar(
            sizes, middle, yerr=np.abs(ends - middle), fmt="o-", color=color, linewidth=1.6,
            elinewidth=1.0, capsize=3, label=label,
        )  # fmt: skip
    if published is not None:
        axes.axhline(
            published, color=CLEAN, linewidth=1.2, linestyle=(0, (4, 3)), label="published"
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({size for points in curves.values() for size, _ in points})
    axes.set_xticks(ticks, [f"{size:g}" for size in ticks])
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    finish(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


def portrait_figure(
    paths: Mapping[str, np.ndarray],
    columns: int = 4,
    xlabel: str = "first coordinate",
    ylabel: str = "second coordinate",
) -> Any:
    """Trajectories of planar systems side by side, a dot at each start.

    Args:
        paths: Title, and trajectories of shape (times, number of trajectories, 2 or more); the
            first two coordinates are drawn.
        columns: Panels in a row.
        xlabel: Name of the first coordinate, below the last panel of each column.
        ylabel: Name of the second, at the left of each row.

    Returns:
        A matplotlib `Figure`.
    """
    columns = min(columns, len(paths))
    rows = -(-len(paths) // columns)
    figure = new_figure(3.1 * columns, 3.3 * rows)
    for place, (title, path) in enumerate(paths.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        path = np.asarray(path, dtype=np.float64)
        for color, line in zip(_colors(path.shape[1]), path.swapaxes(0, 1), strict=True):
            axes.plot(line[:, 0], line[:, 1], "-", color=color, linewidth=1.1)
            axes.plot(*line[0, :2], "o", color=color, markersize=4)
        axes.set_title(title, fontsize=9.5, color=INK)
        if place % columns == 0:
            axes.set_ylabel(ylabel, fontsize=8, color=INK)
        if place + columns >= len(paths):
            axes.set_xlabel(xlabel, fontsize=8, color=INK)
        axes.set_aspect("equal", adjustable="datalim")
        finish(axes)
        axes.tick_params(labelsize=7)
    return figure


def _colors(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](v) for v in np.linspace(0.05, 0.85, max(count, 1))][:count]


def png(figure: Any) -> bytes:
    """The figure as the bytes of a PNG file."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def svg(figure: Any) -> bytes:
    """The figure as the bytes of an SVG file, the same ones every time: sharp at every size."""
    import io

    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "dynzoo"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def image_png(pixels: np.ndarray) -> bytes:
    """An array of shape (height, width, 3) with values in [0, 1] as the bytes of a PNG file."""
    import io

    with extra("plots"):
        from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.clip(pixels, 0.0, 1.0), format="png")
    return buffer.getvalue()


def displayable(image: np.ndarray) -> np.ndarray | None:
    """`image` as an array (height, width, 3), or `None` if it cannot be seen as a picture.

    Grey and colour images (channels last), and flat vectors of square length as grey images.
    """
    if image.ndim == 1 and round(image.size**0.5) ** 2 == image.size:
        image = image.reshape(round(image.size**0.5), -1)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        return None
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
