"""A classifier under the fifteen common corruptions and under random noise.

    python examples/corruptions.py [--data cifar10|FILE.npz] [--model PRESET] [--images 1000]

Accuracy on the first test images at the five severities of each corruption of CIFAR-10-C,
regenerated with a fixed seed: not the official files, whose numbers are close but not the same
(`--official FOLDER` takes those). Then the accuracy under Gaussian and uniform noise against the
standard deviation, and under salt and pepper against its share, three draws each.

Writes `docs/results/corruptions.csv` and a picture: one test image under every corruption, beside
the accuracies.
"""

import argparse
import time

import common
import numpy as np

import dynzoo
from dynzoo import plots
from dynzoo.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from dynzoo.robustness.corruptions import evaluate_corruptions
from dynzoo.robustness.noise_curves import noise_curve


def contact_sheet(image, index, gap=1):
    """The image and its corruptions: a row a corruption, clean and then each severity."""
    lines = []
    for name in CORRUPTIONS:
        cells = [image]
        cells += [corrupt(image[None], name, s, indices=[index])[0] for s in SEVERITIES]
        cells = [np.pad(c, ((gap, gap), (gap, gap), (0, 0)), constant_values=1.0) for c in cells]
        lines.append(np.concatenate(cells, axis=1))
    return np.concatenate(lines, axis=0)


def draw(result, image, index):
    """The contact sheet beside the table, row by row."""
    figure = plots.new_figure(9.4, 7.6, layout=None)
    low, height = 0.06, 0.87
    square = height / len(CORRUPTIONS) * 7.6 / 9.4
    left = figure.add_axes([0.145, low, 6 * square, height])
    sheet = plots.displayable(contact_sheet(image, index))
    limits = (-0.5, 5.5, len(CORRUPTIONS) - 0.5, -0.5)
    left.imshow(sheet, aspect="auto", interpolation="nearest", extent=limits)
    left.set_xticks(range(6), ["clean", *map(str, SEVERITIES)])
    left.set_yticks(range(len(CORRUPTIONS)), [name.replace("_", " ") for name in CORRUPTIONS])
    left.set_xlabel("severity", color=plots.INK)
    left.set_title("one image", fontsize=9.5, color=plots.INK)
    left.tick_params(colors=plots.INK, length=0, labelsize=8.5)
    left.spines[:].set_visible(False)
    right = figure.add_axes([0.165 + 6 * square, low, 0.825 - 6 * square, height])
    result.draw(right)
    right.set_yticks([])
    return figure


def table(result, curve):
    """One row a number: clean, corruptions, noise."""
    rows = [("clean", "none", 0, result.clean, "")]
    for line in result.rows():
        for s in result.severities:
            rows.append(("corruption", line["corruption"], s, line[str(s)], ""))
    rows.append(("corruption", "mean", "1-5", result.mean, ""))
    for point in curve.rows():
        rows.append(
            ("noise", point["noise"], point["level"], point["accuracy"], point["deviation"])
        )
    return [
        {
            "test": test,
            "name": name,
            "level": level,
            "accuracy": round(accuracy, 5),
            "deviation": deviation if deviation == "" else round(deviation, 5),
            "images": curve.images,
        }
        for test, name, level, accuracy, deviation in rows
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="name of a data set, or FILE.npz")
    parser.add_argument("--model", default="isometric_tiny_cifar10", help="preset, or its folder")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=3, help="draws of the noise")
    parser.add_argument("--official", help="folder of the official files")
    parser.add_argument("--shown", type=int, default=0, help="test image of the picture")
    args = parser.parse_args()

    _, (x, y) = dynzoo.data.load(args.data)
    x, y = x[: args.images], y[: args.images]
    model = dynzoo.from_preset(args.model)
    start = time.perf_counter()
    result = evaluate_corruptions(model, x, y, seed=args.seed, official=args.official, verbose=1)
    corruption_seconds = time.perf_counter() - start
    print(result.provenance)
    start = time.perf_counter()
    curve = noise_curve(model, x, y, draws=args.draws, seed=args.seed)
    for point in curve.rows():
        print(
            f"{point['noise']:<18} {point['level']:<5g} {100 * point['accuracy']:5.1f} "
            f"+- {100 * point['deviation']:.1f}"
        )
    common.write_csv("corruptions", table(result, curve))
    common.save_figure("corruptions", draw(result, x[args.shown], args.shown))
    common.finish(
        {
            "model": args.model,
            "images": len(x),
            "clean": result.clean,
            "mean": result.mean,
            "standard_error": result.standard_error,
            "official": result.official,
            "corruption_seconds": round(corruption_seconds, 1),
            "noise_seconds": round(time.perf_counter() - start, 1),
        }
    )


if __name__ == "__main__":
    main()
