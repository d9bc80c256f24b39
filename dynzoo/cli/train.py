"""`dynzoo train`: a preset from its recipe, on one device or several."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from dynzoo._startup import load_keras
from dynzoo.cli.console import log_line
from dynzoo.cli.options import FILE, positive
from dynzoo.data.sources import check_source
from dynzoo.training.arguments import check_training
from dynzoo.training.recipe_files import RecipeError, find

NAME = "train"
HELP = "train a preset from its recipe; can be stopped at any time and resumed"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--data", metavar="PATH", help=f"{FILE}, in place of the recipe's")
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
        "--layout",
        metavar="AXES",
        help="divide kernels over the devices of a mesh (model=4, or batch=2,model=2), or as a "
        "YAML file says; JAX",
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


def run(options: Namespace) -> None:
    path = find(options.config)
    if options.data is not None:
        check_source(options.data)
    engine = {
        name: getattr(options, name)
        for name in ("max_seconds", "distribute", "devices", "pilot", "weights_dtype", "layout")
    }
    check_training(**engine)
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise RecipeError(f"`training.seed` must be in [0, {2**32 - 1}]. Received: {options.seed}")
    load_keras()
    # Keras and what stands on it: wrong arguments do not pay for them
    from dynzoo.training import loop, recipes

    recipe, output = recipes.load(path), options.output
    if options.seed is not None:
        recipe["training"]["seed"] = options.seed
        output = output or os.path.join("runs", f"{recipe['name']}_seed{options.seed}")
    loop.train(
        recipe,
        data_file=options.data,
        output=output,
        resume=options.resume,
        verbose=0 if options.quiet else "auto",
        log=log_line,
        **engine,
    )
