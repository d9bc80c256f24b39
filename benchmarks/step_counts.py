"""A training step of a network that nobody has trained here, on 1 to 256 accelerators: counted.

    KERAS_BACKEND=torch python benchmarks/step_counts.py [--batch-sizes 512 4096]
        [--write docs/results/scaling_base.csv]

Builds the base network (`BASE`), runs one small step of its recipe's kind and counts, operation by
operation, the arithmetic of matrix products and the bytes that they read and write: of an image,
forward and back, and of the update (tangent step, polar factor, constraint), which does not depend
on the batch. The update is made by every device, or divided among them kernel by kernel
(`dynzoo.training.update_shares`). What a device makes of it is assumed (`DEVICE`, from the data
sheet, and `SHARE` of it); links are those of `benchmarks/scaling.py`'s kind. Counts are exact,
seconds are predictions. The last line is JSON.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import torch
from scaling import all_reduce, size_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dynzoo import models
from dynzoo.training import builders
from dynzoo.training.update_shares import largest_share

# What `docs/scaling.md` calls the base network: 25.5 M parameters.
BASE = {"widths": (192, 512, 1024), "steps": (6, 6, 6), "neck_units": 1024, "dense_steps": 4}
OPTIMIZER = {"name": "muon", "learning_rate": 0.04, "adam_learning_rate": 0.002, "momentum": 0.95}

# NVIDIA H100 SXM, data sheet: products in bfloat16 and float32 a second, bytes of memory a second.
DEVICE = {"bfloat16": 989e12, "float32": 67e12, "memory": 3.35e12}
SHARE = {"bfloat16": 0.35, "float32": 0.6, "memory": 0.6}  # of it that is assumed to be reached
# Eight devices to a machine; machines joined by 400 Gbit/s for each device. Data sheets.
WITHIN, BETWEEN, EIGHT = (450e9, 5e-6), (50e9, 2e-5), 8
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "convolution_backward")


class _Traffic(TorchDispatchMode):
    """Bytes that products read and write, and those of all operations, as if none were fused."""

    def __init__(self):
        super().__init__()
        self.products = self.all = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
            moved = sum(t.numel() * t.element_size() for t in tensors)
            self.all += moved
            if function.overloadpacket.__name__ in _PRODUCTS:
                self.products += moved
        return result


def counted(function):
    """Operations of products, bytes of products and bytes of all operations of a call."""
    with FlopCounterMode(display=False) as arithmetic:
        function()
    with _Traffic() as traffic:
        function()
    return np.array([arithmetic.get_total_flops(), traffic.products, traffic.all], np.float64)


def counts(network, images=4):
    """What an image and an update cost; shapes of variables; trained bytes and parameters."""
    model = models.isometric_classifier(**network)
    optimizer = builders.make_optimizer(OPTIMIZER, 1000, {"warmup": 0.0})
    optimizer.build(model.trainable_variables)
    x = torch.from_numpy(np.random.default_rng(0).random((2 * images, 32, 32, 3), dtype="float32"))
    values = [v.value for v in model.trainable_variables]

    def gradients(count):
        return torch.autograd.grad(model(x[:count], training=True).square().sum(), values)

    # of one image: what a step of more images costs beyond one of fewer
    image = (counted(lambda: gradients(2 * images)) - counted(lambda: gradients(images))) / images
    found = [g.detach() for g in gradients(images)]
    with torch.no_grad():
        update = counted(lambda: optimizer.apply(found, model.trainable_variables))
    shapes = [v.shape for v in model.trainable_variables]
    return image, update, shapes, size_of(model.trainable_variables), model.count_params()


def seconds_of_share(image, update):
    """Seconds of an image and of an update on one device; activations in bfloat16."""
    rate = {name: DEVICE[name] * SHARE[name] for name in DEVICE}
    products, traffic = image[0] / rate["bfloat16"], image[2] / 2 / rate["memory"]
    fixed = max(update[0] / rate["float32"], update[1] / rate["memory"])
    return max(products, traffic), fixed


def reduce_seconds(devices, size):
    """A ring within a machine, then one over machines with an eighth of the bytes each."""
    inner = all_reduce(min(devices, EIGHT), size, *WITHIN)
    machines = devices // EIGHT
    return inner + (all_reduce(machines, size / EIGHT, *BETWEEN) if machines > 1 else 0.0)


def table(image, fixed, shapes, size, batch_sizes):
    rows = []
    for batch in batch_sizes:
        one = fixed + image * batch
        for devices in DEVICES:
            if devices > batch:
                continue
            share, reduce = image * batch / devices, reduce_seconds(devices, size)
            total = fixed + share + reduce
            # values and momenta of each device's part go to all others: twice the gradients'
            # bytes once around, as many as an all-reduce sends
            part = fixed * largest_share(shapes, devices)
            divided = part + share + 2 * reduce
            rows.append(
                {
                    "batch": batch,
                    "devices": devices,
                    "update_ms": round(1e3 * fixed, 2),
                    "images_ms": round(1e3 * share, 2),
                    "all_reduce_ms": round(1e3 * reduce, 3),
                    "step_ms": round(1e3 * total, 2),
                    "images_per_second": round(batch / total),
                    "speed_up": round(one / total, 2),
                    "divided_update_ms": round(1e3 * part, 2),
                    "divided_step_ms": round(1e3 * divided, 2),
                    "divided_speed_up": round(one / divided, 2),
                }
            )
    return rows


def main():
    from dynzoo.utils.csv_text import csv_text

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--write", type=Path, metavar="CSV")
    args = parser.parse_args()
    if keras.backend.backend() != "torch":
        parser.error("KERAS_BACKEND must be torch, whose operations are counted")
    image, update, shapes, size, parameters = counts(BASE)
    seconds, fixed = seconds_of_share(image, update)
    rows = table(seconds, fixed, shapes, size, args.batch_sizes)
    for row in rows:
        print("batch {batch:>5}  {devices:>3} devices  {step_ms:>7} ms".format(**row))
    if args.write:
        args.write.write_text(csv_text(list(rows[0]), rows))
    result = {
        "parameters": parameters,
        "gradients_bytes": size,
        "image": dict(zip(("flop", "product_bytes", "bytes"), image.tolist(), strict=True)),
        "update": dict(zip(("flop", "product_bytes", "bytes"), update.tolist(), strict=True)),
        "image_seconds": seconds,
        "update_seconds": fixed,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
