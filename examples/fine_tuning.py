"""A pretrained body on other data: CIFAR-100, and a folder of images.

    python examples/fine_tuning.py [--data cifar100|FILE.npz|FOLDER] [--epochs 5] [--augment]
    python examples/fine_tuning.py --data digits_folder     the folder is written first, as PNGs

The preset with a fresh head is fitted in four ways, all with the loss that a preset comes with:
all layers with `dynzoo.training.finetune`; all with Keras' Adam, the plain `compile` and `fit`;
the head alone; and all from random weights, which is what pretraining is measured against. Each
has the same number of epochs over the same images; `--augment` shifts them by up to two pixels and
flips them at random. Accuracy and certified accuracy are those on the test images, before and
after.

Adds its rows to `docs/results/fine_tuning.csv`, in place of those of the same data, augmentation
and way.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import common
import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import dynzoo
from dynzoo import losses
from dynzoo.training.finetuning import finetune, fit_arguments
from dynzoo.zoo import measurement as evaluation

RADIUS = 36 / 255
DIGITS_FOLDER = "digits_folder"
AUGMENT = {"crop_padding": 2, "flip": True}  # as the recipes do


def adam(model, x, y, epochs, batch_size, verbose, crop_padding=0, flip=False):
    """What a Keras user writes without a look at dynzoo's optimisers."""
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(1e-3), losses.OffsetCrossentropy(), metrics=["accuracy"])
    images, _ = fit_arguments(x, y, batch_size, 0, crop_padding, flip)
    model.fit(**images, epochs=epochs, verbose=verbose)
    dynzoo.project(model)


def frozen(model, *args, **kwargs):
    finetune(model, *args, freeze_body=True, **kwargs)


# name -> whether it starts from the preset's weights, and how it is fitted
ARMS = {
    "all layers": (True, finetune),
    "all layers, Adam": (True, adam),
    "head alone": (True, frozen),
    "from scratch": (False, finetune),
}


def digits_folder(root):
    """scikit-learn's handwritten digits as PNG files, a folder a class."""
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(image * (255 / 16))).save(folder / f"{i:04d}.png")
    return root


def run(arm, preset, train, test, args):
    """One row: how a fit ended that began with or without the preset's weights."""
    pretrained, fit = ARMS[arm]
    classes = int(max(train[1].max(), test[1].max())) + 1
    keras.utils.set_random_seed(args.seed)  # of the fresh head
    model = dynzoo.from_preset(preset, num_classes=classes, load_weights=pretrained)
    before = evaluation.measure(model, *test, eps=[RADIUS], attacks="none")
    start = time.perf_counter()
    settings = dict(epochs=args.epochs, batch_size=args.batch_size, verbose=args.verbose)
    fit(model, *train, **settings, **(AUGMENT if args.augment else {}))
    seconds = time.perf_counter() - start
    after = evaluation.measure(model, *test, eps=[RADIUS], attacks="none")
    row = {
        "data": args.name,
        "model": Path(preset).name,
        "fitted": arm,
        "augmentation": augmentation_name(args),
        "epochs": args.epochs,
        "training_images": len(train[0]),
        "test_images": len(test[0]),
        "clean_before": percent(before.clean),
        "certified_before": percent(before.certified[RADIUS]),
        "clean": percent(after.clean),
        "certified": percent(after.certified[RADIUS]),
        "radius": "36/255",
        "seconds": round(seconds),
        "backend": keras.backend.backend(),
    }
    print(
        f"{arm}: {row['clean_before']} -> {row['clean']} %, certified {row['certified']} %, "
        f"{row['seconds']} s",
        flush=True,
    )
    return row


def percent(share):
    return round(100 * share, 2)


def augmentation_name(args):
    return "crop {crop_padding}, flip".format(**AUGMENT) if args.augment else "none"


def kept(args):
    """Rows of other data, augmentation or ways to fit that stand in the table already."""
    path = common.RESULTS / "fine_tuning.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    same = (args.name, augmentation_name(args))
    return [
        row
        for row in rows
        if (row["data"], row["augmentation"]) != same or row["fitted"] not in args.arms
    ]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar100", help=f"data, or {DIGITS_FOLDER}")
    parser.add_argument("--name", help="of the data in the table; default: as given")
    parser.add_argument("--model", default="isometric_tiny_cifar10", help="preset, or its folder")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    parser.add_argument("--limit", type=int, help="the first N training and test images only")
    parser.add_argument("--augment", action="store_true", help="shift and flip training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", type=int, default=2)
    args = parser.parse_args(argv)
    args.name = args.name or Path(args.data).stem

    shape = dynzoo.from_preset(args.model).input_shape[1:]
    with tempfile.TemporaryDirectory() as scratch:
        source = args.data
        if source == DIGITS_FOLDER:
            source = digits_folder(Path(scratch) / "digits")
        train, test = dynzoo.data.load(source, image_shape=shape)
    train, test = (tuple(part[: args.limit] for part in split) for split in (train, test))
    rows = [run(arm, args.model, train, test, args) for arm in args.arms]
    common.write_csv("fine_tuning", kept(args) + rows)
    common.finish({"data": args.name, **{row["fitted"]: row["certified"] for row in rows}})


if __name__ == "__main__":
    main()
