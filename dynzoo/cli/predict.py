"""`dynzoo predict`: what a preset says of pictures, in words or as a table."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from dynzoo._startup import load_keras
from dynzoo.cli.console import log_line, say
from dynzoo.cli.inputs import find_preset
from dynzoo.cli.options import add_preset
from dynzoo.inference.image_paths import image_paths
from dynzoo.utils.csv_text import csv_text
from dynzoo.utils.files import check_output

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
        check_output(options.output)
    folder, _ = find_preset(options.preset)
    files = [file for entry in options.images for file in image_paths(entry)]
    size = _size(files) if options.certify_pixels else None
    load_keras()
    # Keras and what stands on it: wrong arguments do not pay for them
    from dynzoo.zoo.prediction import COLUMNS, predict
    from dynzoo.zoo.presets import from_preset

    if size is None:
        model = from_preset(folder)
    else:
        model = from_preset(folder, preprocess=True, image_size=size)
    answers = predict(model, files)
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


def _size(files: list[Path]) -> tuple[int, int]:
    """(height, width) that all pictures have."""
    from dynzoo.inference.image_files import image_size  # NumPy and Pillow: pictures are opened

    sizes = {image_size(file): file for file in files}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            "--certify-pixels needs pictures of one size. "
            f"Received: {first} of {one[0]} x {one[1]}, {second} of {other[0]} x {other[1]}"
        )
    return next(iter(sizes))
