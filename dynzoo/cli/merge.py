"""`dynzoo merge`: the report of an evaluation whose parts were attacked one by one."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path

from dynzoo.cli import evaluate

NAME = "merge"
HELP = "make the report of the parts that `dynzoo evaluate --shard K/N` attacked"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="--checkpoint of the parts")
    parser.add_argument("--output", metavar="FILE", help="write the report: .html, .json, .csv ...")
    parser.add_argument("--audit", action="store_true", help="as for `dynzoo evaluate`")
    parser.add_argument("--corruptions", action="store_true", help="as for `dynzoo evaluate`")
    evaluate.add_smoothing(parser)
    parser.add_argument("--update-card", action="store_true", help="as for `dynzoo evaluate`")


def run(options: Namespace) -> None:
    from dynzoo.robustness.shard_files import read_plan  # NumPy: not for `--help`

    folder = Path(options.folder)
    plan, shards = read_plan(folder)
    _check_complete(folder, shards)
    # What a command `dynzoo evaluate` with the options of the parts would have been given.
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    asked = parser.parse_args([str(plan.get("preset"))])
    known = vars(asked)
    unknown = sorted(set(plan) - set(known))
    if unknown:
        raise ValueError(f"{folder} is of another version of dynzoo: it has {', '.join(unknown)}")
    known.update(plan)
    smoothing = ("smoothing", "smoothing_samples", "smoothing_limit")
    for name in ("output", "audit", "corruptions", "update_card", *smoothing):
        known[name] = getattr(options, name)
    asked.checkpoint, asked.shards = str(folder), shards
    evaluate.run(asked)


def _check_complete(folder: Path, shards: int) -> None:
    from dynzoo.robustness.shard_files import missing  # as above

    left = missing(folder, shards)
    if left:
        names = ", ".join(str(number) for number in left[:10]) + (", ..." if left[10:] else "")
        raise ValueError(
            f"parts {names} of {shards} are missing in {folder}: dynzoo evaluate ... --checkpoint "
            f"{folder} --shard {left[0]}/{shards}"
        )
