"""The HTML page of a comparison."""

from __future__ import annotations

from dynzoo import plots
from dynzoo.comparison import Comparison
from dynzoo.html_page import document, image, percent, table, text

__all__ = ["render"]


def render(comparison: Comparison) -> str:
    """The comparison as one HTML page without any reference to another file."""
    first = comparison.reports[0]
    intro = (
        f"{first.images} images, {plots.norm_text(first.norm)} perturbations inside the pixel "
        "range [0, 1]."
    )
    figure = image(plots.png(comparison.plot()), "Accuracy of each model by radius")
    rows = [
        [
            text(row["model"]),
            text(plots.eps_text(row["eps"])),
            percent(row["clean"]),
            percent(row["certified"]),
            percent(row["attacked"]),
            text(row["warnings"]),
        ]
        for row in comparison.rows()
    ]
    header = ["model", "radius", "clean", "certified", "under attack", "warnings"]
    notes = "".join(f"<li>{text(note)}</li>" for note in comparison.notes)
    return document(
        "Comparison of models",
        [
            f"<header><h1>Comparison of models</h1><p>{text(intro)}</p></header>",
            f'<section class="alarm"><h2>Mind</h2><ul>{notes}</ul></section>' if notes else "",
            f'<section><h2>Accuracy versus radius</h2><div class="curve">{figure}</div></section>',
            f"<section><h2>Numbers</h2>{table(header, rows)}</section>",
            _pairs(comparison),
        ],
    )


def _pairs(comparison: Comparison) -> str:
    """For each two models, the images that one of them has robust and the other has not."""
    names = comparison.names
    if len(names) < 2:
        return ""
    rows = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            for e in sorted(comparison.reports[0].robust):
                try:
                    only_a, only_b = comparison.differences(a, b, e)
                except ValueError:  # one of them neither attacked nor certified
                    continue
                cells = [f"{a} / {b}", plots.eps_text(e), only_a, only_b]
                rows.append([text(cell) for cell in cells])
    note = (
        '<p class="note">Images that stay right under attack with one model only; of two models '
        "that were not both attacked, those proved with one only. A difference of shares means "
        "little unless one count is much larger than the other.</p>"
    )
    header = ["models", "radius", "first only", "second only"]
    return f"<section><h2>Image by image</h2>{table(header, rows)}{note}</section>"
