"""`dynzoo compare`: reports that were saved, side by side."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from dynzoo._startup import load_keras
from dynzoo.cli.console import percent, say, table
from dynzoo.cli.options import names
from dynzoo.utils import extras
from dynzoo.utils.files import check_place

NAME = "compare"
HELP = "put reports that `dynzoo evaluate --output` saved as JSON side by side"

# What a comparison can be saved as.
COMPARISONS = (".html", ".json", ".csv")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("reports", nargs="+", metavar="REPORT.json", help="reports to compare")
    parser.add_argument(
        "--names",
        type=names,
        metavar="NAMES",
        help="names of the models, by commas; default: those of the files",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="write the comparison: .html, .json or .csv"
    )


def run(options: Namespace) -> None:
    output, files = options.output, [Path(name) for name in options.reports]
    if output and Path(output).suffix.lower() not in COMPARISONS:
        allowed = ", ".join(COMPARISONS)
        raise ValueError(f"--output must end in one of {allowed}. Received: {output}")
    if output:
        check_place(output)
    if output and Path(output).suffix.lower() == ".html":
        extras.check("plots")
    for file in files:
        file.stat()  # an OSError that names it, where there is none
    load_keras()
    # Keras and what stands on it: wrong arguments do not pay for them
    from dynzoo.plots import eps_text, norm_text
    from dynzoo.robustness.comparison import compare, numbered

    comparison = compare(files, options.names or numbered([file.stem for file in files]))
    first = comparison.reports[0]
    table(
        ["model", "radius", "clean", "certified", "under attack"],
        [
            [
                row["model"],
                eps_text(row["eps"]),
                *(percent(row[name]) for name in ("clean", "certified", "attacked")),
            ]
            for row in comparison.rows()
        ],
        title=f"{first.images} images, {norm_text(first.norm)}",
    )
    for note in comparison.notes:
        say(f"mind: {note}", style="yellow")
    for name, report in zip(comparison.names, comparison.reports, strict=True):
        for warning in report.warnings:
            say(f"warning: {name}: {warning}", style="yellow")
    if output:
        say(f"comparison: {comparison.save(output).absolute()}")
