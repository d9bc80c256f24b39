"""Training throughput of an isometric model against a plain network with the same matrix products.

    KERAS_BACKEND=jax python benchmarks/throughput.py [--rounds 5] [--jit dynzoo|auto|on|off]

Both networks train in one process, a few steps in turn, with the same loss, optimizer and batches.
The plain network replaces each gradient step by two Dense layers of the same shapes with a ReLU
between and a skip connection, MaxMin by ReLU, and has neither constraints nor shifts. Both are
compiled and use memory as in dynzoo's own training; ``--jit auto`` and ``--allocator default``
leave it to Keras and to the system. The last line is JSON: images per second of both (median over
the rounds) and their ratio.
"""

import argparse
import json
import time

import keras
import numpy as np

from dynzoo import backend, training
from dynzoo import layers as dl
from dynzoo.training import allocator, recipes
from dynzoo.training import builders as optimization
from dynzoo.training import run as runs
from dynzoo.training.epoch_values import at_epoch


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="isometric_tiny_cifar10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="training steps a round")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--jit", default="dynzoo", choices=["dynzoo", "auto", "on", "off"])
    parser.add_argument("--allocator", default="dynzoo", choices=["dynzoo", "default"])
    args = parser.parse_args()

    jit = {"auto": "auto", "on": True, "off": False}.get(args.jit, backend.fit_with_jit())
    kept = args.allocator == "dynzoo" and allocator.keep_freed_memory()
    recipe = recipes.load(args.recipe)
    rng = np.random.default_rng(0)
    x = rng.random((args.batch_size, 32, 32, 3), dtype="float32")
    y = rng.integers(0, 10, args.batch_size)
    isometric = training.build_model(recipe, 10, x.shape[1:])
    models = {"isometric": isometric, "plain": plain_twin(isometric)}
    settings = recipe["training"]
    for model in models.values():
        optimizer = dict(settings["optimizer"], learning_rate=1e-3, adam_learning_rate=1e-3)
        model.compile(
            optimizer=optimization.make_optimizer(optimizer, 1000, {"warmup": 0.0}),
            loss=optimization.make_loss(at_epoch(settings["loss"], 0)),
            jit_compile=jit,
        )
        for _ in range(2):
            model.train_on_batch(x, y)

    rates = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                model.train_on_batch(x, y)
            rates[name].append(args.steps * len(x) / (time.perf_counter() - start))
    median = {name: round(float(np.median(r)), 1) for name, r in rates.items()}
    ratio = float(np.median(np.array(rates["isometric"]) / np.array(rates["plain"])))
    print(
        json.dumps(
            {
                "backend": keras.backend.backend(),
                "hardware": runs.hardware(),
                "batch_size": args.batch_size,
                "jit_compile": jit,
                "freed_memory_kept": kept,
                "images_per_second": median,
                "ratio": round(ratio, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
