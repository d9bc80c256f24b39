"""`dynzoo train`: a preset from its recipe, on one device or several."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from dynzoo.cli.console import log_line
from dynzoo.cli.options import positive


def add_train_arguments(parser: ArgumentParser) -> None:
    """What only this command takes."""
    parser.add_argument(
        "config", metavar="CONFIG", help="a YAML recipe, or the name of one in zoo_configs/"
    )
    parser.add_argument(
        "--max-seconds", type=float, metavar="N", help="stop cleanly after N seconds"
    )
    parser.add_argument("--resume", action="store_true", help="go on where the last run stopped")
    parser.add_argument("--output", metavar="DIR", help="run folder; default runs/<recipe's name>")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="another seed than the recipe's, in a run folder of its own (runs/<name>_seed<N>)",
    )
    parser.add_argument("--quiet", action="store_true", help="a line an epoch, no progress bar")
    parser.add_argument(
        "--distribute",
        action="store_true",
        help="copies of the model on all devices of this machine, each on its share of every "
        "batch; same result up to rounding (JAX and TensorFlow)",
    )
    parser.add_argument(
        "--devices",
        type=positive,
        metavar="N",
        help="with --distribute: N of them; a CPU is divided into N virtual ones, for a trial",
    )
    parser.add_argument(
        "--pilot",
        type=float,
        metavar="N",
        help="train nothing: time steps for N seconds, and print images/s and when it would end",
    )
    parser.add_argument(
        "--weights-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of large arrays in the preset; float16 is half the size, projected when loaded",
    )


def train(arguments: Namespace) -> None:
    from dynzoo.training import loop as training
    from dynzoo.training import recipes

    recipe, output = recipes.load(arguments.config), arguments.output
    if arguments.seed is not None:
        recipe["training"]["seed"] = arguments.seed
        output = output or os.path.join("runs", f"{recipe['name']}_seed{arguments.seed}")
    training.train(
        recipe,
        data_file=arguments.data,
        output=output,
        max_seconds=arguments.max_seconds,
        resume=arguments.resume,
        verbose=0 if arguments.quiet else "auto",
        log=log_line,
        distribute=arguments.distribute,
        devices=arguments.devices,
        pilot=arguments.pilot,
        weights_dtype=arguments.weights_dtype,
    )
