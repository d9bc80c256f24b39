"""`dynzoo predict`: what a preset says of pictures, in words or as a table."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from dynzoo.cli.console import log_line, say
from dynzoo.cli.inputs import find_preset
from dynzoo.inference.image_files import image_size
from dynzoo.utils.csv_text import csv_text
from dynzoo.zoo import presets
from dynzoo.zoo.prediction import COLUMNS, check_output, image_paths
from dynzoo.zoo.prediction import predict as predicted


def add_predict_arguments(parser: Any) -> None:
    """Arguments of the subcommand, but for the preset."""
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


def predict(arguments: Namespace) -> None:
    if arguments.output:
        check_output(arguments.output)
    folder, about = find_preset(arguments.preset)
    if arguments.certify_pixels:
        model = presets.from_preset(folder, preprocess=True, image_size=_size(arguments.images))
    else:
        model = presets.from_preset(folder)
    answers = predicted(model, arguments.images)
    if arguments.format == "text":
        for sentence in answers.sentences():
            say(sentence)
        if answers.reason:
            say(f"No certified radii: {answers.reason}")
    else:
        rows = answers.to_dict()
        text = csv_text(COLUMNS, rows) if arguments.format == "csv" else json.dumps(rows, indent=1)
        log_line(text.rstrip("\n"))
    if arguments.output:
        answers.save(arguments.output)
        if arguments.format == "text":
            say(f"table: {arguments.output}")


def _size(images: list[str]) -> tuple[int, int]:
    """(height, width) that all pictures have."""
    files = [file for entry in images for file in image_paths(entry)]
    sizes = {image_size(file): file for file in files}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            "--certify-pixels needs pictures of one size. "
            f"Received: {first} of {one[0]} x {one[1]}, {second} of {other[0]} x {other[1]}"
        )
    return next(iter(sizes))
