"""What cutting the windows of small images out saves on JAX: CPU milliseconds with and without.

    KERAS_BACKEND=jax XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python benchmarks/small_images.py
        [PRESET ...] [--batch 32] [--rounds 5]

For each preset: logits, and a loss with its gradient, as attacks ask for them and with the
convolutions that the model has. Medians of CPU milliseconds an image over alternating rounds in one
process, so that what else the machine does disturbs all alike. The last line is JSON.
"""

import argparse
import json
import time
from unittest import mock

import jax
import keras
import numpy as np

import dynzoo
from dynzoo.attacks.passes import loss_and_gradient
from dynzoo.inference import passes
from dynzoo.training import run as runs

PRESETS = ("resnet_cifar10", "convection_diffusion_cifar10")


def asked(name, x, y):
    """The two passes of a model of its own, each compiled."""
    model = dynzoo.from_preset(name)
    gradient = loss_and_gradient(model, "margin")
    logits = passes.compiled(model, "logits", passes.logits_of)
    functions = {"logits": lambda: logits(x), "gradient": lambda: gradient(x, y, y)[2]}
    for function in functions.values():
        jax.block_until_ready(function())
    return functions


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=PRESETS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    results = {}
    for name in args.presets:
        shape = (args.batch, *dynzoo.from_preset(name).input_shape[1:])
        x = keras.ops.convert_to_tensor(np.random.default_rng(0).random(shape, dtype="float32"))
        y = keras.ops.zeros(args.batch, "int32")
        functions = {f"{key}, cut out": f for key, f in asked(name, x, y).items()}
        with mock.patch.object(passes, "with_windows_cut_out", lambda function: function):
            functions |= {f"{key}, as it is": f for key, f in asked(name, x, y).items()}
        times = {key: [] for key in functions}
        for _ in range(args.rounds):
            for key, function in functions.items():
                start = time.process_time()
                jax.block_until_ready(function())
                times[key].append(1e3 * (time.process_time() - start) / args.batch)
        results[name] = {key: round(float(np.median(t)), 2) for key, t in sorted(times.items())}
        print(name, results[name], flush=True)
    about = {"batch": args.batch, "rounds": args.rounds, "hardware": runs.hardware()}
    print(json.dumps({**about, "jax": jax.__version__, "milliseconds an image": results}))


if __name__ == "__main__":
    main()
