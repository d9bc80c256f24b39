"""Exact distances by branch and bound between what is certified and what an attack finds.

    KERAS_BACKEND=torch python benchmarks/exact_radii.py residual|linf [--seconds 300]
        [--images 20] [--time-limit 60] [--rounds 6]

Trains a small network on scikit-learn's 8x8 digits for so many seconds: `residual`, two residual
blocks of rectified units, on images with noise, balls in L2; or `linf`, a dense network on the
points of an attack with three steps, balls in L-infinity. Then, for each of the first test images
that it answers right: the radius of `certify_local(method="crown")`, the distance at which FAB
finds another answer, and an interval that holds the exact distance, from `method="complete"` at
radii between the two, at most `--rounds` of them and `--time-limit` seconds each. The last lines
are a row of the table of docs/local_certificates.md and JSON; the exit code is 1 where the three
are not in this order.
"""

import argparse
import json
import sys
import time

import keras
import numpy as np
import torch
from keras import layers as kl
from sklearn.datasets import load_digits

import dynzoo
from dynzoo.certificates import certify_local

UNITS = {"residual": 12, "linf": 16}
ATTACKED = 0.1  # radius of the points that the `linf` network is trained on


def network(kind):
    """A dense network from 64 pixels to ten logits."""
    keras.utils.set_random_seed(0)
    units = UNITS[kind]
    inputs = keras.Input((64,))
    x = kl.Dense(units, activation="relu")(inputs)
    for _ in range(2):
        y = kl.Dense(units, activation="relu")(x)
        x = kl.Add()([x, kl.Dense(units)(y)]) if kind == "residual" else y
    return keras.Model(inputs, kl.Dense(10)(x), name=kind)


def digits():
    """Training and test images as vectors in [0, 1], and labels."""
    data = load_digits()
    x, y = (data.data / 16).astype("float32"), data.target
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def trained(kind, seconds):
    """The network after so many seconds."""
    model, (x, y) = network(kind), digits()[0]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(2e-3, weight_decay=1e-3)
    model.compile(optimizer, loss, jit_compile=False)
    attack = dynzoo.attacks.PGD(norm="linf", eps=ATTACKED, steps=3, restarts=1)
    rng, start = np.random.default_rng(0), time.monotonic()
    while (passed := time.monotonic() - start) < seconds:
        rows = rng.permutation(len(x))[:256]
        images = x[rows]
        if kind == "residual":
            images = images + rng.normal(0, 0.1, size=images.shape).astype("float32")
        elif passed > 0.05 * seconds:  # the first steps on clean images
            images = attack(model, images, y[rows])
        optimizer.learning_rate = 2e-3 * max(0.02, 1 - passed / seconds)
        model.train_on_batch(images, y[rows])
    return model


def attacked(model, x, y, norm):
    """Distance of the nearest point of each image, inside [0, 1], that the attack finds."""
    points, distances = dynzoo.attacks.FAB(norm=norm, steps=50).minimum_norm(model, x, y)
    wrong = model.predict(points, verbose=0).argmax(axis=1) != y
    return np.where(wrong, distances, np.inf)


def interval(complete, x, low, high, rounds):
    """Radii around the exact distance: the larger is falsified, the smaller certified."""
    middle = 0.97 * high  # an attack is near the exact distance, as a rule
    for _ in range(rounds):
        if not low < middle < high:
            break
        outcome = complete.decide(x[None], middle).outcomes[0]
        if outcome == "certified":
            low = middle
        elif outcome == "falsified":
            high = middle
        if high - low <= 0.03 * high:
            break
        # Where time was over, a smaller radius may be decided.
        middle = (low + (high if outcome != "unknown" else middle)) / 2
    return low, high


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=tuple(UNITS))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    norm = "l2" if args.kind == "residual" else "linf"
    model, (x, y) = trained(args.kind, args.seconds), digits()[1]
    right = model.predict(x, verbose=0).argmax(axis=1) == y
    clean, rows = right.mean(), np.flatnonzero(right)[: args.images]
    print(f"{args.kind}: clean {clean:.1%}, {len(rows)} images, {norm}", flush=True)
    start = time.process_time()
    _, crown = certify_local(model, method="crown", norm=norm).radii(x[rows])
    complete = certify_local(model, method="complete", norm=norm, time_limit=args.time_limit)
    found, ordered = [], True
    attacks = attacked(model, x[rows], y[rows], norm)
    for row, certified, attack in zip(rows, crown, attacks, strict=True):
        low, high = interval(complete, x[row], certified, attack, args.rounds)
        # What the attack broke must not be certified; what crown certifies must not be falsified.
        inside = complete.decide(x[row][None], 0.999 * certified).outcomes[0] == "certified"
        beyond = complete.decide(x[row][None], attack).outcomes[0] != "certified"
        ordered = ordered and bool(inside and beyond and certified <= low <= high <= attack)
        found.append([certified, low, high, attack])
        print("crown {:.4f} <= exact in [{:.4f}, {:.4f}] <= attack {:.4f}".format(*found[-1]),
              flush=True)  # fmt: skip
    seconds = time.process_time() - start
    means = np.mean(found, axis=0)
    print(f"| {args.kind} | {norm} | {clean:.1%} | " + " | ".join(f"{v:.4f}" for v in means)
          + f" | {seconds:.0f} |")  # fmt: skip
    result = {"kind": args.kind, "norm": norm, "clean": float(clean), "ordered": ordered}
    print(json.dumps({**result, "images": [[float(v) for v in r] for r in found]}))
    sys.exit(0 if ordered else 1)


if __name__ == "__main__":
    main()
