"""Peak memory of `evaluate` on 10,000 images.

    python benchmarks/memory.py [PRESET] [--images 10000] [--steps 2] [--standard]

Memory does not depend on the number of attack steps, so few are taken; `--standard` runs all
members of the standard ensemble, Square with twenty times as many queries as the others take steps.
Each image counts as classified right, so that all are attacked. The last line is JSON: the peak
resident memory of the process in GiB, and that before the call.
"""

import argparse
import json

import keras
import numpy as np
from latency import peak_mib

import dynzoo

_MIB_PER_GIB = 2**10


def attacks(args):
    if not args.standard:
        return [dynzoo.attacks.PGD(norm="l2", eps=0.5, steps=args.steps)]
    short = {"steps": args.steps, "queries": 20 * args.steps}
    return [
        type(member)(**{k: short.get(k, v) for k, v in member.get_config().items()})
        for member in dynzoo.attacks.AutoAttack("l2", 0.5).members()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", nargs="?", default="isometric_tiny_cifar10")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--standard", action="store_true", help="the ensemble in place of PGD")
    args = parser.parse_args()

    model = dynzoo.from_preset(args.preset)
    rng = np.random.default_rng(0)
    x = rng.random((args.images, *model.input_shape[1:]), dtype="float32")
    y = model.predict(x, verbose=0).argmax(axis=1)
    before = peak_mib() / _MIB_PER_GIB
    dynzoo.evaluate(model, x, y, attacks=attacks(args), attack_certified="all", verbose=False)
    print(
        json.dumps(
            {
                "backend": keras.backend.backend(),
                "images": args.images,
                "gib_before": round(before, 2),
                "gib_peak": round(peak_mib() / _MIB_PER_GIB, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
