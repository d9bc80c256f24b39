"""`dynzoo compare`: reports that were saved, side by side."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from dynzoo import plots
from dynzoo.cli.console import percent, say, table
from dynzoo.robustness.comparison import compare, numbered

# What a comparison can be saved as.
COMPARISONS = (".html", ".json", ".csv")


def compare_reports(arguments: Namespace) -> None:
    output, files = arguments.output, [Path(name) for name in arguments.reports]
    if output and Path(output).suffix.lower() not in COMPARISONS:
        allowed = ", ".join(COMPARISONS)
        raise ValueError(f"--output must end in one of {allowed}. Received: {output}")
    comparison = compare(files, arguments.names or numbered([file.stem for file in files]))
    first = comparison.reports[0]
    table(
        ["model", "radius", "clean", "certified", "under attack"],
        [
            [
                row["model"],
                plots.eps_text(row["eps"]),
                *(percent(row[name]) for name in ("clean", "certified", "attacked")),
            ]
            for row in comparison.rows()
        ],
        title=f"{first.images} images, {plots.norm_text(first.norm)}",
    )
    for note in comparison.notes:
        say(f"mind: {note}", style="yellow")
    for name, report in zip(comparison.names, comparison.reports, strict=True):
        for warning in report.warnings:
            say(f"warning: {name}: {warning}", style="yellow")
    if output:
        say(f"comparison: {comparison.save(output).absolute()}")
