"""The CIFAR networks of the founding paper under its own attack and under a strong one.

    python examples/paper_protocol.py [--datasets cifar10 cifar100] [--margins 0.07 0.15 0.3]
        [--data NAME|FILE.npz ...] [--runs FOLDER] [--scale small|shipped|published]
        [--epochs N] [--only NAME ...]

Five networks, each trained for three margins of the hinge loss on two data sets, at nine radii:
the tables of robust accuracy of arXiv 2210.02373. Beside them stand those of the three dynamical
systems that ship with dynzoo in the form that can be certified, which have no margin. Without
options: CIFAR-10, margin 0.07.

Trains, from the recipes `structured_*` in `zoo_configs/` and what `recipe_of` makes of them, what
the runs folder does not hold yet, and attacks each network in two ways:

* weak, the protocol of the paper: the first 1,024 test images, ten steps of L2 PGD on the
  cross-entropy from a random start, each a fortieth of the radius long, the last point judged;
* strong, `dynzoo.evaluate`: margin, three runner-ups and cross-entropy, 100 steps each, on the
  first 256 of them.

Beside them stands what `dynzoo.certify` proves of the same images, and what the authors measured
(with their attack, on their networks; `published_robustness.csv`).

`--scale small` shrinks the networks and their training to what a CPU core does in an hour or two
for the five networks of one margin: half of the width, half of the convolutions, three epochs of
smaller batches, a learning rate that ends at 0. Such networks do not reach the published
accuracies, and are not meant to: what counts is the distance between the two attacks on one
network. `--scale shipped` trains nothing: of the published form it measures those networks that
ship with dynzoo, of the full width, after a few epochs.

Writes `docs/results/paper_protocol.csv` (one row per network, protocol and radius; percentages, and
areas under the curves), `docs/results/paper_protocol.png` and `paper_protocol_cifar100.png`. Rows
of networks that were not asked for stay. `--redraw` makes them again from the measured columns of
that file.
"""

import argparse
import csv
import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import common
import keras
import numpy as np
from keras import ops

import dynzoo
from dynzoo import backend, data, plots, training
from dynzoo.inference.passes import compiled, predict_logits
from dynzoo.training import recipes
from dynzoo.zoo import shipped

NETWORKS = (
    "unconstrained_published",
    "naive_published",
    "nonexpansive_published",
    "prescribed_published",
    "flexible_published",
    "nonexpansive_certified",
    "prescribed_certified",
    "flexible_certified",
)
DATASETS = ("cifar10", "cifar100")
MARGINS = (0.07, 0.15, 0.3)
WEAK_RADII = (8 / 255, 16 / 255, 36 / 255, 0.3, 0.5, 0.6, 0.8, 1.0)
STRONG_RADII = (36 / 255, 0.3, 0.5, 1.0)
WEAK_IMAGES, STRONG_IMAGES = 1024, 256
RESTARTS = 3

# Percentages of the authors' result files (github.com/davidemurari/StructuredNeuralNetworks), which
# the paper's figures show. Of CIFAR-10, prescribed, they divided the images by larger deviations
# than in training, which alone makes a network less sensitive.
PUBLISHED = Path(__file__).with_name("published_robustness.csv")

# What the authors change for CIFAR-100: learning rate, its factor after 30, 60 and 90 epochs,
# weight of the orthogonality loss.
CIFAR100 = {
    "unconstrained": (0.01, 0.1, None),
    "naive": (0.001, 0.1, 0.01),
    "nonexpansive": (0.0001, 0.5, 1.0),
    "prescribed": (0.001, 0.1, 1.0),
    "flexible": (0.0001, 0.5, 1.0),
}
CIFAR100_MEAN, CIFAR100_DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

COLUMNS = (
    "dataset",
    "margin",
    "network",
    "form",
    "protocol",
    "images",
    "eps",
    "accuracy",
    "certified",
    "published",
    "auc",
    "certified_auc",
    "published_auc",
    "lipschitz",
    "parameters",
    "epochs",
    "changed",
)


# --- training ---


class Case(NamedTuple):
    """One of `NETWORKS`; the certified ones have no margin, and are presets."""

    dataset: str
    margin: float | None
    network: str

    @property
    def published(self):
        return self.network.endswith("_published")

    @property
    def preset(self):
        return f"{self.network.split('_')[0]}_{self.dataset}"

    @property
    def ships(self):
        """Whether the preset of that name is this network: its form, trained for its margin."""
        if self.preset not in dynzoo.presets():
            return False
        recipe = dynzoo.presets()[self.preset]["recipe"]
        form, margin = recipe["architecture"]["form"], recipe["training"]["loss"].get("margin")
        return form == self.network.split("_")[1] and (not self.published or margin == self.margin)


