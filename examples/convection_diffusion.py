"""Trains a residual network with and without diffusion on CIFAR-10 and compares their robustness.

    python examples/convection_diffusion.py [--data FILE.npz] [--runs FOLDER] [--limit N]
        [--seeds 0 1]

Four recipes of one architecture: with and without Feynman-Kac noise after each step, with and
without noise on the pixels in training. What is not trained yet is trained (`dynzoo train RECIPE`,
resumable), once a seed; then each network is measured: accuracy, accuracy under Gaussian noise and
under the fifteen common corruptions, PGD in L2 and Linf, and the certified accuracy of randomised
smoothing. A network with diffusion is measured
twice: with its noise off, and as the mean of eight noisy passes, attacked through that mean
(expectation over transformation) and through the network without noise. Writes
`docs/results/convection_diffusion.csv` (a row a network and seed) and `.png`; results are kept
beside the weights.
"""

import argparse
import itertools
import json
from pathlib import Path

import common
import numpy as np
from keras import ops

import dynzoo
from dynzoo import backend, plots, training
from dynzoo.attacks import PGD
from dynzoo.attacks.geometry import project, random_points, steepest
from dynzoo.attacks.losses import margin
from dynzoo.certificates import smooth
from dynzoo.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from dynzoo.inference.passes import compiled, predict_logits
from dynzoo.layers.feynman_kac import feynman_kac_mean
from dynzoo.models.convection_diffusion import feynman_kac_model
from dynzoo.robustness.checks.gradients import check_gradients
from dynzoo.robustness.checks.model import check_unbounded
from dynzoo.training import recipes
from dynzoo.utils.formatting import eps_text

NETWORKS = {
    "residual_cifar10": "no noise",
    "convection_diffusion_feature_noise_cifar10": "diffusion",
    "residual_input_noise_cifar10": "pixel noise",
    "convection_diffusion_input_noise_cifar10": "diffusion and pixel noise",
}
PASSES = 8
NOISE = (0.05, 0.1, 0.2)
L2 = (36 / 255, 72 / 255, 108 / 255)
LINF = (1 / 255, 2 / 255, 4 / 255)
CERTIFIED = (0.0, 18 / 255, 36 / 255, 54 / 255)
ATTACK = {"steps": 20, "loss": "margin", "seed": 0}
ATTACKED = "attacked_images"  # column of their number
SMOOTHING = {"sigma": 0.12, "samples": 500, "selection": 50, "alpha": 0.001, "seed": 0}


def trained(name, seed, data_file, folder):
    """The network of a recipe and a seed, from its run folder, after training if need be."""
    if not (folder / "preset").is_dir():
        recipe = recipes.load(name)
        recipe["training"]["seed"] = seed
        training.train(recipe, data_file, folder, resume=True, verbose=2)
    return dynzoo.from_preset(folder / "preset")


def variant(name, weights, inference):
    """The network of a recipe with its noise on ("random") or off ("deterministic")."""
    recipe = recipes.load(name)
    recipe["architecture"]["inference"] = inference
    model = training.build_model(recipe, 10, (32, 32, 3))
    model.set_weights(weights)
    return model


