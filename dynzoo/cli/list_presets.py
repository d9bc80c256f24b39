"""`dynzoo list`: the presets that ship, and the leaderboard. Needs no Keras."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from dynzoo.cli.console import percent, say, table
from dynzoo.zoo import downloads, leaderboard, shipped

NAME = "list"
HELP = "list the presets that come with dynzoo"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--leaderboard", action="store_true", help="all numbers, beside published models"
    )
    parser.add_argument("--dataset", metavar="NAME", help="of the leaderboard; default: all")
    parser.add_argument("--output", metavar="FILE", help="write the leaderboard: .md or .csv")


def run(options: Namespace) -> None:
    known, folders = shipped.presets(), shipped.folders()
    if options.leaderboard:
        ranked = leaderboard.leaderboard(known, options.dataset)
        if options.output:
            say(f"leaderboard: {leaderboard.save(ranked, options.output).absolute()}")
        else:
            table(*leaderboard.summary(ranked), title="percent; published: as their sources state")
        return
    for flag in ("dataset", "output"):
        if getattr(options, flag):
            raise ValueError(f"--{flag} needs --leaderboard")
    if not known:
        say("No presets are installed. `dynzoo train CONFIG` makes one from its recipe.")
        return
    rows, elsewhere = [], 0
    for name, about in known.items():
        certified = about.get("certified_accuracy") or {}
        radius = next(iter(certified), None)
        absent = bool(downloads.missing(folders[name], about))
        elsewhere += absent
        rows.append(
            [
                name + (" *" if absent else ""),
                str(about.get("dataset", "–")),
                f"{about.get('parameters', 0):,}",
                percent(about.get("accuracy")),
                "–" if radius is None else f"{percent(certified[radius])} at {radius}",
            ]
        )
    table(["preset", "data set", "parameters", "accuracy", "certified (L2)"], rows)
    if elsewhere:
        say("* its weights are fetched when it is first used, from where DYNZOO_WEIGHTS says")
