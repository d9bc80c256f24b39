"""What recording a pass on PyTorch saves: CPU milliseconds with and without, side by side.

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/recorded.py [PRESET ...] [--rounds 7]

For batches of 1, 32 and 256 images: `model.predict` of Keras; `predict_logits`, which attacks,
reports and certificates ask; its plain call of the model, whole batches at once as before; and a
loss with its gradient, recorded and plain. Medians of CPU milliseconds over alternating rounds in
one process, so that what else the machine does disturbs all alike. The last line is JSON.
"""

import argparse
import functools
import json
import time

import keras
import numpy as np
import torch

import dynzoo
from dynzoo import backend
from dynzoo.attacks.passes import loss_and_gradient
from dynzoo.inference import passes
from dynzoo.inference.recorded import Recorded
from dynzoo.training import run as runs

PRESETS = ("isometric_tiny_cifar10", "resnet_cifar10")


def medians(functions, rounds):
    """CPU milliseconds of each function, which take turns."""
    for function in functions.values():
        for _ in range(10):  # past the calls before a recording, and those that check it
            function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: round(float(np.median(values)), 2) for name, values in times.items()}


def measure(model, x, rounds):
    length = len(x)
    y = keras.ops.convert_to_tensor((np.arange(length) % model.output_shape[-1]).astype("int32"))
    images = keras.ops.convert_to_tensor(x)
    forward = backend.inference(model)
    gradient = loss_and_gradient(model, "dlr")
    (plain,) = [
        entry.plain
        for key, entry in passes._COMPILED[model].items()
        if isinstance(entry, Recorded) and key[0] == ("gradient", "dlr", False)
    ]

    def call():
        with torch.no_grad():
            return backend.to_numpy(forward([], keras.ops.convert_to_tensor(x)))

    functions = {
        "model.predict": functools.partial(model.predict, x, batch_size=256, verbose=0),
        "plain": call,
        "recorded": functools.partial(passes.predict_logits, model, x),
        "plain gradient": functools.partial(plain, [], images, y, y),
        "recorded gradient": functools.partial(gradient, images, y, y),
    }
    np.testing.assert_array_equal(functions["recorded"](), call())
    found = medians(functions, rounds)
    found["times model.predict"] = round(found["model.predict"] / found["recorded"], 2)
    found["times plain"] = round(found["plain"] / found["recorded"], 2)
    found["times plain gradient"] = round(found["plain gradient"] / found["recorded gradient"], 2)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=PRESETS)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {"hardware": runs.hardware(), "torch": torch.__version__, "threads": 1}
    for name in args.presets:
        model = dynzoo.from_preset(name)
        x = np.random.default_rng(0).random((256, *model.input_shape[1:]), dtype="float32")
        result[name] = {}
        for length in (1, 32, 256):
            result[name][length] = measure(model, x[:length], args.rounds)
            print(name, length, result[name][length], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
