"""The same preset on the three backends: logits and certified accuracy.

    python benchmarks/agreement.py [PRESET] [--data FILE.npz] [--limit N]

Runs one process a backend on the preset's test images. The last line is JSON: the largest
difference of a logit, and the spread of the certified accuracy in points.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BACKENDS = ("tensorflow", "jax", "torch")


def worker(args):
    import dynzoo

    model = dynzoo.from_preset(args.preset)
    name = args.data or dynzoo.presets()[args.preset]["dataset"]
    _, (x, y) = dynzoo.data.load(name)
    x, y = x[: args.limit], y[: args.limit]
    labels, radii = dynzoo.certify(model).radii(x)
    certified = [100 * float(np.mean((labels == y) & (radii > e / 255))) for e in (36, 72, 108)]
    np.savez(
        args.worker,
        logits=model.predict(x, batch_size=256, verbose=0),
        certified=certified,
        clean=100 * np.mean(labels == y),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", nargs="?", default="isometric_tiny_cifar10")
    parser.add_argument("--data", help="npz file in place of the preset's data set")
    parser.add_argument("--limit", type=int, help="only the first so many test images")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for backend in BACKENDS:
            target = Path(folder) / f"{backend}.npz"
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--worker", str(target)],
                env={**os.environ, "KERAS_BACKEND": backend},
                check=True,
            )
            with np.load(target) as file:
                results[backend] = {key: file[key] for key in file.files}
    first = results[BACKENDS[0]]
    gap = max(float(np.abs(r["logits"] - first["logits"]).max()) for r in results.values())
    certified = np.array([r["certified"] for r in results.values()])
    print(
        json.dumps(
            {
                "images": len(first["logits"]),
                "largest_logit_difference": gap,
                "clean": {b: round(float(r["clean"]), 3) for b, r in results.items()},
                "certified": {b: r["certified"].round(3).tolist() for b, r in results.items()},
                "certified_spread_points": float(np.ptp(certified, axis=0).max()),
            }
        )
    )


if __name__ == "__main__":
    main()