def climb(model, x, y, norm, eps, indices):
    """Last iterate of PGD with the settings of `ATTACK`, which goes on after a first success.

    `PGD` keeps the first point that fools the model. Of a random model that is a point at the
    boundary, which fooled it by one lucky draw and often fails under the next.
    """

    def make(infer):
        def step(weights, center, label, eps, size, point):
            def objective(x):
                return ops.sum(margin(infer(weights, x), label))

            _, gradient = backend.value_and_grad(objective)(point)
            return project(point + size * steepest(gradient, point, norm), center, eps, norm)

        return step

    step = compiled(model, ("climb", norm), make)
    points = []
    for rows in np.array_split(np.arange(len(x)), -(-len(x) // 250)):
        start = random_points(x[rows], eps, norm, ATTACK["seed"], indices[rows], 0)
        center, point = (ops.convert_to_tensor(a, dtype="float32") for a in (x[rows], start))
        label = ops.convert_to_tensor(y[rows].astype("int32"))
        numbers = [np.asarray(v, "float32") for v in (eps, 2.5 * eps / ATTACK["steps"])]
        for _ in range(ATTACK["steps"]):
            point = step(center, label, *map(ops.convert_to_tensor, numbers), point)
        points.append(backend.to_numpy(point))
    return np.concatenate(points)


def attacked(predict, models, x, y, norm, radii):
    """Share that is right after PGD, at each radius, for each of the models that it climbs.

    Then the share that is right after all of them, and a warning where an attack that did not see
    the noise does better than the one through its mean: its gradient is masked there.
    """
    right = predict(x) == y
    alive, result, warnings = {name: right.copy() for name in models}, {}, []
    for eps in radii:
        for name, model in models.items():
            rows = np.flatnonzero(alive[name])
            if rows.size:
                if len(models) > 1:
                    points = climb(model, x[rows], y[rows], norm, eps, rows)
                else:
                    attack = PGD(norm=norm, eps=eps, **ATTACK)
                    points = attack(model, x[rows], y[rows], indices=rows)
                alive[name][rows] = predict(points) == y[rows]
        key = f"{norm} {eps_text(eps)}"
        result[key] = percent(np.logical_and.reduce(list(alive.values())))
        if len(models) > 1:
            shares = {name: percent(a) for name, a in alive.items()}
            result.update({f"{key}, {name} alone": share for name, share in shares.items()})
            if shares["without noise"] < shares["through the mean"] - 2:
                warnings.append(f"masked gradient at {key}: {shares}")
    return result, warnings


def sizes(mean, limit):
    """How many test images a number is of: the first ones, fewer where passes are many."""
    return {
        "clean_images": (8 if mean else 40) * limit,
        "noise_images": 4 * limit,
        "corrupted_images": (1 if mean else 2) * limit,
        ATTACKED: limit,
        "smoothed_images": 0 if mean else limit,
    }


def measure(name, weights, mean, x, y, limit):
    """All numbers of one network: its noise off, or the mean of eight passes with noise."""
    count = sizes(mean, limit)
    quiet = variant(name, weights, "deterministic")

    if mean:
        noisy = variant(name, weights, "random")
        models = {"through the mean": feynman_kac_model(noisy, PASSES), "without noise": quiet}

        def predict(images):
            return feynman_kac_mean(noisy, images, samples=PASSES, batch_size=500).argmax(axis=1)
    else:
        models = {"without noise": quiet}

        def predict(images):
            return predict_logits(quiet, images).argmax(axis=1)

    first = count["clean_images"]
    row = {"clean": percent(predict(x[:first]) == y[:first])}
    some, labels = x[: count["noise_images"]], y[: count["noise_images"]]
    noise = np.random.default_rng(0).standard_normal(some.shape, dtype=np.float32)
    for sigma in NOISE:
        row[f"noise {sigma:g}"] = percent(predict(some + np.float32(sigma) * noise) == labels)
    some, labels = x[: count["corrupted_images"]], y[: count["corrupted_images"]]
    row["corruptions"] = percent(
        [predict(corrupt(some, c, s)) == labels for c in CORRUPTIONS for s in SEVERITIES]
    )
    some, labels = x[: count[ATTACKED]], y[: count[ATTACKED]]
    row["clean (attacked images)"] = percent(predict(some) == labels)
    found = []
    for norm, eps in (("l2", L2), ("linf", LINF)):
        result, warnings = attacked(predict, models, some, labels, norm, eps)
        row.update(result)
        found += warnings
    right = np.flatnonzero(predict(some) == labels)[:32]
    if not mean:  # finite differences of a random model measure its noise
        found += check_gradients(quiet, some[right], labels[right])
    climbed = next(iter(models.values()))
    found += check_unbounded(climbed, some[right], labels[right], "l2", 0)
    row["warnings"] = "; ".join(str(warning) for warning in found)
    radii = []
    if not mean:
        some, labels = x[: count["smoothed_images"]], y[: count["smoothed_images"]]
        answers, radii = smooth(quiet, **SMOOTHING).radii(some)
        radii = np.where(answers == labels, radii, -1.0).tolist()
        for eps in CERTIFIED:
            row[certified_key(eps)] = percent(np.array(radii) > eps)
    return {"row": row, "radii": radii}


def certified_key(eps):
    """Column of the share whose certified radius is above eps."""
    return f"smoothed, certified {eps_text(eps) if eps else 0}"


def percent(right):
    return round(100 * float(np.mean(right)), 2)


def kept(path, settings, compute):
    """The result in a file if it was made with these settings; else computed and written."""
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["settings"] == settings:
            return content["result"]
    result = compute()
    path.write_text(json.dumps({"settings": settings, "result": result}), encoding="utf-8")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="cifar10", help="cifar10, or an .npz file of it")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the trainings")
    parser.add_argument("--limit", type=int, default=250, help="test images to attack")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the trainings")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--redraw", action="store_true", help="only the picture, from the CSV file")
    args = parser.parse_args()
    if args.redraw:
        common.save_figure("convection_diffusion", figure(common.read_csv("convection_diffusion")))
        return

    data_file = None if args.data == "cifar10" else args.data
    _, (x, y) = dynzoo.data.load(args.data)
    settings = json.loads(
        json.dumps(
            [PASSES, NOISE, L2, LINF, CERTIFIED, ATTACK, SMOOTHING, list(CORRUPTIONS), args.limit]
        )
    )
    rows = []
    for name, seed in itertools.product(args.networks, args.seeds):
        folder = args.runs / (f"{name}_seed_{seed}" if seed else name)
        weights = trained(name, seed, data_file, folder).get_weights()
        architecture = recipes.load(name)["architecture"]
        for mean in (False, True) if architecture["diffusion"] else (False,):
            path = folder / f"measured_{'mean' if mean else 'quiet'}.json"
            result = kept(
                path,
                settings,
                lambda n=name, w=weights, m=mean: measure(n, w, m, x, y, args.limit),
            )
            about = {
                "network": name,
                "seed": seed,
                "diffusion": architecture["diffusion"],
                "pixel_noise": architecture.get("input_noise", 0.0),
                "inference": f"mean of {PASSES} noisy passes" if mean else "one pass, no noise",
            }
            rows.append({**about, **sizes(mean, args.limit), **result["row"]})
            print(rows[-1], flush=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{key: row.get(key, "") for key in columns} for row in rows]
    common.write_csv("convection_diffusion", rows)
    common.save_figure("convection_diffusion", figure(rows))
    common.finish(
        {f"{row['network']}, seed {row['seed']}, {row['inference']}": row["clean"] for row in rows}
    )


