"""What an answer costs: latency, throughput and memory of every preset on every backend.

    python benchmarks/latency.py [--presets NAME ...] [--backends torch ...] [--rounds 30]
        [--csv docs/results/latency.csv]
    python docs/make_tables.py     # the table of docs/faq.md

Each preset is measured on each backend in a process of its own, which is kept on one core:
milliseconds for one image by `predict_on_batch`, the same with its certified radius, images per
second in batches of 256 by `predict_on_batch`, and the peak of the process's resident memory after
one image and after the batches. A time is the processor's, and the least of the rounds, so that
other work on the machine changes little; the load average of the minute before is written beside
it. Rows are replaced in the CSV, the others are kept: one backend can be measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "latency.csv"
BACKENDS = ("tensorflow", "jax", "torch")
BATCH = 256
# Single images asked about for each batch, which takes so many times as long.
SINGLES = 20
COLUMNS = (
    "preset",
    "backend",
    "one_image_ms",
    "radius_ms",
    "images_per_second",
    "one_image_mib",
    "batches_mib",
    "load",
    "hardware",
    "versions",
)


def least(function: Any, rounds: int) -> float:
    """CPU seconds of the cheapest call."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    import resource

    status = Path("/proc/self/status")
    if status.is_file():  # there the figure of getrusage begins at that of the parent process
        (line,) = (n for n in status.read_text().splitlines() if n.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measure(preset: str, rounds: int) -> dict[str, Any]:
    """The row of a preset on the backend that runs; nothing else may have run in the process."""
    if hasattr(os, "sched_setaffinity"):  # before a backend counts the cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import keras
    import numpy as np

    import dynzoo
    from dynzoo import backend
    from dynzoo.training import run as runs

    load = os.getloadavg()[0]
    model = dynzoo.from_preset(preset)
    rng = np.random.default_rng(0)
    x = rng.random((BATCH, *model.input_shape[1:]), dtype="float32")
    one = x[:1]

    model.predict_on_batch(one)
    one_seconds = least(lambda: model.predict_on_batch(one), SINGLES * rounds)
    one_mib = peak_mib()
    model.predict_on_batch(x)
    batch_seconds = least(lambda: model.predict_on_batch(x), rounds)
    batches_mib = peak_mib()
    radius_ms: float | None = None
    try:
        certificate = dynzoo.certify(model)
    except dynzoo.certificates.UncertifiableLayerError:
        pass  # what is smoothed has no radius of its own
    else:
        certificate.radii(one)
        radius_ms = round(1000 * least(lambda: certificate.radii(one), SINGLES * rounds), 2)
    return {
        "preset": preset,
        "backend": backend.name(),
        "one_image_ms": round(1000 * one_seconds, 2),
        "radius_ms": radius_ms,
        "images_per_second": round(BATCH / batch_seconds),
        "one_image_mib": round(one_mib),
        "batches_mib": round(batches_mib),
        "load": round(load, 1),
        "hardware": runs.hardware(),
        "versions": f"keras {keras.__version__}, {backend.name()} {backend.version()}",
    }


def measured_apart(preset: str, backend: str, rounds: int) -> dict[str, Any]:
    """The row of a process that does nothing else.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    command = [sys.executable, __file__, "--alone", preset, "--rounds", str(rounds)]
    environment = dict(os.environ, KERAS_BACKEND=backend)
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The old rows, those of the same preset and backend replaced, by preset and backend."""
    rows = {(row["preset"], row["backend"]): row for row in [*old, *new]}
    return [rows[key] for key in sorted(rows)]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = sorted(path.parent.name for path in (ROOT / "pretrained").glob("*/config.json"))
    parser.add_argument("--presets", nargs="+", default=known, choices=known, metavar="NAME")
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--alone", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.alone:
        print(json.dumps(measure(args.alone, args.rounds)))
        return

    from dynzoo.utils.csv_text import csv_text
    from dynzoo.utils.files import write_atomically

    for preset in args.presets:
        for backend in args.backends:
            row = measured_apart(preset, backend, args.rounds)
            print(json.dumps(row), flush=True)
            rows = merged(read(args.csv), [row])
            write_atomically(args.csv, csv_text(COLUMNS, rows).encode())


if __name__ == "__main__":
    main()
