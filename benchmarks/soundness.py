"""Tries to break certificates: strong PGD inside each image's own certified radius.

    python benchmarks/soundness.py [PRESET] [--data FILE.npz] [--limit N] [--steps 100]
        [--restarts 1] [--workers 1] [--output FILE.json]

Every test image whose prediction is certified (right or wrong) is attacked with L2 PGD on the
margin, inside its own radius: images are sorted by radius, and each batch is attacked with the
smallest radius in it. A single success would refute the certificate; the exit code is then 1.
With --workers N, so many processes share the batches. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import dynzoo
from dynzoo.training import run as runs
from dynzoo.utils.files import write_atomically


def attack(args) -> dict:
    """Attacks every `workers`-th batch, from number `worker` on."""
    model = dynzoo.from_preset(args.preset)
    name = args.data or dynzoo.presets()[args.preset]["dataset"]
    _, (x, _) = dynzoo.data.load(name)
    x = x[: args.limit]
    labels, radii = dynzoo.certify(model).radii(x)
    order = np.argsort(radii, kind="stable")
    order = order[radii[order] > 0]
    batches = range(0, len(order), args.batch_size)[args.worker :: args.workers]
    attacked, broken, closest = 0, [], 0.0
    for begin in batches:
        rows = order[begin : begin + args.batch_size]
        pgd = dynzoo.attacks.PGD(
            norm="l2",
            eps=float(radii[rows[0]]),
            steps=args.steps,
            restarts=args.restarts,
            loss="margin",
            batch_size=args.batch_size,
        )
        adversarial = pgd(model, x[rows], labels[rows], indices=rows)
        found = model.predict(adversarial, batch_size=args.batch_size, verbose=0).argmax(axis=1)
        broken += [int(i) for i in rows[found != labels[rows]]]
        moved = (adversarial.astype("float64") - x[rows]).reshape(len(rows), -1)
        closest = max(closest, float((np.linalg.norm(moved, axis=1) / radii[rows]).max()))
        attacked += len(rows)
        print(f"worker {args.worker}: {attacked} attacked, {len(broken)} broken", flush=True)
    return {
        "preset": args.preset,
        "backend": keras.backend.backend(),
        "hardware": runs.hardware(),
        "images": len(x),
        "certified": len(order),
        "attacked": attacked,
        "steps": args.steps,
        "restarts": args.restarts,
        "largest_distance_over_radius": closest,
        "broken": broken,
    }


def shared(args) -> dict:
    """The same by several processes, one a core, and their results put together."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.json" for i in range(args.workers)]
        command = [sys.executable, __file__, *sys.argv[1:]]
        processes = [
            subprocess.Popen([*command, "--worker", str(i), "--output", str(file)])
            for i, file in enumerate(files)
        ]
        for process in processes:
            process.wait()
        results = [json.loads(file.read_text()) for file in files]
    return {
        **results[0],
        "attacked": sum(r["attacked"] for r in results),
        "largest_distance_over_radius": max(r["largest_distance_over_radius"] for r in results),
        "broken": sorted(i for r in results for i in r["broken"]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", nargs="?", default="isometric_tiny_cifar10")
    parser.add_argument("--data", help="npz file in place of the preset's data set")
    parser.add_argument("--limit", type=int, help="only the first so many test images")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", help="also write the result to this JSON file")
    args = parser.parse_args()

    start = time.perf_counter()
    if args.worker is None and args.workers > 1:
        result = shared(args)
    else:
        args.worker = args.worker or 0
        result = attack(args)
    result["seconds"] = round(time.perf_counter() - start)
    if args.output:
        write_atomically(args.output, json.dumps(result, indent=1).encode() + b"\n")
    print(json.dumps(result))
    sys.exit(1 if result["broken"] else 0)


if __name__ == "__main__":
    main()
