"""Time of `certify`, and cost of certified radii over `predict`.

    KERAS_BACKEND=jax python benchmarks/certification.py [PRESET] [--images 2000] [--rounds 3]

The last line is JSON: seconds of the first `certify` call after loading, seconds of `predict` and
of `Certificate.radii` on the same images (medians), and their ratio.

    python benchmarks/certification.py --convolution CHANNELS PIXELS TAPS

measures the float64 norm of one convolution instead: its bound, seconds of the processor, and by
how many MiB the largest memory of the process grew;

    python benchmarks/certification.py --large base|resnet50

the first `certify` of a large network without trained weights, in the same terms: the base network
of `step_counts.py`, 25.5 M parameters, or the ResNet-50 of keras.applications. With PYTHONPATH at
another checkout it measures that one.
"""

import argparse
import json
import time

import keras
import numpy as np
from latency import peak_mib

import dynzoo
from dynzoo import spectral
from dynzoo.training import run as runs


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_convolution(channels, pixels, taps):
    shape = (taps, taps, channels, channels)
    kernel = np.random.default_rng(0).normal(size=shape) / np.sqrt(taps * taps * channels)
    before, start = peak_mib(), time.process_time()
    bound = spectral.conv_norm_float64(kernel, (pixels, pixels))
    return {
        "kernel": shape,
        "pixels": pixels,
        "bound": bound,
        "cpu_seconds": round(time.process_time() - start, 2),
        "peak_mib": round(peak_mib() - before),
    }


def measure_large(name):
    if name == "base":
        from step_counts import BASE  # which needs PyTorch

        model = dynzoo.models.isometric_classifier(**BASE)
    else:
        model = keras.applications.ResNet50(weights=None, classifier_activation=None)
    before, start = peak_mib(), time.process_time()
    certificate = dynzoo.certify(model)
    return {
        "network": name,
        "backend": keras.backend.backend(),
        "hardware": runs.hardware(),
        "parameters": model.count_params(),
        "lipschitz": certificate.lipschitz,
        "cpu_seconds": round(time.process_time() - start, 2),
        "peak_mib": round(peak_mib() - before),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", nargs="?", default="isometric_tiny_cifar10")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--convolution", type=int, nargs=3, metavar=("CHANNELS", "PIXELS", "TAPS"))
    parser.add_argument("--large", choices=("base", "resnet50"))
    args = parser.parse_args()
    if args.large:
        print(json.dumps(measure_large(args.large)))
        return
    if args.convolution:
        print(json.dumps(measure_convolution(*args.convolution)))
        return

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
