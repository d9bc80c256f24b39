"""`dynzoo finetune`: a preset is fitted to other data, and saved as one of its own."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynzoo._startup import load_keras
from dynzoo.cli.console import percent, say
from dynzoo.cli.evaluate import show
from dynzoo.cli.inputs import (
    check_fit,
    classes,
    find_preset,
    first,
    load_data,
    matched_labels,
    names_of_data,
    wanted_classes,
)
from dynzoo.cli.options import DATASET, FILE, add_preset, positive, seed
from dynzoo.data.sources import check_source
from dynzoo.training.arguments import check_crop_padding, check_finetuning
from dynzoo.utils.files import check_place

if TYPE_CHECKING:
    import keras

    from dynzoo.zoo.measurement import Measurement

NAME = "finetune"
HELP = "fit a preset to other data and save it as a preset of its own"

# What `dynzoo.training.finetune` takes, under the same names on the command line and on the card.
_SETTINGS = (
    "epochs",
    "learning_rate",
    "batch_size",
    "freeze_body",
    "crop_padding",
    "flip",
    "seed",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_preset(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="PATH", help=FILE)
    source.add_argument("--dataset", metavar="NAME", help=DATASET)
    parser.add_argument(
        "--num-classes",
        default="auto",
        metavar="N",
        help="default: as many as the labels have; with the preset's own number its head is kept",
    )
    parser.add_argument("--epochs", type=positive, default=10, metavar="N")
    parser.add_argument("--learning-rate", type=float, default=0.02, metavar="RATE")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N")
    parser.add_argument("--freeze-body", action="store_true", help="train the last layer only")
    parser.add_argument(
        "--crop-padding",
        type=int,
        default=0,
        metavar="N",
        help="shift training images at random, up to N pixels each way (default: 0)",
    )
    parser.add_argument("--flip", action="store_true", help="mirror half of the training images")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="the first N training and test images only"
    )
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument(
        "--output", metavar="FOLDER", help="the new preset; default runs/PRESET_DATA"
    )


def run(options: Namespace) -> None:
    folder, about = find_preset(options.preset)
    source = check_source(options.data or options.dataset)
    label = Path(source).stem if options.data else source
    parent = about.get("name", folder.name)
    output = Path(options.output or Path("runs") / f"{parent}_{label}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists already: choose another folder with --output")
    check_place(output, folder=True)
    wanted_classes(options.num_classes)
    check_finetuning(options.learning_rate)
    if len(about.get("input_shape") or []) == 3:
        check_crop_padding(options.crop_padding, about["input_shape"])
    load_keras()
    _finetune(options, folder, about, source, label, parent, output)


def _finetune(
    options: Namespace,
    folder: Path,
    about: dict[str, Any],
    source: str,
    label: str,
    parent: str,
    output: Path,
) -> None:
    # Keras and what stands on it: wrong arguments do not pay for them
    from dynzoo import backend
    from dynzoo.training.finetuning import finetune
    from dynzoo.training.run import hardware
    from dynzoo.zoo.measurement import accuracy
    from dynzoo.zoo.preset_folder import class_names_of, from_preset, save_to_preset

    say(f"{parent}: reading {source}")
    splits = load_data(source, about)
    (x, y), (x_test, y_test) = (first(split, options.limit) for split in splits)
    count = classes(options.num_classes, y, y_test)
    model, names = from_preset(folder, num_classes=count), names_of_data(source, count)
    own = class_names_of(about, count) if count == about.get("num_classes") else None
    if own is not None:  # its head is kept, whose logits have names
        y, known = matched_labels(y, source, parent, own, strict=False)
        y_test, _ = matched_labels(y_test, source, parent, own, strict=False)
        names = {"class_names": own} if known is own else names
    check_fit(model, x, y, source)
    say(
        f"{len(x):,} images to train on, {len(x_test):,} to test with; {model.count_params():,} "
        f"parameters; compiling for {backend.name()}"
    )
    before = accuracy(model, x_test, y_test)
    say(f"accuracy on {len(x_test)} test images before: {percent(before)}")
    settings = {name: getattr(options, name) for name in _SETTINGS}
    finetune(model, x, y, **settings)
    measured = _measured(model, x_test, y_test)
    show(measured, f"{parent} after fine-tuning on {label}")
    save_to_preset(
        model,
        output,
        {
            "description": f"{parent}, fine-tuned on {label}.",
            "dataset": label,
            **names,
            "accuracy": measured.clean,
            **_proved(measured),
            "evaluation": {"split": "test", "images": measured.images},
            "training": {
                "hardware": hardware(),
                "backend": backend.name(),
                "parent": parent,
                "images": len(x),
                **settings,
            },
        },
    )
    say(f"preset: {output.absolute()}")


def _measured(model: keras.Model, x: Any, y: Any) -> Measurement:
    """Accuracies on the test images; without a certificate the clean one, and why."""
    from dynzoo.certificates import UncertifiableLayerError  # as above
    from dynzoo.zoo.measurement import Measurement, accuracy, measure

    try:
        return measure(model, x, y, attacks="none")
    except UncertifiableLayerError as error:  # what was trained is saved all the same
        clean = accuracy(model, x, y)
        return Measurement("l2", len(x), clean, {}, None, 0, None, uncertified=str(error))


def _proved(measured: Measurement) -> dict[str, Any]:
    """What a card says of the certificate, if there is one."""
    from dynzoo.zoo.measurement import radius_text  # as above

    if measured.lipschitz is None:
        return {}
    shares = {radius_text(eps): share for eps, share in measured.certified.items()}
    return {"certified_accuracy": shares, "lipschitz": measured.lipschitz}
