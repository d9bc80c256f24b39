"""Training throughput of an isometric model against a plain network with the same matrix products.

    KERAS_BACKEND=jax python benchmarks/throughput.py [--rounds 5] [--jit dynzoo|auto|on|off]
    KERAS_BACKEND=torch python benchmarks/throughput.py --against OTHER_CHECKOUT [--operator conv]

Both networks train in one process, a few steps in turn, with the same loss, optimizer and batches.
The plain network replaces each gradient step by two Dense layers of the same shapes with a ReLU
between and a skip connection, MaxMin by ReLU, and has neither constraints nor shifts. Both are
compiled and use memory as in dynzoo's own training; ``--jit auto`` and ``--allocator default``
leave it to Keras and to the system. The last line is JSON: images per second of both (median over
the rounds) and their ratio.

`--against` compares two builds of dynzoo instead, each in a process of its own, on one thread: they
take a few steps in turn. The last line is JSON: CPU seconds a step of both (median over the rounds)
and by what this build is faster (median of the ratios).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
from as_trained import compile_as_trained

from dynzoo import backend, training
from dynzoo import layers as dl
from dynzoo.training import allocator, recipes
from dynzoo.training import run as runs


def plain_twin(model):
    """The same matrix products without constraints, shifts and sorting."""
    dense = keras.layers.Dense
    x = inputs = keras.Input(model.input_shape[1:])
    for layer in model.layers[1:]:
        if isinstance(layer, dl.GradientFlow):
            for kernel in layer.kernels:
                inner = dense(kernel.shape[1], activation="relu")(x)
                x = keras.layers.Add()([x, dense(kernel.shape[0])(inner)])
        elif isinstance(layer, dl.OrthonormalDense | dl.UnitRowDense):
            x = dense(layer.units)(x)
        elif isinstance(layer, dl.MaxMin):
            x = keras.layers.ReLU()(x)
        elif isinstance(layer, dl.SpatialShift | dl.MeanShift | dl.PositionOffset):
            continue
        else:
            x = layer(x)
    return keras.Model(inputs, x)


def load_recipe(args):
    recipe = recipes.load(args.recipe)
    if args.operator:
        recipe["architecture"]["operator"] = args.operator
    if args.dtype:
        recipe["training"]["dtype"] = args.dtype
    return recipe


def random_batch(size):
    rng = np.random.default_rng(0)
    return rng.random((size, 32, 32, 3), dtype="float32"), rng.integers(0, 10, size)


def prepare(model, recipe, jit, x, y):
    """Compiles as the recipe trains, and takes the first steps."""
    compile_as_trained(model, recipe, jit)
    for _ in range(2):
        model.train_on_batch(x, y)


def answer_rounds(args, jit):
    """One build's part of `compare_builds`: a line in, CPU seconds of the steps of a round out."""
    recipe = load_recipe(args)
    x, y = random_batch(args.batch_size)
    model = training.build_model(recipe, 10, x.shape[1:])
    prepare(model, recipe, jit, x, y)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        for _ in range(args.steps):
            model.train_on_batch(x, y)
        print(time.process_time() - start, flush=True)


class Build:
    """A process that trains with the dynzoo of one checkout."""

    def __init__(self, checkout):
        path = str(Path(checkout).resolve())
        one = dict.fromkeys(
            ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"
        )
        # XLA has its own pool of threads, as many as there are cores
        flags = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *sys.argv[1:]],
            env={**os.environ, **one, "PYTHONPATH": path, "XLA_FLAGS": flags},
            cwd=path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait(self):
        for line in self.process.stdout:
            if line == "ready\n":
                return
        raise SystemExit("A build ended before its first round: see its error above.")

    def seconds(self):
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def compare_builds(args):
    builds = {"this": Build(Path(__file__).parents[1]), "against": Build(args.against)}
    try:
        for build in builds.values():
            build.wait()
        times = {name: [] for name in builds}
        for _ in range(args.rounds):
            for name, build in builds.items():
                times[name].append(build.seconds() / args.steps)
    finally:
        for build in builds.values():
            build.process.stdin.close()
            build.process.wait()
    return {
        "cpu_seconds_a_step": {n: round(float(np.median(t)), 4) for n, t in times.items()},
        "times_as_fast": round(
            float(np.median(np.array(times["against"]) / np.array(times["this"]))), 3
        ),
    }


def compare_with_plain(args, jit):
    recipe = load_recipe(args)
    x, y = random_batch(args.batch_size)
    isometric = training.build_model(recipe, 10, x.shape[1:])
    models = {"isometric": isometric, "plain": plain_twin(isometric)}
    for model in models.values():
        prepare(model, recipe, jit, x, y)

    rates = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                model.train_on_batch(x, y)
            rates[name].append(args.steps * len(x) / (time.perf_counter() - start))
    median = {name: round(float(np.median(r)), 1) for name, r in rates.items()}
    ratio = float(np.median(np.array(rates["isometric"]) / np.array(rates["plain"])))
    return {"images_per_second": median, "ratio": round(ratio, 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="isometric_tiny_cifar10")
    parser.add_argument("--operator", choices=["shifted", "shifted_pointwise", "conv"])
    parser.add_argument("--dtype", help="in place of the recipe's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="training steps a round")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--jit", default="dynzoo", choices=["dynzoo", "auto", "on", "off"])
    parser.add_argument("--allocator", default="dynzoo", choices=["dynzoo", "default"])
    parser.add_argument("--against", metavar="PATH", help="another checkout of dynzoo")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()

    jit = {"auto": "auto", "on": True, "off": False}.get(args.jit, backend.fit_with_jit())
    kept = args.allocator == "dynzoo" and allocator.keep_freed_memory()
    if args.worker:
        answer_rounds(args, jit)
        return
    compared = compare_builds(args) if args.against else compare_with_plain(args, jit)
    print(
        json.dumps(
            {
                "backend": keras.backend.backend(),
                "hardware": runs.hardware(),
                "recipe": args.recipe,
                "operator": args.operator,
                "batch_size": args.batch_size,
                "jit_compile": jit,
                "freed_memory_kept": kept,
                **compared,
            }
        )
    )


if __name__ == "__main__":
    main()
