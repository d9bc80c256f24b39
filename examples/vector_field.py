"""Learns the time-0.05 flow of x' = sin(x)^3 + x^3 in four dimensions with `PresnovFlow`.

    python examples/vector_field.py [--epochs 100] [--seeds 0 1 2]

1,000 starts in [-1, 1]^4, 90 % for training; the published network of this kind ends at a mean
squared error of 2.75e-5 (arXiv 2210.02373, appendix; figure from the authors' notebook). Writes
`docs/results/vector_field.csv` (error against width and depth) and a picture of it.
"""

import argparse
import itertools

import common
import keras
import numpy as np
from scipy.integrate import solve_ivp

from dynzoo import operators, plots
from dynzoo.layers.presnov_flow import PresnovFlow

TIME = 0.05
PUBLISHED = 2.75e-5


def data(samples=1000, seed=0):
    """Pairs (x(0), x(TIME)), solved to 1e-11, split 90 to 10."""
    x = np.random.default_rng(seed).uniform(-1, 1, (samples, 4))
    field = lambda _, z: np.sin(z) ** 3 + z**3  # noqa: E731
    y = solve_ivp(field, (0, TIME), x.ravel(), rtol=1e-11, atol=1e-12).y[:, -1].reshape(x.shape)
    cut = int(0.9 * samples)
    x, y = x.astype("float32"), y.astype("float32")
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def network(width, depth, seed=0):
    """`depth` split steps of a gradient and a sphere-preserving field, `width` hidden units."""
    inputs = keras.Input((4,))
    flow = PresnovFlow(
        operators.Dense(width), activation="relu", step_size=TIME / depth, steps=depth, seed=seed
    )
    return keras.Model(inputs, flow(inputs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    train, test = data()
    rows = []
    for seed, depth, width in itertools.product(args.seeds, args.depths, args.widths):
        model = network(width, depth, seed)
        result = common.fit(model, train, test, args.epochs, 64, 0.05, seed)
        rows.append({"depth": depth, "width": width, "seed": seed, **result})
        print(rows[-1], flush=True)
    common.write_csv("vector_field", rows)
    figure = plots.error_figure(
        common.error_curves(rows, "width"),
        "hidden units",
        f"mean squared error, {len(test[0])} test points\n"
        f"(median, least and greatest of {len(args.seeds)} seeds)",
        published=PUBLISHED,
    )
    common.save_figure("vector_field", figure)
    common.finish({**common.chosen(rows), "published_mse": PUBLISHED})


if __name__ == "__main__":
    main()
