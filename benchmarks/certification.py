"""Time of `certify`, and cost of certified radii over `predict`.

    KERAS_BACKEND=jax python benchmarks/certification.py [PRESET] [--images 2000] [--rounds 3]

The last line is JSON: seconds of the first `certify` call after loading, seconds of `predict` and
of `Certificate.radii` on the same images (medians), and their ratio.
"""

import argparse
import json
import time

import keras
import numpy as np

import dynzoo
from dynzoo import runs


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", nargs="?", default="isometric_tiny_cifar10")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    model = dynzoo.from_preset(args.preset)
    start = time.perf_counter()
    certificate = dynzoo.certify(model)
    certify_seconds = time.perf_counter() - start
    x = np.random.default_rng(0).random((args.images, *model.input_shape[1:]), dtype="float32")
    model.predict(x[:512], batch_size=256, verbose=0)
    certificate.radii(x[:512])
    times = {"predict": [], "radii": []}
    for _ in range(args.rounds):
        times["predict"].append(seconds(lambda: model.predict(x, batch_size=256, verbose=0)))
        times["radii"].append(seconds(lambda: certificate.radii(x, batch_size=256)))
    print(
        json.dumps(
            {
                "backend": keras.backend.backend(),
                "hardware": runs.hardware(),
                "lipschitz": certificate.lipschitz,
                "certify_seconds": round(certify_seconds, 3),
                "predict_seconds": round(float(np.median(times["predict"])), 3),
                "radii_seconds": round(float(np.median(times["radii"])), 3),
                "radii_over_predict": round(
                    float(np.median(np.array(times["radii"]) / np.array(times["predict"]))), 3
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
