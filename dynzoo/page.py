"""The HTML page of a report: one file, its pictures inside it, no script, no outside reference."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynzoo import plots
from dynzoo.attacks.checks import EvaluationWarning
from dynzoo.report import RobustnessReport


def interval(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share that was measured on `count` images."""
    z2 = 1.959964**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(share * (1 - share) * z2 / count + z2**2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def render(report: RobustnessReport) -> str:
    """The report as one HTML page without any reference to another file."""
    norm = "L2" if report.norm == "l2" else "Linf"
    versions = report.details.get("versions", {})
    radii = ", ".join(plots.eps_text(e) for e in sorted(report.robust))
    intro = (
        f"{report.images} images. Attacker: knows the model and its gradients, moves each image "
        f"by at most {radii} in {norm} norm, inside the pixel range [0, 1]."
    )
    figure = _image(plots.png(report.plot()), "Accuracy versus radius of the perturbation")
    parts = [
        f"<header><h1>{_text(report.title)}</h1><p>{_text(intro)}</p>{_tiles(report)}</header>",
        _warnings(report.warnings),
        f'<section><h2>Accuracy versus radius</h2><div class="curve">{figure}</div>'
        "<p class=note>Certified: proved, no perturbation of that size changes a correct answer. "
        "Under attack: what survived the attacks below; the true robust accuracy lies between "
        f"the two.{_conversion(report)}</p></section>",
        f"<section><h2>Numbers</h2>{_numbers(report)}</section>",
        f"<section><h2>Attacked images</h2>{_gallery(report)}</section>",
    ]
    if report.smoothed is not None:
        parts.append(f"<section><h2>Randomised smoothing</h2>{_smoothing(report)}</section>")
    for heading, content in report.sections:
        parts.append(f"<section><h2>{_text(heading)}</h2>{_content(content)}</section>")
    parts.append(f"<section><h2>Attacks</h2>{_runs(report.details.get('runs', []))}</section>")
    facts = [
        *((k, report.details[k]) for k in ("model", "seed", "created") if k in report.details),
        *(("time, seconds", report.details[k]) for k in ("seconds",) if k in report.details),
        *versions.items(),
    ]
    certificate = report.details.get("certificate") or {}
    facts += [
        (f"certificate: {key}", value)
        for key, value in certificate.items()
        if isinstance(value, (str, int, float))
    ]
    parts.append(f"<section><h2>Provenance</h2>{_content(facts)}</section>")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(report.title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body><main>{body}</main></body>\n</html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def _percent(value: float | None) -> str:
    return "&ndash;" if value is None else f"{100 * value:.1f} %"


def _image(data: bytes, alt: str, size: str = "") -> str:
    source = base64.b64encode(data).decode("ascii")
    return f'<img {size} alt="{_text(alt)}" src="data:image/png;base64,{source}">'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = True) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    kind = ' class="numeric"' if numeric else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _tiles(report: RobustnessReport) -> str:
    first = min(report.robust)
    at = f"at {plots.eps_text(first)}"
    tiles = [
        ("clean", "clean", report.clean),
        ("attacked", f"under attack {at}", report.robust[first]),
        ("certified", f"certified {at}", report.certified[first]),
    ]
    cells = "".join(
        f'<div class="tile {kind}"><b>{_percent(value)}</b><span>{_text(name)}</span></div>'
        for kind, name, value in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _smoothing(report: RobustnessReport) -> str:
    numbers = report.smoothed or {}
    settings = ", ".join(f"{k} {v:g}" for k, v in numbers["settings"].items() if k != "type")
    rows = [
        ("accuracy", _percent(numbers["clean"])),
        ("no answer", _percent(numbers["abstained"])),
    ]
    for e, share in numbers["certified"].items():
        rows.append((f"certified at {plots.eps_text(e)}", _percent(share)))
    note = (
        "<p class=note>The model under Gaussian noise, by majority, is another classifier than the "
        "model above: these radii are certified for its answers, image by image with probability "
        f"1 &minus; alpha ({_text(settings)}). The attacks were on the model without noise.</p>"
    )
    return _table(["smoothed classifier", ""], rows) + note


def _warnings(warnings: Sequence[EvaluationWarning]) -> str:
    if not warnings:
        return '<section class="calm">No warnings: the checks of the evaluation passed.</section>'
    items = "".join(f"<li><b>{_text(w.name)}</b> {_text(w.text)}</li>" for w in warnings)
    return f'<section class="alarm"><h2>Warnings</h2><ul>{items}</ul></section>'


def _conversion(report: RobustnessReport) -> str:
    if report.norm == "l2" or report.radii() is None:
        return ""
    return (
        " The certificate is an L2 one: a Linf ball lies in the L2 ball whose radius is larger by "
        "the square root of the number of pixel values."
    )


def _numbers(report: RobustnessReport) -> str:
    def cell(value: float | None) -> str:
        if value is None:
            return "&ndash;"
        low, high = interval(value, report.images)
        return f"{_percent(value)} <small>{100 * low:.1f}&ndash;{100 * high:.1f}</small>"

    rows = [["0 (clean)", cell(None), cell(report.clean)]]
    for e in sorted(report.robust):
        rows.append([_text(plots.eps_text(e)), cell(report.certified[e]), cell(report.robust[e])])
    note = '<p class="note">Small print: 95 % interval of a measurement on this many images.</p>'
    return _table(["radius", "certified", "under attack"], rows) + note


def _gallery(report: RobustnessReport) -> str:
    if not report.examples:
        return "<p>No attack changed a correct answer.</p>"

    def name(label: int) -> str:
        names = report.class_names
        return _text(names[label] if names is not None and label < len(names) else label)

    cards = []
    for example in report.examples:
        pair = [plots.displayable(image) for image in (example.x, example.x_adv)]
        if pair[0] is None or pair[1] is None:
            return "<p>The inputs are not pictures, so none are shown.</p>"
        delta = pair[1] - pair[0]
        gain = 0.5 / max(float(np.abs(delta).max()), 1e-12)
        views = [
            ("clean", name(example.label), pair[0]),
            ("attacked", name(example.fooled_label), pair[1]),
            (f"difference &times;{gain:.0f}", "", 0.5 + gain * delta),
        ]
        figures = "".join(
            f"<figure>{_image(plots.image_png(pixels), kind.split()[0])}"
            f"<figcaption>{kind}<b>{label}</b></figcaption></figure>"
            for kind, label, pixels in views
        )
        caption = (
            f"image {example.index}, radius {plots.eps_text(example.eps)}, "
            f"distance {example.distance:.4f}"
        )
        cards.append(f'<div class="card"><div class="views">{figures}</div>{_text(caption)}</div>')
    return f'<div class="gallery">{"".join(cards)}</div>'


def _content(content: Any) -> str:
    if isinstance(content, bytes):
        return f'<div class="curve">{_image(content, "figure")}</div>'
    if isinstance(content, tuple):
        return "".join(_content(part) for part in content)
    if isinstance(content, str):
        return "".join(f"<p>{_text(line)}</p>" for line in content.split("\n\n"))
    rows = [[_text(name), _text(value)] for name, value in content]
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f'<div class="scroll"><table class="pairs"><tbody>{body}</tbody></table></div>'


def _runs(runs: Sequence[dict[str, Any]]) -> str:
    hidden = ("norm", "eps", "batch_size", "targeted")
    rows = []
    for run in runs:
        config = ", ".join(
            f"{k}={v}" for k, v in run["config"].items() if k not in hidden and v is not None
        )
        rows.append(
            [
                _text(plots.eps_text(run["eps"])),
                _text(run["attack"]),
                f"<small>{_text(config)}</small>",
                str(run["attacked"]),
                str(run["broken"]),
            ]
        )
    note = '<p class="note">Each attack runs on the images that the earlier ones left.</p>'
    return _table(["radius", "attack", "parameters", "attacked", "broken"], rows, False) + note


_STYLE = """
:root{--ink:#1d2433;--soft:#5b6478;--line:#e4e7ee;--certified:#1b7f5c;--attacked:#c2410c}
*{box-sizing:border-box}
body{margin:0;background:#f5f6f9;color:var(--ink);line-height:1.5;
 font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:62rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
header{margin-bottom:1.5rem}h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.1rem;margin:0 0 .9rem}header p{max-width:46rem;color:var(--soft);margin:.2rem 0}
section{background:#fff;border:1px solid var(--line);border-radius:10px;padding:1.3rem 1.5rem;
 margin:0 0 1.1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(12rem,1fr));gap:1rem;
 margin-top:1.2rem}
.tile{background:#fff;border:1px solid var(--line);border-top:4px solid var(--soft);
 border-radius:10px;padding:.9rem 1.2rem}
.tile b{display:block;font-size:1.9rem;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft)}
.tile.attacked{border-top-color:var(--attacked)}.tile.certified{border-top-color:var(--certified)}
.curve img{display:block;width:100%;max-width:50rem;margin:0 auto;height:auto}
.note{color:var(--soft);font-size:.9rem;margin:.8rem 0 0}
.calm{color:var(--certified);padding:.8rem 1.5rem}
.alarm{border-color:#f2c3a7;background:#fff7f1}.alarm ul{margin:0;padding-left:1.2rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{text-align:left;padding:.45rem .8rem .45rem 0;border-bottom:1px solid var(--line);
 vertical-align:baseline}
thead th{color:var(--soft);font-weight:600}tbody tr:last-child>*{border-bottom:0}
td{font-variant-numeric:tabular-nums}.numeric th:not(:first-child),.numeric td:not(:first-child)
 {text-align:right}
small{color:var(--soft);margin-left:.4rem;font-size:.82rem}td>small:first-child{margin-left:0}
.pairs th{font-weight:500;color:var(--soft);width:16rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(21rem,1fr));gap:1rem}
.card{border:1px solid var(--line);border-radius:8px;padding:.8rem;font-size:.85rem;
 color:var(--soft)}
.views{display:grid;grid-template-columns:repeat(3,1fr);gap:.6rem}
figure{margin:0 0 .5rem}figure img{width:100%;display:block;image-rendering:pixelated;
 border-radius:4px;background:#eee}
figcaption{margin-top:.25rem}figcaption b{display:block;color:var(--ink);min-height:1.4em}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
