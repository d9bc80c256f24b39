"""The five CIFAR networks of the founding paper under its own attack and under a strong one.

    python examples/paper_protocol.py [--data cifar10|FILE.npz] [--runs FOLDER]
        [--scale small|published] [--epochs N] [--only NAME ...]

Trains, from the recipes `structured_*` in `zoo_configs/`, what the runs folder does not hold yet,
and attacks each network in two ways:

* weak, the protocol of arXiv 2210.02373: the first 1,024 test images, ten steps of L2 PGD on the
  cross-entropy from a random start, each a fortieth of the radius long, the last point judged;
* strong, `dynzoo.evaluate`: margin, three runner-ups and cross-entropy, 100 steps each, on the
  first 256 of them.

Beside them stands what `dynzoo.certify` proves of the same images, and what the authors measured
(with their attack, on their networks).

`--scale small` shrinks the networks and their training to what a CPU core does in an hour or two:
half of the width, half of the convolutions, three epochs of smaller batches, a learning rate that
ends at 0. Such networks do not reach the published accuracies, and are not meant to: what counts is
the distance between the two attacks on one network.

Writes `docs/results/paper_protocol.csv` (one row per network, protocol and radius; percentages) and
`docs/results/paper_protocol.png`.
"""

import argparse
import csv
import json
from pathlib import Path

import common
import keras
import numpy as np
from keras import ops

import dynzoo
from dynzoo import backend, data, plots, training
from dynzoo.inference.passes import compiled, predict_logits
from dynzoo.training import recipes

NETWORKS = (
    "unconstrained_published",
    "naive_published",
    "nonexpansive_published",
    "prescribed_published",
    "flexible_published",
    "nonexpansive_certified",
    "flexible_certified",
)
WEAK_RADII = (8 / 255, 16 / 255, 36 / 255, 0.3, 0.5, 0.6, 0.8, 1.0)
STRONG_RADII = (36 / 255, 0.3, 0.5, 1.0)
WEAK_IMAGES, STRONG_IMAGES = 1024, 256

# CIFAR-10, hinge margin 0.07, in percent at radius 0 and at WEAK_RADII: the authors' result files
# (github.com/davidemurari/StructuredNeuralNetworks), which the paper's figures show.
AUTHORS = {
    "unconstrained": (88.18, 86.82, 84.57, 78.12, 63.77, 42.87, 33.20, 17.29, 7.32),
    "naive": (82.62, 81.15, 79.49, 76.66, 68.95, 59.18, 54.00, 41.89, 31.93),
    "nonexpansive": (83.89, 82.62, 82.13, 79.39, 74.22, 66.11, 62.70, 54.59, 48.24),
    "prescribed": (80.76, 79.79, 79.00, 77.54, 73.93, 67.77, 64.55, 58.11, 51.56),
    "flexible": (82.23, 81.25, 80.76, 79.00, 74.61, 68.65, 65.53, 58.69, 51.27),
}


# --- training ---


def recipe_of(name, args):
    """The recipe of a network, at the scale that was asked for."""
    recipe = recipes.load(f"structured_{name}_cifar10")
    settings = recipe["training"]
    if args.scale == "small":
        recipe["architecture"].update(widths=[16, 32, 64], convolutions=2)
        settings.update(epochs=3, batch_size=64)
        settings["schedule"] = {"warmup": 0.05, "decay": 0.9, "points": {}}
    if args.epochs:
        settings["epochs"] = args.epochs
    return recipe


def changes(recipe):
    """In words, where the recipe of a trained network is not the one that ships."""
    shipped = recipes.load(recipe["name"])
    found = {
        key: value
        for section in ("architecture", "training")
        for key, value in recipe[section].items()
        if shipped[section].get(key) != value and key != "epochs"
    }
    if "schedule" in found:
        found["schedule"] = "linear to 0"
    return "; ".join(f"{key}: {value}" for key, value in found.items())


def trained(name, args):
    """The run folder of a network, trained if its preset is not there yet."""
    recipe = recipe_of(name, args)
    folder = args.runs / f"{recipe['name']}_{args.scale}"
    if not (folder / "preset" / "metadata.json").exists():
        file = args.data if args.data.endswith(".npz") else None
        training.train(recipe, file, folder, resume=True, verbose=args.verbose)
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


def measured(name, folder, args):
    """Rows of one network, kept in its run folder."""
    file = folder / "protocol.json"
    if not file.exists():
        rows = attacked(name, folder, args)
        file.write_text(json.dumps(rows), encoding="utf-8")
    rows = json.loads(file.read_text(encoding="utf-8"))
    recipe = json.loads((folder / "preset" / "metadata.json").read_text(encoding="utf-8"))["recipe"]
    epochs = recipe["training"]["epochs"]
    return [{**row, "epochs": epochs, "changed": changes(recipe)} for row in rows]


