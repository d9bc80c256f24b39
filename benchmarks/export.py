"""Exported ONNX on onnxruntime against the Keras model that it was made from, on one CPU thread.

    dynzoo --backend torch export isometric_tiny_cifar10 --format onnx --output exported
    OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 KERAS_BACKEND=tensorflow \\
        taskset -c 0 python benchmarks/export.py isometric_tiny_cifar10 exported [--rounds 7]

Both run in one process, in turn, on the same images; Keras by `predict` over several batches, and
by `predict_on_batch`. Each line of output is JSON: images per second of wall clock, images per
second of CPU time (the one to read where the core is shared), medians over the rounds, and how many
times as many images a CPU second onnxruntime does, median over the pairs of a round.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
import onnxruntime

import dynzoo
from dynzoo import backend
from dynzoo.training import run as runs


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name
    return lambda x: made.run(None, {name: x})[0]


def timed(run, x, batch_size):
    """Images per second of wall clock and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(x, batch_size)
    return len(x) / (time.perf_counter() - wall), len(x) / (time.process_time() - cpu)


def in_batches(step):
    def run(x, batch_size):
        for start in range(0, len(x), batch_size):
            step(x[start : start + batch_size])

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset")
    parser.add_argument("exported", type=Path, help="folder that `dynzoo export` wrote")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    model = dynzoo.from_preset(args.preset)
    onnx = session(args.exported / "model.onnx")
    runners = {
        "onnxruntime": in_batches(onnx),
        "predict": lambda x, batch_size: model.predict(x, batch_size=batch_size, verbose=0),
        "predict_on_batch": in_batches(model.predict_on_batch),
    }
    rng = np.random.default_rng(0)
    for batch_size, images in ((1, 64), (32, 512), (256, 512)):
        x = rng.random((images, *model.input_shape[1:]), dtype="float32")
        first = x[:batch_size]
        difference = float(np.max(np.abs(onnx(first) - model.predict_on_batch(first))))
        rates = {name: [] for name in runners}
        for run in runners.values():
            run(x, batch_size)
        for _ in range(args.rounds):
            for name, run in runners.items():
                rates[name].append(timed(run, x, batch_size))
        median = {name: np.median(rate, axis=0) for name, rate in rates.items()}
        own = np.array(rates["onnxruntime"])[:, 1]
        ratio = {
            name: round(float(np.median(own / np.array(rates[name])[:, 1])), 3)
            for name in ("predict", "predict_on_batch")
        }
        print(
            json.dumps(
                {
                    "preset": args.preset,
                    "backend": f"{backend.name()} {backend.version()}",
                    "keras": keras.__version__,
                    "onnxruntime": onnxruntime.__version__,
                    "hardware": runs.hardware(),
                    "batch_size": batch_size,
                    "images_per_second": {k: round(v[0], 1) for k, v in median.items()},
                    "images_per_cpu_second": {k: round(v[1], 1) for k, v in median.items()},
                    "ratio_to": ratio,
                    "largest_logit_difference": difference,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
