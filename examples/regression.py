"""Regression of |x| + sin x + x^2 with gradient and sphere-preserving steps behind a lift.

    python examples/regression.py [--epochs 150] [--seeds 0 1 2] [--redraw]

2,000 points x ~ N(0, 1) with noise 0.01, 90 % for training (arXiv 2210.02373, appendix, which
prints no error). Writes `docs/results/regression.csv` (error on clean targets against width and
depth) and a picture of it.
"""

import argparse
import itertools

import common
import keras
import numpy as np

from dynzoo import operators, plots
from dynzoo.layers.presnov_flow import PresnovFlow


def target(x):
    return np.abs(x) + np.sin(x) + x**2


def data(samples=2000, noise=0.01, seed=0):
    """Noisy training pairs, and test pairs without noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 1))
    y = target(x) + noise * rng.normal(size=x.shape)
    cut = int(0.9 * samples)
    x, y = x.astype("float32"), y.astype("float32")
    return (x[:cut], y[:cut]), (x[cut:], target(x[cut:]))


def network(width, depth, seed=0):
    """Dense lift to `width`, `depth` split steps, dense head."""
    inputs = keras.Input((1,))
    initializer = keras.initializers.GlorotUniform(seed)
    x = keras.layers.Dense(width, kernel_initializer=initializer)(inputs)
    x = PresnovFlow(
        operators.Dense(2 * width), activation="relu", step_size="learned", steps=depth, seed=seed
    )(x)
    return keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=initializer)(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--redraw", action="store_true", help="only the picture, from the CSV file")
    args = parser.parse_args()

    train, test = data()
    rows = common.read_csv("regression") if args.redraw else []
    runs = () if args.redraw else itertools.product(args.seeds, args.depths, args.widths)
    for seed, depth, width in runs:
        model = network(width, depth, seed)
        result = common.fit(model, train, test, args.epochs, 64, 0.01, seed)
        rows.append({"depth": depth, "width": width, "seed": seed, **result})
        print(rows[-1], flush=True)
    if not args.redraw:
        common.write_csv("regression", rows)
    seeds = common.chosen(rows)["seeds"]
    spread = f"median, least and greatest of {seeds} seeds" if seeds > 1 else "one seed"
    figure = plots.error_figure(
        common.error_curves(rows, "width"),
        "width",
        f"mean squared error, {len(test[0])} test points\n({spread})",
    )
    common.save_figure("regression", figure)
    common.finish(common.chosen(rows))


if __name__ == "__main__":
    main()
