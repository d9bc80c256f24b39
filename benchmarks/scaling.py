"""A step of data-parallel training against the number of devices: measured terms and a model.

    python benchmarks/scaling.py [--recipe NAME] [--rounds 5] [--write docs/results/scaling.csv]
    python benchmarks/scaling.py --check 2
    python benchmarks/scaling.py --reach --data cifar10.npz [--images 200] [--seconds 60]

Measures the seconds of a training step on one device at several batch sizes and fits
t(b) = fixed + image * b: what each device does whatever its share (optimizer, constraints, calls),
and what an image costs. Counts the bytes of weights, gradients and optimizer. The model adds a ring
all-reduce over a link of given bandwidth and latency, neither of which is measured here.
`--check N` times real steps on N virtual devices of this CPU, which share its cores: N shares then
cost N * fixed + image * B and no link. ``--reach`` measures what two real processes reach beside
one instead: see ``benchmarks/reach.py``. The last line is JSON.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
import reach as reaching
from as_trained import compile_as_trained

from dynzoo import training
from dynzoo.backend import fit_with_jit
from dynzoo.training import recipes
from dynzoo.training import run as runs
from dynzoo.training.distribution import OneDevice, Replicas
from dynzoo.utils.csv_text import csv_text

# Name: (bytes a second each way, seconds of latency of a message). From data sheets: NVLink 4 at
# 900 GB/s both ways; PCIe 4.0 x16; 100 and 10 Gbit/s Ethernet. Latencies are orders of magnitude.
LINKS = {
    "NVLink 4": (450e9, 5e-6),
    "PCIe 4.0 x16": (32e9, 1e-5),
    "100 Gbit/s Ethernet": (12.5e9, 3e-5),
    "10 Gbit/s Ethernet": (1.25e9, 5e-5),
}
DEVICES = (1, 2, 4, 8, 16, 32)


def all_reduce(devices, size, bandwidth, latency):
    """Seconds of a ring: each device sends 2 (n - 1) parts of size / n."""
    return 2 * (devices - 1) * (size / devices / bandwidth + latency)


def step(fixed, image, batch, devices, size, link):
    return fixed + image * batch / devices + all_reduce(devices, size, *LINKS[link])


def compiled(recipe, replicas):
    with replicas.scope():
        model = training.build_model(recipe, 10, (32, 32, 3))
        compile_as_trained(model, recipe, fit_with_jit())
        model.optimizer.build(model.trainable_variables)
    return model


class Timer(keras.callbacks.Callback):
    """Seconds of each batch, by the clock that it is given."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.seconds = clock, []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = self.clock()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # waits for the step
        self.seconds.append(self.clock() - self.start)


def seconds_of_step(model, replicas, batch, rounds, clock):
    """Median; the first two steps, which compile, are left out."""
    rng = np.random.default_rng(0)
    count = (rounds + 2) * batch
    x = rng.random((count, 32, 32, 3), dtype="float32")
    timer = Timer(clock)
    with replicas.scope():
        model.fit(x, rng.integers(0, 10, count), batch_size=batch, verbose=0, callbacks=[timer])
    return float(np.median(timer.seconds[2:]))


def seconds_of_update(model, rounds, clock):
    """Median of the optimizer's step alone, which data-parallel PyTorch processes divide."""
    import torch

    gradients = [torch.randn(v.shape) * 1e-3 for v in model.trainable_variables]
    seconds = []
    with torch.no_grad():
        for _ in range(rounds + 2):
            start = clock()
            model.optimizer.apply(gradients, model.trainable_variables)
            seconds.append(clock() - start)
    return float(np.median(seconds[2:]))


def size_of(variables):
    return sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in variables)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="isometric_tiny_cifar10")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-seconds", action="store_true", help="of the process, not the clock")
    parser.add_argument("--check", type=int, metavar="N", help="steps on N virtual CPU devices")
    parser.add_argument("--write", type=Path, metavar="CSV", help="the model's table")
    parser.add_argument("--reach", action="store_true", help="two processes beside one")
    parser.add_argument("--data", type=Path, metavar="NPZ", help="CIFAR-10, for --reach")
    parser.add_argument("--images", type=int, default=200, help="of an evaluation, for --reach")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a pilot, for --reach")
    parser.add_argument("--parts", nargs="+", choices=reaching.PARTS, default=reaching.PARTS)
    args = parser.parse_args()
    if args.reach:
        if args.data is None:
            parser.error("--reach needs --data")
        settings = (args.images, args.seconds, args.rounds, args.parts)
        print(json.dumps(reaching.reach(args.data, *settings)))
        return
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    recipe = recipes.load(args.recipe)
    batch = recipe["training"]["batch_size"]

    replicas = Replicas(args.check) if args.check else OneDevice()
    one = OneDevice()
    model = compiled(recipe, one)
    measured = {b: seconds_of_step(model, one, b, args.rounds, clock) for b in args.batch_sizes}
    image, fixed = (float(v) for v in np.polyfit(list(measured), list(measured.values()), 1))
    gradients = size_of(model.trainable_variables)
    result = {
        "recipe": args.recipe,
        "backend": keras.backend.backend(),
        "hardware": runs.hardware(),
        "clock": "cpu" if args.cpu_seconds else "wall",
        "step_seconds": {b: round(s, 4) for b, s in measured.items()},
        "fixed_seconds": round(fixed, 4),
        "image_seconds": round(image, 6),
        "update_seconds": None,  # measured where processes divide it
        "shapes": [list(v.shape) for v in model.trainable_variables],
        "weights_bytes": size_of(model.weights),
        "gradients_bytes": gradients,
        "optimizer_bytes": size_of(model.optimizer.variables),
    }
    if keras.backend.backend() == "torch":
        result["update_seconds"] = round(seconds_of_update(model, args.rounds, clock), 4)
    if args.check:
        spread = compiled(recipe, replicas)
        seconds = seconds_of_step(spread, replicas, batch, args.rounds, clock)
        shares = args.check * fixed + image * batch
        result["check"] = {
            "devices": args.check,
            "step_seconds": round(seconds, 4),
            "sum_of_shares": round(shares, 4),
        }
    rows = []
    for link in LINKS:
        for devices in DEVICES:
            total = step(fixed, image, batch, devices, gradients, link)
            rows.append(
                {
                    "link": link,
                    "devices": devices,
                    "images_a_device": batch / devices,
                    "fixed_ms": round(1e3 * fixed, 2),
                    "images_ms": round(1e3 * image * batch / devices, 2),
                    "all_reduce_ms": round(1e3 * all_reduce(devices, gradients, *LINKS[link]), 3),
                    "step_ms": round(1e3 * total, 2),
                    "speed_up": round((fixed + image * batch) / total, 2),
                }
            )
            print("{link:<20} {devices:>3} devices  step {step_ms:>8} ms".format(**rows[-1]))
    if args.write:
        args.write.write_text(csv_text(list(rows[0]), rows))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
