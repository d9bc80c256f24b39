"""Why the recipe is as it is: one change at a time, the same number of epochs for each.

    python benchmarks/ablations.py [--study recipe|base|classes] [--data FILE.npz] [--epochs 2]
        [--seeds 0 1] [--arms NAME ...] [--recipe NAME] [--runs runs/ablations]
        [--csv docs/results/STUDY.csv] [--plot [docs/results/STUDY.png]]
    python benchmarks/ablations.py [--study NAME] --list

The study `recipe` changes the parts of isometric_tiny_cifar10; `base` asks on the same network what
a larger one should be; `classes` what a hundred classes change, on isometric_small_cifar100. Their
arms stand in ablations.yaml. Each arm is the
recipe with a constant loss offset and one short warm-up and decay, and one thing changed. Its
accuracies are those on the held-out training images after the last epoch; the test set is not
read. A row is appended to the CSV when an arm is done, with the seconds that it took (the epochs
are equal, the seconds are not); rows that are there already are not computed again, and an arm that
was stopped goes on at its last epoch. The learning rates of Muon are the recipe's; Adam and SGD
stand there with two rates each, neither of them tuned.
"""

import argparse
import copy
import csv
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import yaml

from dynzoo import backend, data, plots, training
from dynzoo.inference.class_names import superclasses
from dynzoo.training import recipes
from dynzoo.training import run as runs
from dynzoo.utils.formatting import eps_text

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
STUDIES_FILE = Path(__file__).with_suffix(".yaml")
# In place of a preset's name: an arm's own training on the superclasses, half of its epochs.
SUPERCLASSES = "superclasses"


class Study(NamedTuple):
    """Arms (name -> what is studied, and the keys of the recipe that change) and their base."""

    recipe: str
    offset: float
    base: str  # what the base has, where an arm has another
    arms: dict[str, tuple[str, dict[str, Any]]]
    common: dict[str, Any] = {}  # keys of the recipe that change for all arms


def studies():
    """Those of ablations.yaml, by name."""
    found = yaml.safe_load(STUDIES_FILE.read_text(encoding="utf-8"))
    return {
        name: Study(**{**about, "arms": {arm: tuple(v) for arm, v in about["arms"].items()}})
        for name, about in found.items()
    }


STUDIES = studies()
COLUMNS = (
    "arm",
    "study",
    "seed",
    "epochs",
    "accuracy",
    "certified",
    "radius",
    "seconds",
    "parameters",
    "held_out_images",
    "recipe",
    "backend",
    "hardware",
)


def recipe_of(study, arm, base, epochs, seed):
    """The recipe of an arm: the base with a short schedule, and its one change."""
    recipe = copy.deepcopy(base)
    recipe["name"] = arm.replace(".", "_")
    settings = recipe["training"]
    settings.update(epochs=epochs, seed=seed, keep="last")
    settings["schedule"] = {"warmup": 0.1, "decay": 0.9, "points": {}}
    settings["loss"]["offset"] = study.offset
    for path, value in {**study.common, **study.arms[arm][1]}.items():
        *parents, key = path.split(".")
        section = recipe
        for parent in parents:
            section = section[parent]
        section[key] = in_epochs(value, epochs)
    return recipes.validate(recipe)


def in_epochs(value, epochs):
    """A mapping from shares of the run as one from its epochs; anything else as it is."""
    if isinstance(value, dict) and all(isinstance(share, float) for share in value):
        return {int(share * epochs): due for share, due in value.items()}
    return value


def trained(recipe, file, folder):
    """The model of a recipe, trained (or trained on), and the last row of its log."""
    model = training.train(recipe, file, folder, resume=True, verbose=0, log=say)
    with (folder / "log.csv").open(newline="", encoding="utf-8") as log:
        return model, list(csv.DictReader(log))[-1]


def start_from_superclasses(recipe, file, folder):
    """Trains half of the epochs on the 20 superclasses; the rest of the recipe starts from there.

    Returns the recipe of the rest, and the seconds that the first half took.
    """
    first, rest = copy.deepcopy(recipe), copy.deepcopy(recipe)
    half = recipe["training"]["epochs"] // 2
    if not half:
        raise ValueError("`--epochs` must be at least 2 for an arm that has two trainings")
    first["training"].update(start="", epochs=half)
    rest["training"].update(
        start=str(folder / "preset"), epochs=recipe["training"]["epochs"] - half
    )
    coarse = folder.with_suffix(".npz")
    if not coarse.exists():
        (x, y), (x_test, y_test) = data.load(file or recipe["data"]["name"], dtype="uint8")
        coarse.parent.mkdir(parents=True, exist_ok=True)
        labels = {"y_train": superclasses(y), "y_test": superclasses(y_test)}
        np.savez(coarse, x_train=x, x_test=x_test, **labels)
    _, last = trained(first, str(coarse), folder)
    return rest, float(last["seconds"])


