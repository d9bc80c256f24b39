"""Learns the time-0.05 flow of x' = sin(x)^3 + x^3 in four dimensions with `PresnovFlow`.

    python examples/vector_field.py [--epochs 100]

1,000 starts in [-1, 1]^4, 90 % for training; the published network of this kind ends at a mean
squared error of 2.75e-5 (arXiv 2210.02373, appendix; figure from the authors' notebook). Writes
`docs/results/vector_field.csv` (error against width and depth) and a picture of it.
"""

import argparse

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
    args = parser.parse_args()

    train, test = data()
    rows = []
    for depth in args.depths:
        for width in args.widths:
            result = common.fit(network(width, depth), train, test, args.epochs, 64, 0.05)
            rows.append({"depth": depth, "width": width, **result})
            print(rows[-1], flush=True)
    common.write_csv("vector_field", rows)
    figure = plots.error_figure(
        {f"{d} steps" if d > 1 else "1 step": [
            (r["width"], r["test_mse"]) for r in rows if r["depth"] == d
        ] for d in args.depths},
        "hidden units", "mean squared error, test", published=PUBLISHED,
    )  # fmt: skip
    common.save_figure("vector_field", figure)
    best = min(rows, key=lambda r: r["test_mse"])
    common.finish({"best": best, "published_mse": PUBLISHED})


if __name__ == "__main__":
    main()