def attacked(name, folder, args):
    """Rows of one network under both attacks."""
    kind, form = name.split("_")
    model = dynzoo.from_preset(folder / "preset")
    _, (x, y) = data.load(args.data)
    x, y = x[:WEAK_IMAGES], y[:WEAK_IMAGES]
    certificate = dynzoo.certify(model)
    labels, radii = certificate.radii(x)
    radii = np.where(labels == y, radii, -1.0)

    def row(protocol, images, eps, accuracy):
        authors = None
        if protocol == "weak" and form == "published":
            authors = AUTHORS[kind][(0, *WEAK_RADII).index(eps)]
        return {
            "network": kind,
            "form": form,
            "protocol": protocol,
            "images": images,
            "eps": round(eps, 4),
            "accuracy": round(100 * float(accuracy), 2),
            "certified": round(100 * float((radii[:images] > eps).mean()), 2) if eps else None,
            "published": authors,
            "lipschitz": float(f"{certificate.lipschitz:.4g}"),
            "parameters": model.count_params(),
        }

    correct = labels == y
    rows = [row("weak", len(x), 0, correct.mean())]
    for eps in WEAK_RADII:
        # a wrong answer stays wrong
        right = weak_attack(model, x[correct], y[correct], eps)
        rows.append(row("weak", len(x), eps, right.sum() / len(x)))
        print(name, rows[-1]["eps"], rows[-1]["accuracy"], flush=True)
    n = STRONG_IMAGES
    report = dynzoo.evaluate(
        model, x[:n], y[:n], eps=STRONG_RADII, attacks="pgd_margin", checks="quick", verbose=1
    )
    for warning in report.warnings:
        print(f"{name}: {warning}")
    rows.append(row("strong", n, 0, report.clean))
    rows += [row("strong", n, eps, report.robust[eps]) for eps in STRONG_RADII]
    return rows


# --- picture ---


def picture(rows):
    """Accuracy by radius, a panel a network."""
    names = list(dict.fromkeys((r["network"], r["form"]) for r in rows))
    figure = plots.new_figure(11.5, 5.6)
    panels = figure.subplots(2, 4, sharex=True, sharey=True).flatten()
    lines = {}
    images = {r["protocol"]: r["images"] for r in rows}
    for axes, (kind, form) in zip(panels, names, strict=False):
        of = [r for r in rows if (r["network"], r["form"]) == (kind, form)]

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
        bound, epochs = of[0]["lipschitz"], of[0]["epochs"]
        bound = f"{bound:,.0f}" if bound >= 100 else f"{bound:.1f}"
        trained = "1 epoch" if epochs == 1 else f"{epochs} epochs"
        axes.set_title(f"{kind}, {form} form\n{trained}, Lipschitz bound {bound}", fontsize=9.5)
        axes.tick_params(labelbottom=True)
        axes.grid(color="#e4e7ee", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_ylim(0, 92)
        axes.set_xlim(0, 1.02)
    for axes in panels[len(names) :]:
        axes.axis("off")
    panels[-1].legend(lines.values(), lines.keys(), frameon=False, fontsize=9, loc="center")
    figure.supxlabel("radius of the perturbation (L2, pixels in [0, 1])", fontsize=10)
    figure.supylabel("accuracy, % (bars: 95 % Wilson intervals over n images)", fontsize=10)
    return figure


def draw_intervals(axes, x, y, images, color):
    """What so many images leave open of each accuracy, in percent."""
    for radius, accuracy in zip(x, y, strict=True):
        ends = 100 * np.array(plots.wilson_interval(accuracy / 100, images))
        axes.plot([radius, radius], ends, "-", color=color, linewidth=1, alpha=0.7)


def read_rows():
    """The rows of the last run, as `picture` wants them."""
    with (common.RESULTS / "paper_protocol.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    words = ("network", "form", "protocol", "changed")
    for row in rows:
        row |= {k: float(v) if v else None for k, v in row.items() if k not in words}
        row |= {k: int(row[k]) for k in ("images", "epochs")}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="cifar10", help="cifar10, or an .npz file")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper_protocol"))
    parser.add_argument("--scale", choices=("small", "published"), default="small")
    parser.add_argument("--epochs", type=int, help="epochs, in place of the scale's")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--verbose", type=int, default=2, help="of the training, as in model.fit")
    parser.add_argument("--redraw", action="store_true", help="the picture alone, from the CSV")
    args = parser.parse_args()
    if args.redraw:
        common.save_figure("paper_protocol", picture(read_rows()))
        return
    folders = {name: trained(name, args) for name in args.only}
    rows = [row for name, folder in folders.items() for row in measured(name, folder, args)]
    common.write_csv("paper_protocol", rows)
    common.save_figure("paper_protocol", picture(rows))
    at_half = [r for r in rows if r["eps"] == 0.5]
    common.finish({f"{r['network']} {r['form']} {r['protocol']}": r["accuracy"] for r in at_half})


if __name__ == "__main__":
    main()
