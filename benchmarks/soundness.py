"""Tries to break certificates: strong PGD inside each image's own certified radius.

    python benchmarks/soundness.py [PRESET] [--data FILE.npz] [--limit N] [--steps 100]
        [--restarts 1] [--output FILE.json]

Every test image whose prediction is certified (right or wrong) is attacked with L2 PGD on the
margin, inside its own radius: images are sorted by radius, and each batch is attacked with the
smallest radius in it. A single success would refute the certificate; the exit code is then 1.
The last line is JSON.
"""

import argparse
import json
import sys
import time

import keras
import numpy as np

import dynzoo
from dynzoo import checkpoints, runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", nargs="?", default="isometric_small_cifar10")
    parser.add_argument("--data", help="npz file in place of the preset's data set")
    parser.add_argument("--limit", type=int, help="only the first so many test images")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--output", help="also write the result to this JSON file")
    args = parser.parse_args()

    model = dynzoo.from_preset(args.preset)
    name = args.data or dynzoo.presets()[args.preset]["dataset"]
    _, (x, _) = dynzoo.data.load(name)
    x = x[: args.limit]
    labels, radii = dynzoo.certify(model).radii(x)
    order = np.argsort(radii, kind="stable")
    order = order[radii[order] > 0]
    start = time.perf_counter()
    broken, closest = [], 0.0
    for begin in range(0, len(order), args.batch_size):
        rows = order[begin : begin + args.batch_size]
        attack = dynzoo.attacks.PGD(
            norm="l2",
            eps=float(radii[rows[0]]),
            steps=args.steps,
            restarts=args.restarts,
            loss="margin",
            batch_size=args.batch_size,
        )
        adversarial = attack(model, x[rows], labels[rows], indices=rows)
        found = model.predict(adversarial, batch_size=args.batch_size, verbose=0).argmax(axis=1)
        broken += [int(i) for i in rows[found != labels[rows]]]
        moved = (adversarial.astype("float64") - x[rows]).reshape(len(rows), -1)
        closest = max(closest, float((np.linalg.norm(moved, axis=1) / radii[rows]).max()))
        print(f"{begin + len(rows)}/{len(order)} attacked, {len(broken)} broken", flush=True)
    result = {
        "preset": args.preset,
        "backend": keras.backend.backend(),
        "hardware": runs.hardware(),
        "images": len(x),
        "certified_and_attacked": len(order),
        "steps": args.steps,
        "restarts": args.restarts,
        "largest_distance_over_radius": closest,
        "broken": broken,
        "seconds": round(time.perf_counter() - start),
    }
    if args.output:
        checkpoints.write_atomically(args.output, json.dumps(result, indent=1).encode() + b"\n")
    print(json.dumps(result))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