def run_arm(study, arm, seed, args, base):
    """Trains one arm (or the rest of it) and returns its row."""
    recipe = recipe_of(study, arm, base, args.epochs, seed)
    name = f"{arm}_{args.epochs}_{seed}"
    folder, before, seconds = args.runs / name, args.runs / f"{name}_superclasses", 0.0
    if recipe["training"]["start"] == SUPERCLASSES:
        recipe, seconds = start_from_superclasses(recipe, args.data, before)
    model, last = trained(recipe, args.data, folder)
    parameters = model.count_params()
    for done in (folder, before):
        shutil.rmtree(done, ignore_errors=True)
    before.with_suffix(".npz").unlink(missing_ok=True)
    keras.backend.clear_session()
    return {
        "arm": arm,
        "study": study.arms[arm][0],
        "seed": seed,
        "epochs": args.epochs,
        "accuracy": last["val_accuracy"],
        "certified": last["val_certified"],
        "radius": eps_text(recipe["evaluation"]["eps"][0]),
        "seconds": round(seconds + float(last["seconds"]), 1),
        "parameters": parameters,
        "held_out_images": recipe["data"]["validation"],
        "recipe": base["name"],
        "backend": backend.name(),
        "hardware": runs.hardware(),
    }


def say(line):
    print(line, flush=True)


def read(path):
    """Rows of the CSV, none if there is no such file yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path, row):
    """Adds a row, and the header to a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def plot(study, rows, path):
    """Clean and certified accuracy of each arm: one dot with its Wilson interval per seed."""
    arms = [arm for arm in study.arms if any(row["arm"] == arm for row in rows)]
    figure = plots.new_figure(7.0, 1.5 + 0.3 * len(arms))
    axes = figure.subplots()
    colors = {"accuracy": plots.CLEAN, "certified": plots.CERTIFIED}
    for y, arm in enumerate(reversed(arms)):
        for key, color in colors.items():
            values = [float(r[key]) for r in rows if r["arm"] == arm and r[key]]
            axes.plot(values, [y] * len(values), ".", color=color, markersize=6)
            for row in (r for r in rows if r["arm"] == arm and r[key]):
                ends = plots.wilson_interval(float(row[key]) / 100, int(row["held_out_images"]))
                axes.plot(100 * np.array(ends), [y, y], "-", color=color, linewidth=1, alpha=0.6)
            if values:
                axes.plot(np.mean(values), y, "|", color=color, markersize=13, markeredgewidth=2)
    base = [float(r["certified"]) for r in rows if r["arm"] == "base" and r["certified"]]
    if base:
        axes.axvline(np.mean(base), color=colors["certified"], linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in reversed(arms)])
    epochs = sorted({r["epochs"] for r in rows}, key=int)
    counts = " or ".join(f"{n:,}" for n in sorted({int(r["held_out_images"]) for r in rows}))
    axes.set_xlabel(
        f"% of {counts} held-out images: grey right, green certified at {rows[0]['radius']}\n"
        f"({', '.join(epochs)} epochs; one dot per seed with its 95 % Wilson interval,\n"
        "a bar for the mean)"
    )
    figure.suptitle(f"One change at a time from the base:\n{study.base}", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plots.png(figure))
    say(f"wrote {path}")


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", choices=STUDIES, default="recipe")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="default: all of the study")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", default=None, help="an .npz file; default: the recipe's data set")
    parser.add_argument("--recipe", default=None, help="default: that of the study")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "ablations")
    parser.add_argument("--csv", type=Path, default=None)
    parser.add_argument("--plot", type=Path, nargs="?", const=Path())
    parser.add_argument("--list", action="store_true", help="name the arms and stop")
    args = parser.parse_args(argv)
    known = STUDIES[args.study].arms
    args.arms = args.arms or list(known)
    for arm in args.arms:
        if arm not in known:
            parser.error(f"argument --arms: choose from {', '.join(known)}. Received: {arm}")
    args.csv = args.csv or RESULTS / f"{args.study}.csv"
    if args.plot == Path():
        args.plot = RESULTS / f"{args.study}.png"
    return args


def main(argv=None):
    args = arguments(argv)
    study = STUDIES[args.study]
    if args.list:
        for arm, (topic, changes) in study.arms.items():
            say(f"{arm}: {topic}; {changes}")
        return 0
    base = recipes.load(args.recipe or study.recipe)
    done = {(r["arm"], r["recipe"], int(r["epochs"]), int(r["seed"])) for r in read(args.csv)}
    for seed in args.seeds:
        for arm in args.arms:
            if (arm, base["name"], args.epochs, seed) in done:
                continue
            say(f"{arm}, seed {seed}")
            append(args.csv, run_arm(study, arm, seed, args, base))
    if args.plot:
        rows = [r for r in read(args.csv) if r["recipe"] == base["name"]]
        rows = [r for r in rows if int(r["epochs"]) == args.epochs]
        plot(study, rows, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