def cases(args):
    """The networks that were asked for, CIFAR-10 first: others start from these."""
    return [
        Case(dataset, margin, name)
        for dataset in DATASETS
        if dataset in args.datasets
        for margin in (*MARGINS, None)
        if margin in (*args.margins, None)
        for name in NETWORKS
        if name in args.only and (margin is None) != name.endswith("_published")
        if (margin is not None and args.scale != "shipped") or Case(dataset, margin, name).ships
    ]


def recipe_of(case):
    """The recipe of a published network at full size: of CIFAR-10 and margin 0.07, changed."""
    recipe = recipes.load(f"structured_{case.network}_cifar10")
    if case.dataset == "cifar100":
        recipe["name"] = f"structured_{case.network}_cifar100"
        recipe["data"]["name"] = "cifar100"
        recipe["architecture"].update(mean=CIFAR100_MEAN, deviation=CIFAR100_DEVIATION)
        rate, factor, weight = CIFAR100[case.network.removesuffix("_published")]
        # Their hinge loss sums over the wrong classes, ours takes the mean over all hundred.
        recipe["training"]["optimizer"]["learning_rate"] = round(100 * rate, 6)
        recipe["training"]["schedule"]["points"] = drops(factor)
        if weight:
            recipe["architecture"]["orthogonality"] = weight / 100
    recipe["training"]["loss"]["margin"] = case.margin
    if case.margin != MARGINS[0]:
        recipe["name"] += f"_margin_{case.margin:g}"
    return recipes.validate(recipe)


def drops(factor, epochs=100):
    """Shares of the learning rate, by epoch: times a factor after 30, 60 and 90 epochs."""
    points = {0: 1.0}
    for before, epoch in enumerate((30, 60, 90)):
        points[epoch] = round(factor**before, 6)
        points[epoch + 0.001] = round(factor ** (before + 1), 6)
    return {**points, epochs: round(factor**3, 6)}


def scaled(recipe, args):
    """A recipe at the scale that was asked for."""
    settings = recipe["training"]
    if args.scale == "small":
        recipe["architecture"].update(widths=[16, 32, 64], convolutions=2)
        settings.update(epochs=3, batch_size=64)
        settings["schedule"] = {"warmup": 0.05, "decay": 0.9, "points": {}}
    if args.epochs:
        settings["epochs"] = args.epochs
    return recipe


def starts_on_cifar10(case):
    """Whether the authors start from the weights on CIFAR-10 (with a new head).

    They draw the step sizes of the flexible network anew, which are taken over here.
    """
    return case.dataset == "cifar100" and case.published


def changes(recipe, case):
    """In words, where the recipe in the file of a trained network is not that of `recipe_of`."""
    if not case.published:
        return f"preset {case.preset}"
    intended = json.loads(json.dumps(recipe_of(case)))  # with keys that are text, as in the file
    found = {
        key: value
        for section in ("architecture", "training")
        for key, value in recipe[section].items()
        if intended[section].get(key) != value and key not in ("epochs", "start")
    }
    if "schedule" in found:
        found["schedule"] = "linear to 0"
    if starts_on_cifar10(case) and not recipe["training"]["start"]:
        found["start"] = "fresh weights"
    words = [f"preset {case.preset}"] if recipe["name"] == case.preset else []
    return "; ".join([*words, *(f"{key}: {value}" for key, value in found.items())])


def is_preset(case, args):
    """Whether the network comes with dynzoo, in place of being trained here."""
    return not case.published or args.scale == "shipped"


def folder_of(case, args):
    """Where a network is trained, if it is, and what was measured of it is kept."""
    if is_preset(case, args):
        return args.runs / case.preset
    return args.runs / f"{recipe_of(case)['name']}_{args.scale}"


def preset_of(case, folder, args):
    """The folder of a trained network."""
    return shipped.find(case.preset) if is_preset(case, args) else folder / "preset"


def finished(folder):
    return (folder / "preset" / "metadata.json").exists()


