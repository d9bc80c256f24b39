"""Peak memory of `evaluate` on 10,000 images.

    python benchmarks/memory.py [PRESET] [--images 10000] [--steps 2]

Memory does not depend on the number of attack steps, so few are taken. The last line is JSON: the
peak resident memory of the process in GiB, and that before the call.
"""

import argparse
import json
import resource

import keras
import numpy as np

import dynzoo

_KIB_PER_GIB = 2**20


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_GIB


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", nargs="?", default="isometric_small_cifar10")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()

    model = dynzoo.from_preset(args.preset)
    rng = np.random.default_rng(0)
    x = rng.random((args.images, *model.input_shape[1:]), dtype="float32")
    y = rng.integers(0, model.output_shape[-1], args.images)
    before = peak()
    attack = dynzoo.attacks.PGD(norm="l2", eps=0.5, steps=args.steps)
    dynzoo.evaluate(model, x, y, attacks=[attack], verbose=False)
    print(
        json.dumps(
            {
                "backend": keras.backend.backend(),
                "images": args.images,
                "gib_before": round(before, 2),
                "gib_peak": round(peak(), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
