"""Contractive Hamiltonian networks, H-DNN and ResNet on MNIST under noise.

    python examples/mnist_noise.py [--data mnist|FILE.npz] [--epochs 10] [--networks NAME ...]

The experiment of arXiv 2203.11805 (section on MNIST): four networks of 63,386 parameters
(`mnist_networks.py`), trained without noise, tested on 10,000 images under Gaussian noise of
variance 0.05 and 0.2 and salt and pepper on 5 % and 20 % of the pixels, ten draws each; as
published, on the normalised image with a clip to [-1, 1], and in pixel units (`noise.py`). The
accuracies of the paper are not in its public code, so there is nothing to compare with.

As published: Adam from 0.04, falling by 0.8 an epoch over 10 epochs (fewer epochs pass through the
same range), batches of 100, weight decay, smoothness penalty, normal start. The provably
contractive network starts inside its constraint instead, with orthogonal kernels. Not as published:
each network's first learning rate is the best of 0.04, 0.01, 0.004 and 0.001 in two passes over
6,000 training images, by the accuracy on 4,000 other training images, because from 0.04 some of
these networks do not train.

Writes `docs/results/mnist_noise.csv`, as each network is done, and a picture of it.
"""

import argparse
import time
from pathlib import Path

import common
import keras
import numpy as np
from mnist_networks import NETWORKS, facts, network, penalised_loss
from noise import CLIP, GAUSSIAN, SALT_AND_PEPPER, UNITS

import dynzoo
from dynzoo import plots

LEVELS = [(GAUSSIAN, 0.05), (GAUSSIAN, 0.2), (SALT_AND_PEPPER, 0.05), (SALT_AND_PEPPER, 0.2)]
PUBLISHED_EPOCHS, DECAY = 10, 0.8
# The published one first; what the others are chosen on.
LEARNING_RATES = (0.04, 0.01, 0.004, 0.001)
TRIAL_IMAGES, JUDGED_IMAGES, TRIAL_EPOCHS = 6000, 4000, 2


