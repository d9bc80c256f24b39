"""`dynzoo predict`: what a preset says of pictures, in words or as a table."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynzoo._startup import load_keras
from dynzoo.cli.console import log_line, say
from dynzoo.cli.inputs import find_preset
from dynzoo.cli.options import add_preset
from dynzoo.inference.image_paths import image_paths
from dynzoo.utils.csv_text import csv_text
from dynzoo.utils.files import check_output, check_place

if TYPE_CHECKING:
    import numpy as np

NAME = "predict"
HELP = "say what is on pictures, by how much, and how far that is proved to hold"


def add_arguments(parser: ArgumentParser) -> None:
    add_preset(parser)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="picture files of any size, or folders of them"
    )
    parser.add_argument(
        "--format",
        choices=("text", "csv", "json"),
        default="text",
        help="of what is printed (default: text)",
    )
    parser.add_argument("--output", metavar="FILE", help="write a table: .csv or .json")
    parser.add_argument(
        "--certify-pixels",
        action="store_true",
        help="for pictures of one size: radii for changes of their own pixels, 0 to 255, not of "
        "the scaled picture",
    )


def run(options: Namespace) -> None:
    if options.output:
        check_place(check_output(options.output))
    folder, about = find_preset(options.preset)
    files = [file for entry in options.images for file in image_paths(entry)]
    pictures = _pictures(files, about) if options.certify_pixels else None
    load_keras()
    # Keras and what stands on it: wrong arguments do not pay for them
    from dynzoo.zoo.prediction import COLUMNS, predict
    from dynzoo.zoo.preset_folder import from_preset

    if pictures is None:
        answers = predict(from_preset(folder), files)
    else:
        model = from_preset(folder, preprocess=True, image_size=pictures.shape[1:3])
        answers = replace(predict(model, pictures), images=[str(file) for file in files])
    if options.format == "text":
        for sentence in answers.sentences():
            say(sentence)
        if answers.reason:
            say(f"No certified radii: {answers.reason}")
    else:
        rows = answers.to_dict()
        text = csv_text(COLUMNS, rows) if options.format == "csv" else json.dumps(rows, indent=1)
        log_line(text.rstrip("\n"))
    if options.output:
        answers.save(options.output)
        if options.format == "text":
            say(f"table: {options.output}")


def _pictures(files: list[Path], about: dict[str, Any]) -> np.ndarray:
    """All pictures with the pixels of their files, which must be of one size."""
    import numpy as np  # with Pillow: pictures are opened

    from dynzoo.inference.image_files import MODES, read_image, told_apart

    channels = (about.get("input_shape") or [3])[-1]
    pictures: list[np.ndarray] = []
    with told_apart():
        for file in files:
            pictures.append(read_image(file, channels=channels if channels in MODES else 3))
            (height, width), (h, w) = pictures[0].shape[:2], pictures[-1].shape[:2]
            if (height, width) != (h, w):
                raise ValueError(
                    "--certify-pixels needs pictures of one size. "
                    f"Received: {files[0]} of {height} x {width}, {file} of {h} x {w}"
                )
    return np.stack(pictures)
