"""What distorted training images cost: made on the host, and as a part of the training step.

    KERAS_BACKEND=jax python benchmarks/augmentation.py [--recipe NAME] [--steps 8] [--rounds 3]

First the batches alone, in images per second of one process: crops and flips, then also what the
recipe's last epoch has of rotation, zoom and color jitter. Then training steps of the recipe's
network in turn, with distortions on the host, in the step (as `dynzoo train` has them), and
without. The last line is JSON; its numbers are medians over the rounds.
"""

import argparse
import json
import time

import keras
import numpy as np

from dynzoo import backend, training
from dynzoo.augmentation.batches import DISTORTIONS, Augmented
from dynzoo.augmentation.on_device import distorted_model
from dynzoo.training import allocator, recipes
from dynzoo.training import builders as optimization
from dynzoo.training import run as runs
from dynzoo.training.epoch_values import at_epoch

WARM_UP = 2  # steps before the clock starts: compilation


class _Clock(keras.callbacks.Callback):
    """Seconds of the steps after the first ones, the device's work included."""

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])
        if batch == WARM_UP - 1:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - self.start if batch >= WARM_UP else 0.0


def batches_per_second(batches):
    batches[0]
    start = time.perf_counter()
    for i in range(len(batches)):
        batches[i]
    return len(batches) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="isometric_small_cifar10")
    parser.add_argument("--steps", type=int, default=8, help="training steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    allocator.keep_freed_memory()
    recipe = recipes.load(args.recipe)
    settings = recipe["training"]
    section = at_epoch(recipe["data"], settings["epochs"] - 1)
    distortions = {key: section[key] for key in DISTORTIONS}
    size = settings["batch_size"]
    count = size * (args.steps + WARM_UP)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count)

    def batches(**arguments):
        padding, flip = section["crop_padding"], section["flip"]
        return Augmented(x, y, size, padding=padding, flip=flip, **arguments)

    network = training.build_model(recipe, 10, x.shape[1:])
    arms = {
        "host": (network, batches(**distortions)),
        "step": (distorted_model(network), batches(**distortions, distort=False)),
        "none": (network, batches()),
    }
    rate = {**settings["optimizer"], "learning_rate": 1e-3}
    for model in (network, arms["step"][0]):
        model.compile(
            optimizer=optimization.make_optimizer(rate, 1000, {"warmup": 0.0}),
            loss=optimization.make_loss(at_epoch(settings["loss"], 0)),
            jit_compile=backend.fit_with_jit(),
        )
    alone = {"crops": arms["none"][1], "distorted": arms["host"][1]}
    images = {name: [] for name in alone}
    milliseconds = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name, made in alone.items():
            images[name].append(size * batches_per_second(made))
        for name, (model, made) in arms.items():
            clock = _Clock()
            model.fit(made, callbacks=[clock], shuffle=False, verbose=0)
            milliseconds[name].append(1000 * clock.seconds / args.steps)
    result = {
        "backend": backend.name(),
        "hardware": runs.hardware(),
        "recipe": recipe["name"],
        "batch": size,
        "host_images_per_second": {k: round(np.median(v)) for k, v in images.items()},
        "milliseconds_a_step": {k: round(np.median(v), 1) for k, v in milliseconds.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
