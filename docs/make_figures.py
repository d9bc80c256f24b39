"""Draws docs/accuracy_by_radius.svg: certified accuracy of a preset versus the radius.

    python docs/make_figures.py [PRESET] [--data cifar10.npz]

The curve is certified anew on the preset's whole test set; the attacked points are those on its
model card (`dynzoo evaluate PRESET --update-card`).
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np

import dynzoo
from dynzoo import plots

TARGET = Path(__file__).resolve().parent / "accuracy_by_radius.svg"
STOP = 1.0


def certified_radii(name: str, source: str) -> np.ndarray:
    """Certified L2 radius of each test image, 0 for a wrong answer."""
    _, (x, y) = dynzoo.data.load(source)
    labels, radii = dynzoo.certify(dynzoo.from_preset(name)).radii(x)
    return np.where(labels == y, radii, 0.0)


def draw(radii: np.ndarray, about: dict, path: Path) -> None:
    """The curve, the attacked points, and the distance between what is proved and what is tried."""
    import matplotlib
    from matplotlib.figure import Figure

    # text stays text and no date goes in, so that a new picture of the same numbers is the same
    style = {"svg.fonttype": "none", "svg.hashsalt": "dynzoo", "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.6, 3.8), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        grid = np.linspace(0.0, STOP, 256)
        curve = np.array([(radii > radius).mean() for radius in grid])
        axes.fill_between(grid, curve, color=plots.CERTIFIED, alpha=0.13, linewidth=0)
        axes.plot(
            grid,
            curve,
            color=plots.CERTIFIED,
            linewidth=2,
            label="proved: no change of that size can work",
        )
        attacked = {float(Fraction(r)): v for r, v in about.get("attacked_accuracy", {}).items()}
        if attacked:
            count = about["evaluation"]["attacked_images"]
            axes.plot(
                list(attacked),
                list(attacked.values()),
                "o",
                color=plots.ATTACKED,
                label=f"survive the attacks (first {count:,} images)",
            )
        marks = {text: float(Fraction(text)) for text in about["certified_accuracy"]}
        for mark in marks.values():
            value = float((radii > mark).mean())
            axes.annotate(
                f"{100 * value:.1f} %",
                (mark, value),
                textcoords="offset points",
                xytext=(-4, -14),
                ha="right",
                color=plots.CERTIFIED,
            )
        axes.set_xticks([0.0, *marks.values(), 0.75, 1.0], ["0", *marks, "0.75", "1"])
        axes.set_yticks(np.linspace(0, 1, 6), [f"{v:.0%}" for v in np.linspace(0, 1, 6)])
        axes.set_xlim(0, STOP)
        axes.set_ylim(0, 1)
        axes.set_xlabel("L2 size of the change to the image, pixels in [0, 1]")
        axes.set_ylabel("accuracy")
        axes.set_title(
            f"{about['name']}: {about['dataset']} test set, {len(radii):,} images",
            loc="left",
            fontsize=10,
        )
        axes.grid(color="#e4e7ee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper right")
        figure.savefig(path, format="svg", metadata={"Date": None})
    # matplotlib ends lines with blanks, which diffs and editors dislike
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the picture of the README.")
    parser.add_argument("preset", nargs="?", default="isometric_small_cifar10")
    parser.add_argument("--data", help="an .npz file, in place of the preset's data set")
    parser.add_argument("--output", type=Path, default=TARGET)
    arguments = parser.parse_args()
    about = dynzoo.presets()[arguments.preset]
    radii = certified_radii(arguments.preset, arguments.data or about["dataset"])
    draw(radii, about, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
