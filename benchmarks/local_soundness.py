"""Tries to refute local bounds by exact distances of random small networks.

    KERAS_BACKEND=torch python benchmarks/local_soundness.py [--networks 10000] [--start SEED]
        [--seconds S] [--output FILE.json]

Dense, leaky, residual, convolutional and pooling networks of four to seven rectified units, with
Gaussian weights and wicked ones: units that switch together, are dead, or lie with their kink on
the image, answers that nearly tie, layers scaled by a thousand either way, numbers of few bits. The
distance to the nearest other answer is that of the nearest of all points at which it can lie
(tests/nearest_changes.py). No bound (plain, crown, alpha-crown, on balls of that size and larger;
parts of a ball; decisions) may be above it, in L2 or L-infinity; one that is counts as refuted
where a point inside has another answer in rational arithmetic. A network's number is its seed, so
that a run in parts (`--start`) is the same run. The exit code is 1 if anything is refuted. The last
line is JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from local_soundness_checks import Found, search

from dynzoo.training import run as runs
from dynzoo.utils.files import write_atomically


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--output", help="also write the result to this JSON file")
    args = parser.parse_args()
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    start, cpu, found = time.perf_counter(), time.process_time(), Found()
    told = 0
    for _ in search(args.start, args.networks, found):
        for text in found.refuted[told:]:
            print(f"REFUTED {text}", flush=True)
        told = len(found.refuted)
        if found.networks % 200 == 0:
            seconds = time.process_time() - cpu
            print(f"{found.networks} networks, {seconds:.0f} CPU s, {told} refuted", flush=True)
        if time.perf_counter() - start > args.seconds:
            break
    shares = {key: [len(v), round(float(np.mean(v)), 4), round(float(np.max(v)), 9)]
              for key, v in sorted(found.shares.items())}  # fmt: skip
    for key, (count, mean, most) in shares.items():
        print(f"| {key} | {count:,} | {mean:.3f} | {most:.7f} |")
    result = {
        "backend": keras.backend.backend(),
        "hardware": runs.hardware(),
        "seeds": [args.start, args.start + found.networks],
        "networks": found.networks,
        "checked": found.checked,
        "refuted": found.refuted,
        "open": found.open,
        "count_mean_largest": shares,
        "cpu_seconds": round(time.process_time() - cpu),
    }
    if args.output:
        write_atomically(args.output, json.dumps(result, indent=1).encode() + b"\n")
    print(json.dumps(result))
    sys.exit(1 if found.refuted else 0)


if __name__ == "__main__":
    main()
