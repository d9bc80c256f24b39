"""The HTML page of a comparison."""

from __future__ import annotations

from dynzoo import plots
from dynzoo.robustness.comparison import Comparison
from dynzoo.robustness.page import interval
from dynzoo.utils.html import document, image, percent, table, text

__all__ = ["render"]


def render(comparison: Comparison) -> str:
    """The comparison as one HTML page without any reference to another file."""
    first = comparison.reports[0]
    intro = (
        f"{first.images} images, {plots.norm_text(first.norm)} perturbations inside the pixel "
        "range [0, 1]."
    )
    figure = image(plots.svg(comparison.plot()), _curves_text(comparison))
    notes = "".join(f"<li>{text(note)}</li>" for note in comparison.notes)
    return document(
        "Comparison of models",
        [
            f"<header><h1>Comparison of models</h1><p>{text(intro)}</p></header>",
            f'<section class="alarm"><h2>Mind</h2><ul>{notes}</ul></section>' if notes else "",
            f'<section><h2>Accuracy versus radius</h2><div class="curve">{figure}</div></section>',
            f"<section><h2>Numbers</h2>{_numbers(comparison)}</section>",
            _pairs(comparison),
            f"<section><h2>How they were evaluated</h2>{_provenance(comparison)}</section>",
        ],
    )


def notebook(comparison: Comparison) -> str:
    """A piece of HTML for the output of a cell: numbers, curves, what differs."""
    curve = image(plots.svg(comparison.plot()), _curves_text(comparison))
    notes = "".join(f"<li>{text(note)}</li>" for note in comparison.notes)
    return (
        f'<div>{_numbers(comparison)}<div style="max-width:40rem;background:#fff">{curve}</div>'
        f"{f'<ul>{notes}</ul>' if notes else ''}</div>"
    )


def _numbers(comparison: Comparison) -> str:
    count = comparison.reports[0].images
    rows = [
        [
            text(row["model"]),
            text(plots.eps_text(row["eps"])),
            *(_measured(row[key], count) for key in ("clean", "certified", "attacked")),
            text(row["warnings"]),
        ]
        for row in comparison.rows()
    ]
    header = ["model", "radius", "clean", "certified", "under attack", "warnings"]
    return table(header, rows) + _INTERVALS


_INTERVALS = '<p class="note">Small print: 95 % interval of a measurement on this many images.</p>'


def _measured(share: float | None, count: int) -> str:
    if share is None:
        return percent(None)
    low, high = interval(share, count)
    return f"{percent(share)} <small>{100 * low:.1f}&ndash;{100 * high:.1f}</small>"


def _curves_text(comparison: Comparison) -> str:
    """What the curves show, in words."""
    parts = []
    for row in comparison.rows():
        known = [
            f"{name} {row[key]:.1%}"
            for name, key in (("certified", "certified"), ("under attack", "attacked"))
            if row[key] is not None
        ]
        known = known or ["nothing known"]
        parts.append(f"{row['model']} at {plots.eps_text(row['eps'])}: {' and '.join(known)}")
    return "Accuracy of each model by radius. " + "; ".join(parts)


def _provenance(comparison: Comparison) -> str:
    """Attacks, certificate, versions and time of each report."""
    rows = []
    for name, report in zip(comparison.names, comparison.reports, strict=True):
        details = report.to_dict()
        versions = details.get("versions") or {}
        certificate = details.get("certificate") or {}
        attacks = (details.get("threat_model") or {}).get("attacks") or []
        bound = certificate.get("lipschitz")
        cells = [
            name,
            details.get("model") or "",
            ", ".join(attacks) or "none",
            "none" if bound is None else f"{bound:.6g}",
            details.get("seed", ""),
            f"{versions.get('backend', '')} {versions.get('backend_version', '')}",
            f"dynzoo {versions.get('dynzoo', '')}, Keras {versions.get('keras', '')}",
            details.get("created", ""),
        ]
        rows.append([text(cell) for cell in cells])
    header = ["report", "model", "attacks", "Lipschitz bound", "seed", "backend", "versions"]
    return table([*header, "created"], rows, numeric=False)


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