def trained(case, args):
    """The run folder of a network, trained if its preset is not there yet.

    As the authors do, a training whose loss is no longer a number starts again at a tenth of the
    learning rate (a fifth: flexible). Folders of such trainings are kept, and count.
    """
    folder = folder_of(case, args)
    if is_preset(case, args):
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    while not finished(folder):
        diverged = len(list(args.runs.glob(f"{folder.name}_diverged_*")))
        recipe = scaled(recipe_of(case), args)
        factor = 5 if case.network.startswith("flexible") else 10
        recipe["training"]["optimizer"]["learning_rate"] /= factor**diverged
        if starts_on_cifar10(case):
            start = folder_of(case._replace(dataset="cifar10"), args)
            if finished(start):
                recipe["training"]["start"] = str(start / "preset")
        source = args.data[case.dataset]
        file = source if source.endswith(".npz") else None
        folder.mkdir(parents=True, exist_ok=True)
        try:
            training.train(recipe, file, folder, resume=True, verbose=args.verbose)
        except training.TrainingDivergedError as error:
            folder.rename(folder.with_name(f"{folder.name}_diverged_{diverged + 1}"))
            if diverged == RESTARTS:
                raise
            print(error, flush=True)
    return folder


# --- attacks ---


def weak_attack(model, x, y, eps, seed=0, steps=10, step=0.025, batch_size=256):
    """Which of the images still have the right answer: foolbox 3.3.3's L2 PGD and its defaults."""

    def make(infer):
        def loss(points, weights, labels):
            logits = ops.cast(infer(weights, points), "float32")
            return ops.sum(keras.losses.sparse_categorical_crossentropy(labels, logits, True))

        def move(weights, points, centre, labels, radius):
            _, gradient = backend.value_and_grad(loss)(points, weights, labels)
            points = points + step * radius * gradient / ops.maximum(norms(gradient), 1e-12)
            away = points - centre
            away = away * ops.minimum(1.0, radius / ops.maximum(norms(away), 1e-12))
            return ops.clip(centre + away, 0.0, 1.0)

        return move

    def norms(a):
        return ops.sqrt(ops.sum(ops.square(a), axis=(1, 2, 3), keepdims=True))

    move = compiled(model, "weak_attack", make)
    rng = np.random.default_rng(seed)
    right = []
    radius = ops.convert_to_tensor(np.float32(eps))
    for start in range(0, len(x), batch_size):
        centre, labels = x[start : start + batch_size], y[start : start + batch_size]
        # uniform in the ball: two coordinates of a sphere of two more dimensions are dropped
        away = rng.normal(size=(len(centre), centre[0].size + 2))
        away = (away / np.linalg.norm(away, axis=1, keepdims=True))[:, 2:].reshape(centre.shape)
        points = ops.convert_to_tensor(np.clip(centre + eps * away, 0, 1).astype("float32"))
        fixed = ops.convert_to_tensor(centre), ops.convert_to_tensor(labels.astype("int32"))
        for _ in range(steps):
            points = move(points, *fixed, radius)
        answers = predict_logits(model, backend.to_numpy(points), batch_size).argmax(axis=1)
        right.append(answers == labels)
    return np.concatenate(right)


def measured(case, folder, args):
    """Rows of one network, kept in its run folder."""
    file = folder / "protocol.json"
    if not file.exists():
        rows = attacked(case, folder, args)
        file.write_text(json.dumps(rows), encoding="utf-8")
    rows = json.loads(file.read_text(encoding="utf-8"))
    about = (preset_of(case, folder, args) / "metadata.json").read_text(encoding="utf-8")
    recipe = json.loads(about)["recipe"]
    common_to_all = {
        "dataset": case.dataset,
        "margin": case.margin,
        "epochs": recipe["training"]["epochs"],
        "changed": changes(recipe, case),
    }
    return [row | common_to_all for row in rows]


def attacked(case, folder, args):
    """Rows of one network under both attacks."""
    kind, form = case.network.split("_")
    model = dynzoo.from_preset(preset_of(case, folder, args))
    _, (x, y) = data.load(args.data[case.dataset])
    x, y = x[:WEAK_IMAGES], y[:WEAK_IMAGES]
    certificate = dynzoo.certify(model)
    labels, radii = certificate.radii(x)
    radii = np.where(labels == y, radii, -1.0)

    def row(protocol, images, eps, accuracy):
        return {
            "network": kind,
            "form": form,
            "protocol": protocol,
            "images": images,
            "eps": round(eps, 4),
            "accuracy": round(100 * float(accuracy), 2),
            "certified": round(100 * float((radii[:images] > eps).mean()), 2) if eps else None,
            "lipschitz": float(f"{certificate.lipschitz:.4g}"),
            "parameters": model.count_params(),
        }

    correct = labels == y
    rows = [row("weak", len(x), 0, correct.mean())]
    for eps in WEAK_RADII:
        # a wrong answer stays wrong
        right = weak_attack(model, x[correct], y[correct], eps)
        rows.append(row("weak", len(x), eps, right.sum() / len(x)))
        print(folder.name, rows[-1]["eps"], rows[-1]["accuracy"], flush=True)
    x, y = x[:STRONG_IMAGES], y[:STRONG_IMAGES]
    report = dynzoo.evaluate(
        model, x, y, eps=STRONG_RADII, attacks="pgd_margin", checks="quick", verbose=1
    )
    for warning in report.warnings:
        print(f"{folder.name}: {warning}")
    rows.append(row("strong", len(x), 0, report.clean))
    rows += [row("strong", len(x), eps, report.robust[eps]) for eps in STRONG_RADII]
    return rows