def train(model, data, epochs, learning_rate, batch_size, seed) -> float:
    """Trains in place; returns the seconds it took."""
    x, y = data
    per_epoch = -(-len(x) // batch_size)
    schedule = keras.optimizers.schedules.ExponentialDecay(
        learning_rate, per_epoch, DECAY ** (PUBLISHED_EPOCHS / epochs), staircase=True
    )
    model.compile(keras.optimizers.Adam(schedule), loss=penalised_loss(model), metrics=["accuracy"])
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    model.fit(x, y, epochs=epochs, batch_size=batch_size, verbose=2)
    return time.perf_counter() - start


def best_rate(name, data, batch_size, seed) -> float:
    """The learning rate that does best on training images that were held out."""
    x, y = data
    used, judged = slice(TRIAL_IMAGES), slice(TRIAL_IMAGES, TRIAL_IMAGES + JUDGED_IMAGES)
    found = {}
    for rate in LEARNING_RATES:
        keras.utils.clear_session()
        model = network(name, seed)
        train(model, (x[used], y[used]), TRIAL_EPOCHS, rate, batch_size, seed)
        found[rate] = accuracy(model, x[judged], y[judged])
    print(f"{name}, seed {seed}: held-out accuracy by learning rate {found}", flush=True)
    return max(found, key=found.__getitem__)


def accuracy(model, images, labels, batch_size=100) -> float:
    logits = model.predict(images, batch_size=batch_size, verbose=0)
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def evaluate(model, test, repetitions):
    """A row a noise: units, kind, level, and the accuracy over the draws."""
    images, labels = test
    cases = [("none", "none", 0.0), ("published", CLIP, 0.0)]
    cases += [(units, kind, level) for units in UNITS for kind, level in LEVELS]
    for units, kind, level in cases:
        found = []
        # what is not random needs no repetition
        for draw in range(repetitions if level else 1):
            noisy = images if units == "none" else UNITS[units](images, kind, level, draw)
            found.append(accuracy(model, noisy, labels))
        yield {
            "units": units,
            "noise": kind,
            "level": level,
            "accuracy": round(float(np.mean(found)), 5),
            "deviation": round(float(np.std(found)), 5),
            "draws": len(found),
        }


TICKS = {
    "none": "none",
    CLIP: "clip\nalone",
    GAUSSIAN: "Gaussian\n{:g}",
    SALT_AND_PEPPER: "salt, pepper\n{:g}",
}
TITLES = {
    "published": "noise as published: normalised images, clipped to [-1, 1]",
    "pixel": "noise in pixel units: images in [0, 1]",
}
COLORS = {
    "resnet": "#b8bfcc",
    "hdnn": plots.CLEAN,
    "chnode_published": plots.ATTACKED,
    "chnode_provable": plots.CERTIFIED,
}


def draw_bars(axes, rows, names, cases):
    """A group of bars a case, a bar a network.

    A thin line spans the seeds; with one seed it is the 95 % interval for the choice of the images.
    """
    width = 0.84 / len(names)
    for i, name in enumerate(names):
        for place, (kind, level) in enumerate(cases):
            key = (name, kind, level)
            found = [r for r in rows if (r["network"], r["noise"], r["level"]) == key]
            values = [100 * r["accuracy"] for r in found]
            x, mean = place + (i - (len(names) - 1) / 2) * width, float(np.mean(values))
            label = None if place else NETWORKS[name]
            axes.bar(x, mean, 0.92 * width, color=COLORS[name], label=label)
            low, high = min(values), max(values)
            if len(found) == 1:
                share, images = found[0]["accuracy"], found[0]["images"]
                low, high = (100 * end for end in plots.wilson_interval(share, images))
            axes.plot([x, x], [low, high], color=plots.INK, linewidth=1.2)
            axes.text(
                x, high + 1, f"{mean:.1f}", ha="center", va="bottom", fontsize=7,
                rotation=90, color=plots.INK,
            )  # fmt: skip
    axes.set_xticks(range(len(cases)), [TICKS[k].format(v) for k, v in cases], fontsize=8.5)


def figure(rows):
    """Accuracy by network and noise, published units left, pixel units right."""
    names = [name for name in NETWORKS if any(row["network"] == name for row in rows)]
    seeds, images = len({row["seed"] for row in rows}), rows[0]["images"]
    spread = f"least and greatest of {seeds} seeds" if seeds > 1 else "one seed, 95 % intervals"
    chart = plots.new_figure(12.0, 4.6)
    panels = chart.subplots(1, 2, sharey=True, width_ratios=[6, 5])
    for axes, units in zip(panels, TITLES, strict=True):
        cases = [("none", 0.0), *([(CLIP, 0.0)] if units == "published" else []), *LEVELS]
        draw_bars(axes, [r for r in rows if r["units"] in ("none", units)], names, cases)
        axes.axhline(10, color=plots.INK, linewidth=0.9, linestyle=(0, (4, 3)), label="guessing")
        axes.set_title(TITLES[units], fontsize=10, color=plots.INK)
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7ee", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set_ylabel(f"test accuracy, %\n({images:,} images, {spread})", color=plots.INK)
    handles, labels = panels[0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return chart


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=PUBLISHED_EPOCHS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--learning-rate", type=float, help="instead of the best one")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--limit", type=int, help="use only so many training and test images")
    parser.add_argument("--output", type=Path, help="folder instead of docs/results")
    parser.add_argument("--redraw", action="store_true", help="only the picture, from the CSV file")
    args = parser.parse_args()
    if args.output:
        common.RESULTS = args.output
    if args.redraw:
        common.save_figure("mnist_noise", figure(common.read_csv("mnist_noise")))
        return

    data, test = ([array[: args.limit] for array in part] for part in dynzoo.data.load(args.data))
    rows = []
    for seed in args.seeds:
        for name in args.networks:
            rate = args.learning_rate or best_rate(name, data, args.batch_size, seed)
            keras.utils.clear_session()
            model = network(name, seed)
            seconds = train(model, data, args.epochs, rate, args.batch_size, seed)
            known = {
                "parameters": model.count_params(),
                "epochs": args.epochs,
                "batch_size": args.batch_size,
                "learning_rate": rate,
                "seconds": round(seconds, 1),
                "backend": keras.backend.backend(),
                **{k: "" if v is None else f"{v:.6g}" for k, v in facts(model).items()},
                "lipschitz_bound": f"{dynzoo.certify(model).lipschitz:.6g}",
            }
            for row in evaluate(model, test, args.repetitions):
                rows.append({"network": name, "seed": seed, **row, "images": len(test[0]), **known})
                print(rows[-1], flush=True)
            common.write_csv("mnist_noise", rows)
    common.save_figure("mnist_noise", figure(rows))
    common.finish(
        {
            f"{row['network']} {row['units']} {row['noise']} {row['level']:g}": row["accuracy"]
            for row in rows
            if row["seed"] == args.seeds[0]
        }
    )


if __name__ == "__main__":
    main()
