"""Learns the time-1 map of the SIR epidemic model with a network that cannot lose a person.

    python examples/sir.py [--epochs 150] [--seeds 0 1 2]

$y_1' = -R_0 y_1 y_2$, $y_2' = R_0 y_1 y_2 - y_2$, $y_3' = y_2$ on the simplex; 1,000 starts, 90 %
for training; lift by zeros, mass-preserving flow, projection that spreads what it drops. The
published network of this kind reaches a test error of 3.35e-6 (arXiv 2210.02373; figure from the
authors' notebook). Writes `docs/results/sir.csv` and a picture of a predicted epidemic.
"""

import argparse
import itertools

import common
import keras
import numpy as np
from scipy.integrate import solve_ivp

from dynzoo import operators, plots
from dynzoo.layers.mass_preserving_flow import MassPreservingFlow, SumLift, SumProjection

R0 = 2.5
PUBLISHED = 3.35e-6


def field(_, y):
    y = y.reshape(-1, 3)
    infected = R0 * y[:, 0] * y[:, 1]
    return np.stack([-infected, infected - y[:, 1], y[:, 1]], axis=1).ravel()


def flow_map(y, time=1.0):
    """The exact map, to 1e-11."""
    return solve_ivp(field, (0, time), y.ravel(), rtol=1e-11, atol=1e-12).y[:, -1].reshape(-1, 3)


def data(samples=1000, seed=0):
    """Pairs (y(0), y(1)), uniform on the simplex, split 90 to 10."""
    x = np.random.default_rng(seed).dirichlet(np.ones(3), samples)
    y = flow_map(x)
    cut = int(0.9 * samples)
    x, y = x.astype("float32"), y.astype("float32")
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def network(width=10, depth=3, hidden=50, seed=0):
    """Lift to `width`, `depth` steps that keep the sum, projection back to three numbers."""
    inputs = keras.Input((3,))
    x = SumLift(width)(inputs)
    x = MassPreservingFlow(
        operators.Dense(hidden), activation="relu", step_size="learned", steps=depth, seed=seed
    )(x)
    return keras.Model(inputs, SumProjection(3)(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    train, test = data()
    rows, models = [], []
    for seed, depth in itertools.product(args.seeds, args.depths):
        model = network(depth=depth, seed=seed)
        result = common.fit(model, train, test, args.epochs, 32, 0.01, seed)
        sums = np.asarray(model.predict(test[0], verbose=0), dtype=np.float64).sum(axis=1)
        before = test[0].astype(np.float64).sum(axis=1)
        change = float(np.abs(sums - before).max())
        about = {"depth": depth, "width": 10, "seed": seed}
        rows.append({**about, **result, "largest_change_of_sum": change})
        models.append(model)
        print(rows[-1], flush=True)
    common.write_csv("sir", rows)
    best = int(np.argmin([row["train_mse"] for row in rows]))  # not by the test

    start = np.array([[0.95, 0.05, 0.0], [0.6, 0.4, 0.0], [0.3, 0.2, 0.5]])
    exact, learned = [start], [start.astype("float32")]
    for _ in range(12):
        exact.append(flow_map(exact[-1]))
        learned.append(models[best].predict(learned[-1], verbose=0))
    figure = plots.portrait_figure(
        {"SIR, exact": np.stack(exact), "learned": np.stack(learned)},
        xlabel="susceptible share",
        ylabel="infected share",
    )
    common.save_figure("sir", figure)
    common.finish({**common.chosen(rows), "published_mse": PUBLISHED})


if __name__ == "__main__":
    main()