# --- table ---


def published_curves():
    """The authors' accuracies by rounded radius, of each data set, margin and network."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        (row.pop("dataset"), float(row.pop("margin")), row.pop("network")): {
            round(float(Fraction(eps)), 4): float(accuracy) for eps, accuracy in row.items()
        }
        for row in rows
    }


def area(curve, images=WEAK_IMAGES):
    """Under the accuracies (in percent, by rounded radius) of so many images, as a share.

    Trapezoids over the nine radii, which end at 1.
    """
    radii = (0, *WEAK_RADII)
    # percentages are rounded, but the images are counted
    shares = [round(curve[round(eps, 4)] * images / 100) / images for eps in radii]
    parts = zip(pairwise(radii), pairwise(shares), strict=True)
    return round(sum((b - a) * (low + high) / 2 for (a, b), (low, high) in parts), 4)


def network_of(row):
    return row["dataset"], row["margin"], row["network"], row["form"]


def filled(rows):
    """Rows with what follows from them: the authors' numbers, and the areas of the weak protocol.

    A certified curve starts at radius 0 with its value at the first radius: the accuracy in its
    place would give an area to a network of which nothing is certified.
    """
    authors = published_curves()
    weak = {}
    for row in rows:
        if row["protocol"] == "weak":
            weak.setdefault(network_of(row), []).append(row)
    follows = {}
    for network, chosen in weak.items():
        images = chosen[0]["images"]
        certified = {r["eps"]: r["certified"] for r in chosen}
        certified[0] = certified[round(WEAK_RADII[0], 4)]
        curve = authors.get(network[:3], {}) if network[3] == "published" else {}
        areas = {
            "auc": area({r["eps"]: r["accuracy"] for r in chosen}, images),
            "certified_auc": area(certified, images),
            "published_auc": area(curve) if curve else None,
        }
        for row in chosen:
            follows[network, row["eps"]] = {"published": curve.get(row["eps"]), **areas}
    result = []
    for row in rows:
        known = follows[network_of(row), row["eps"]] if row["protocol"] == "weak" else {}
        row = row | dict.fromkeys(("published", "auc", "certified_auc", "published_auc")) | known
        result.append({column: row[column] for column in COLUMNS})
    return result


def read_rows():
    """The rows of the last run, if there was one."""
    if not (common.RESULTS / "paper_protocol.csv").exists():
        return []
    rows = [
        {column: None if value == "" else value for column, value in row.items()}
        for row in common.read_csv("paper_protocol")
    ]
    # files from before other data sets and margins have no such columns
    margins = {"published": MARGINS[0], "certified": None}
    return [{"dataset": "cifar10", "margin": margins[row["form"]], **row} for row in rows]


# --- picture ---


def picture(rows):
    """Accuracy by radius on one data set, a panel a network; with three margins a row a margin."""
    names = list(dict.fromkeys(network_of(r) for r in rows))
    columns = 4 if len(names) < 8 else 5
    height = -(-(len(names) + 1) // columns)  # the legend takes the place of a panel
    figure = plots.new_figure(2.875 * columns, 2.95 * height)
    panels = figure.subplots(height, columns, sharex=True, sharey=True).flatten()
    lines = {}
    images = {r["protocol"]: r["images"] for r in rows}
    for axes, name in zip(panels, names, strict=False):
        of = [r for r in rows if network_of(r) == name]

        def curve(protocol, column, of=of):
            chosen = [r for r in of if r["protocol"] == protocol and r[column] is not None]
            return [r["eps"] for r in chosen], [r[column] for r in chosen]

        for label, protocol, column, style in (
            ("the authors' network, weak attack", "weak", "published",
             {"color": plots.CLEAN, "linestyle": (0, (4, 3)), "linewidth": 1.3}),
            (f"ours, weak attack (10 short steps), n = {images['weak']:,}", "weak", "accuracy",
             {"color": plots.ATTACKED, "marker": "o", "markersize": 3.5, "linewidth": 1.6}),
            (f"ours, strong attack (5 x 100 steps), n = {images['strong']:,}", "strong", "accuracy",
             {"color": plots.INK, "marker": "s", "markersize": 5, "linewidth": 1.0}),
            (f"ours, certified, n = {images['weak']:,}", "weak", "certified",
             {"color": plots.CERTIFIED, "marker": "v", "markersize": 5, "linewidth": 1.2}),
        ):  # fmt: skip
            x, y = curve(protocol, column)
            if x:
                (lines[label],) = axes.plot(x, y, label=label, clip_on=False, **style)
            if column != "published":
                draw_intervals(axes, x, y, images[protocol], style["color"])
        axes.set_title(title(of[0]), fontsize=9.5)
        axes.tick_params(labelbottom=True)
        axes.grid(color="#e4e7ee", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_ylim(0, 92)
        axes.set_xlim(0, 1.02)
    for axes in panels[len(names) :]:
        axes.axis("off")
    legend = panels[len(names)].legend(
        lines.values(), lines.keys(), frameon=False, fontsize=9, loc="center left"
    )
    legend.set_in_layout(len(names) % columns == columns - 1)
    radius = "radius of the perturbation (L2, pixels in [0, 1])"
    figure.supxlabel(f"{radius}; bars: 95 % Wilson intervals over n images", fontsize=10)
    figure.supylabel("accuracy, %", fontsize=10)
    return figure


def title(row):
    """What a panel says of its network; of the certified form there is no published curve."""
    bound, epochs = row["lipschitz"], row["epochs"]
    bound = f"{bound:,.0f}" if bound >= 100 else f"{bound:.1f}"
    trained = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    margin = "certified form" if row["margin"] is None else f"margin {row['margin']:g}"
    areas = f"area {row['auc']:.3f}"
    if row["published_auc"] is not None:
        areas += f" (the authors': {row['published_auc']:.3f})"
    return f"{row['network']}, {margin}\n{trained}, Lipschitz bound {bound}\n{areas}"


def draw_intervals(axes, x, y, images, color):
    """What so many images leave open of each accuracy, in percent."""
    for radius, accuracy in zip(x, y, strict=True):
        ends = 100 * np.array(plots.wilson_interval(accuracy / 100, images))
        axes.plot([radius, radius], ends, "-", color=color, linewidth=1, alpha=0.7)


def order(row):
    margins = (*MARGINS, None)
    network = NETWORKS.index(f"{row['network']}_{row['form']}")
    return DATASETS.index(row["dataset"]), margins.index(row["margin"]), network


def write(rows):
    """The table, in one order, and a picture of each data set."""
    rows = sorted(rows, key=order)
    common.write_csv("paper_protocol", rows)
    for dataset in DATASETS:
        of = [row for row in rows if row["dataset"] == dataset]
        name = "paper_protocol" if dataset == "cifar10" else f"paper_protocol_{dataset}"
        if of:
            common.save_figure(name, picture(of))


def arguments(words=None):
    """The command line; `data` by name of the data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=["cifar10"])
    parser.add_argument("--margins", nargs="+", type=float, choices=MARGINS, default=[MARGINS[0]])
    parser.add_argument(
        "--data", nargs="+", help="for each of --datasets, in this order, its name or an .npz file"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/paper_protocol"))
    parser.add_argument("--scale", choices=("small", "shipped", "published"), default="small")
    parser.add_argument("--epochs", type=int, help="epochs, in place of the scale's")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--verbose", type=int, default=2, help="of the training, as in model.fit")
    parser.add_argument("--redraw", action="store_true", help="measure nothing, start from the CSV")
    args = parser.parse_args(words)
    sources = args.data or args.datasets
    if len(sources) != len(args.datasets):
        parser.error(f"--data must name {len(args.datasets)} sources, one for each of --datasets")
    args.data = dict(zip(args.datasets, sources, strict=True))
    for dataset, source in args.data.items():
        if source != dataset and not source.endswith(".npz"):
            parser.error(f"--data must be {dataset} or an .npz file. Received: {source}")
    return args


def main():
    args = arguments()
    if args.redraw:
        write(filled(read_rows()))
        return
    folders = {case: trained(case, args) for case in cases(args)}
    rows = filled([row for case, folder in folders.items() for row in measured(case, folder, args)])
    found = {network_of(row) for row in rows}
    write([*rows, *(row for row in read_rows() if network_of(row) not in found)])
    at_half = {(*network_of(r), r["protocol"]): r["accuracy"] for r in rows if r["eps"] == 0.5}
    common.finish({" ".join(str(w) for w in key if w): v for key, v in at_half.items()})


if __name__ == "__main__":
    main()