def over_seeds(rows):
    """The rows of one network and way of inference together, in the order of the first ones."""
    groups = {}
    for row in rows:
        groups.setdefault((row["network"], row["inference"]), []).append(row)
    return list(groups.values())


def figure(rows):
    """Accuracy by noise, by radius of the attack, and by certified radius.

    A line is the mean of the seeds, which are the small marks. A bar is the 95 % interval that the
    mean has for so many images: the seeds share them, so that they do not count as more.
    """
    result = plots.new_figure(11.6, 4.6)
    panels = result.subplots(1, 3, sharey=True)
    colors = dict(zip(NETWORKS, ("#5b6478", "#1f6feb", "#c2410c", "#1b7f5c"), strict=True))
    groups = over_seeds(rows)
    for place, group in enumerate(groups):
        row = group[0]
        mean = bool(row["diffusion"]) and row["inference"].startswith("mean")
        label = NETWORKS[row["network"]] + (f", mean of {PASSES} passes" if mean else "")
        color = colors[row["network"]]
        curves = (
            ((0, *NOISE), ["clean", *(f"noise {s:g}" for s in NOISE)], "noise_images"),
            ((0, *L2), ["clean (attacked images)", *(f"l2 {eps_text(e)}" for e in L2)], ATTACKED),
            (CERTIFIED, [certified_key(e) for e in CERTIFIED], "smoothed_images"),
        )
        for axes, (places, keys, count) in zip(panels, curves, strict=True):
            if row[keys[-1]] == "":
                continue
            images = [row["clean_images" if key == "clean" else count] for key in keys]
            seeds = np.array([[r[key] for key in keys] for r in group])
            values = seeds.mean(axis=0)
            ends = [plots.wilson_interval(v / 100, n) for v, n in zip(values, images, strict=True)]
            lengths = np.abs(100 * np.array(ends).T - values)
            # side by side, so that intervals do not lie upon one another
            shift = (place - (len(groups) - 1) / 2) * 0.012 * (places[-1] - places[0])
            x = np.array(places) + shift
            axes.errorbar(
                x, values, yerr=lengths, label=label, color=color, linestyle="--" if mean else "-",
                linewidth=1.4, elinewidth=0.8, capsize=2,
            )  # fmt: skip
            for line in seeds:
                axes.plot(x, line, "o", color=color, markersize=2.5)
    count = {key: f"{max(row[key] for row in rows):,}" for key in sizes(False, 1)}
    panels[0].set_title(f"{count['noise_images']} images (without noise up to 10,000)")
    panels[1].set_title(f"{count[ATTACKED]} images")
    panels[2].set_title(f"{count['smoothed_images']} images")
    panels[0].set_xlabel("standard deviation of noise on the pixels")
    panels[1].set_xlabel("L2 radius of the attack (PGD, 20 steps)")
    panels[1].set_xticks((0, *L2), ["0", *(eps_text(e) for e in L2)])
    panels[2].set_xlabel(f"certified L2 radius (smoothing, noise {SMOOTHING['sigma']:g})")
    panels[2].set_xticks(CERTIFIED, [eps_text(e) if e else "0" for e in CERTIFIED])
    marks = "seeds and their mean, " if len(rows) > len(groups) else ""
    panels[0].set_ylabel(f"accuracy in percent, {marks}95 % intervals")
    panels[0].set_ylim(0, None)
    for axes in panels:
        axes.title.set_fontsize(9)
        axes.grid(color="#e4e7ee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    result.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return result


if __name__ == "__main__":
    main()
