"""The HTML page of a report: one file, its pictures inside it, no script, no outside reference."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynzoo import plots
from dynzoo.inference.answers import NO_ANSWER
from dynzoo.robustness.checks.warning import EvaluationWarning
from dynzoo.robustness.report import RobustnessReport
from dynzoo.utils.html import document, image, percent, table, text

# Images that a table lists.
_LISTED = 20


def interval(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share that was measured on `count` images."""
    z2 = 1.959964**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(share * (1 - share) * z2 / count + z2**2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def render(report: RobustnessReport) -> str:
    """The report as one HTML page without any reference to another file."""
    versions = report.details.get("versions", {})
    radii = ", ".join(plots.eps_text(e) for e in sorted(report.robust))
    norm = plots.norm_text(report.norm)
    if report.attacked:
        intro = (
            f"{report.images} images. Attacker: knows the model and its gradients, moves each "
            f"image by at most {radii} in {norm} norm, inside the pixel range "
            "[0, 1], to any wrong answer. "
            "An image counts as broken if any attack fools it at this or a smaller radius."
        )
    else:
        intro = (
            f"{report.images} images, certified and not attacked: what is proved at {radii} in "
            f"{norm} norm is a lower bound of the robust accuracy, and its only one above is the "
            "clean accuracy."
        )
    tried = report.details.get("threat_model", {}).get("attacks_on_certified_images", "all")
    if report.radii() is not None and tried != "all" and len(report.details.get("runs", [])) > 1:
        only = "by the first attack only" if tried == "first" else "by none"
        intro += f" Images whose certificate covers a radius were attacked there {only}."
    figure = image(plots.svg(report.plot()), curve_text(report))
    parts = [
        f"<header><h1>{text(report.title)}</h1><p>{text(intro)}</p>{_tiles(report)}</header>",
        _warnings(report.warnings),
        f'<section><h2>Accuracy versus radius</h2><div class="curve">{figure}</div>'
        "<p class=note>Certified: proved, no perturbation of that size changes a correct answer. "
        f"{_between(report)}{_conversion(report)}</p></section>",
        f"<section><h2>Numbers</h2>{_numbers(report)}</section>",
    ]
    if report.attacked:
        parts.append(f"<section><h2>Attacked images</h2>{_gallery(report)}</section>")
    parts.append(f"<section><h2>Hardest images</h2>{_hardest(report)}</section>")
    if report.smoothed is not None:
        parts.append(f"<section><h2>Randomised smoothing</h2>{_smoothing(report)}</section>")
    if report.prediction_sets is not None:
        parts.append(f"<section><h2>Prediction sets</h2>{_sets(report)}</section>")
    for heading, content in report.sections:
        parts.append(f"<section><h2>{text(heading)}</h2>{_content(content, heading)}</section>")
    if report.attacked:
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
    parts.append(f"<section><h2>Provenance</h2>{_content(facts, 'Provenance')}</section>")
    return document(report.title, parts)


def curve_text(report: RobustnessReport) -> str:
    """What the curve of a report shows, in words."""
    parts = [f"Accuracy versus {plots.norm_text(report.norm)} radius: clean {report.clean:.1%}"]
    for e in sorted(report.robust):
        known = [
            f"{name} {share:.1%}"
            for name, share in (
                ("certified", report.certified[e]),
                ("under attack", report.robust[e]),
            )
            if share is not None
        ]
        parts.append(f"at {plots.eps_text(e)} " + (" and ".join(known) or "nothing known"))
    return "; ".join(parts)


def _between(report: RobustnessReport) -> str:
    if report.attacked:
        return (
            "Under attack: what survived the attacks below; the true robust accuracy lies between "
            "the two."
        )
    return "The true robust accuracy lies between it and the clean one."


def notebook(report: RobustnessReport) -> str:
    """A piece of HTML for the output of a cell: title, numbers, curve, warnings."""
    warnings = "".join(f"<li><b>{text(w.name)}</b> {text(w.text)}</li>" for w in report.warnings)
    curve = image(plots.svg(report.plot()), curve_text(report))
    return (
        f"<div><p><b>{text(report.title)}</b>, {report.images} images</p>{_numbers(report)}"
        f'<div style="max-width:40rem;background:#fff">{curve}</div>'
        f"{f'<ul>{warnings}</ul>' if warnings else ''}</div>"
    )


def _tiles(report: RobustnessReport) -> str:
    first = min(report.robust)
    at = f"at {plots.eps_text(first)}"
    tiles = [
        ("clean", "clean", report.clean),
        ("attacked", f"under attack {at}", report.robust[first]),
        ("certified", f"certified {at}", report.certified[first]),
    ]
    if not report.attacked:
        del tiles[1]
    cells = "".join(
        f'<div class="tile {kind}"><b>{percent(value)}</b><span>{text(name)}</span></div>'
        for kind, name, value in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _smoothing(report: RobustnessReport) -> str:
    numbers = report.smoothed or {}
    settings = ", ".join(f"{k} {v:g}" for k, v in numbers["settings"].items() if k != "type")
    rows = [
        ("accuracy", percent(numbers["clean"])),
        ("no answer", percent(numbers["abstained"])),
    ]
    for e, share in numbers["certified"].items():
        rows.append((f"certified at {plots.eps_text(e)}", percent(share)))
    note = (
        "<p class=note>The model under Gaussian noise, by majority, is another classifier than the "
        "model above: these radii are certified for its answers, image by image with probability "
        f"1 &minus; alpha ({text(settings)}). The attacks were on the model without noise.</p>"
    )
    return table(["smoothed classifier", ""], rows) + note


def _sets(report: RobustnessReport) -> str:
    sets = report.prediction_sets or {}
    promised = f"{percent(1 - sets['alpha'])}"
    rows = [
        [
            text(plots.eps_text(e)) if e else "0",
            promised,
            percent(sets["coverage"][e]),
            f"{sets['size'][e]:.2f}",
        ]
        for e in sorted(sets["size"])
    ]
    if sets["threshold"] is None:
        note = "Too few images to calibrate with: every set holds all classes."
    else:
        note = (
            f"The threshold comes from {sets['calibration_images']} of the images, the numbers "
            f"from the other {sets['images']}. Promised: probability that the set of a new image "
            "like these holds its label, whatever an attack of that size does. For "
            f"{percent(sets['certified_coverage'])} of the measured images that is proved for "
            "themselves."
        )
    header = ["radius", "coverage promised", "coverage, clean images", "labels in a set"]
    return table(header, rows) + f"<p class=note>{note}</p>"


def _warnings(warnings: Sequence[EvaluationWarning]) -> str:
    if not warnings:
        return '<section class="calm">No warnings: the checks of the evaluation passed.</section>'
    items = "".join(f"<li><b>{text(w.name)}</b> {text(w.text)}</li>" for w in warnings)
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
        return f"{percent(value)} <small>{100 * low:.1f}&ndash;{100 * high:.1f}</small>"

    rows = [["0 (clean)", cell(None), cell(report.clean)]]
    for e in sorted(report.robust):
        rows.append([text(plots.eps_text(e)), cell(report.certified[e]), cell(report.robust[e])])
    header = ["radius", "certified", "under attack"]
    if not report.attacked:
        rows[0][1] = rows[0][2]
        header, rows = header[:2], [row[:2] for row in rows]
    note = '<p class="note">Small print: 95 % interval of a measurement on this many images.</p>'
    return table(header, rows) + note


def _gallery(report: RobustnessReport) -> str:
    if not report.examples:
        return "<p>No attack changed a correct answer.</p>"

    def name(label: int) -> str:
        if label == NO_ANSWER:
            return "no answer (NaN)"
        names = report.class_names
        return text(names[label] if names is not None and label < len(names) else label)

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
            f"<figure>{image(plots.image_png(pixels), _seen(example.index, kind, label))}"
            f"<figcaption>{kind}<b>{label}</b></figcaption></figure>"
            for kind, label, pixels in views
        )
        caption = (
            f"image {example.index}, radius {plots.eps_text(example.eps)}, "
            f"distance {example.distance:.4f}"
        )
        cards.append(f'<div class="card"><div class="views">{figures}</div>{text(caption)}</div>')
    return f'<div class="gallery">{"".join(cards)}</div>'


def _seen(index: int, kind: str, label: str) -> str:
    """What a picture of the gallery shows, in words."""
    if not label:
        return f"Image {index}: what the attack changed, enlarged around grey"
    return f"Image {index}, {kind}: {html.unescape(label)}"


def _hardest(report: RobustnessReport) -> str:
    """Images that neither proof nor attack decides, and those that only the last attacks broke."""
    rows = []
    for e in sorted(report.robust):
        left = report.undecided(e)
        shown = ", ".join(str(i) for i in left[:_LISTED]) + (" ..." if len(left) > _LISTED else "")
        rows.append([text(plots.eps_text(e)), str(len(left)), shown or "&ndash;"])
    kind = "Neither proved nor broken" if report.attacked else "Right and not proved"
    parts = f"<p>{kind}:</p>"
    parts += table(["radius", "images", "numbers"], rows, numeric=False)
    outcomes = report.outcomes
    if outcomes is None or len(outcomes.attacks) < 2:
        return parts
    late = []
    for attack in range(len(outcomes.attacks) - 1, 0, -1):
        for radius, e in enumerate(outcomes.eps):
            for row in np.flatnonzero(outcomes.broken[:, attack, radius]):
                cells = [row, plots.eps_text(e), outcomes.attacks[attack]]
                late.append([text(cell) for cell in cells])
    if late:
        parts += "<p>Broken late: what the attacks before this one had missed.</p>"
        late = late[:_LISTED]
        parts += table(["image", "radius", "broken by"], late, numeric=False)
    return parts


def _content(content: Any, heading: str) -> str:
    if isinstance(content, bytes):
        return f'<div class="curve">{image(content, f"Figure: {heading}")}</div>'
    if isinstance(content, tuple):
        return "".join(_content(part, heading) for part in content)
    if isinstance(content, str):
        return "".join(f"<p>{text(line)}</p>" for line in content.split("\n\n"))
    rows = [[text(name), text(value)] for name, value in content]
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f'<div class="scroll"><table class="pairs"><tbody>{body}</tbody></table></div>'


def _runs(runs: Sequence[dict[str, Any]]) -> str:
    hidden = ("norm", "eps", "batch_size", "targeted", "source")
    rows = []
    for run in runs:
        config = ", ".join(
            f"{k}={v}" for k, v in run["config"].items() if k not in hidden and v is not None
        )
        rows.append(
            [
                text(plots.eps_text(run["eps"])),
                text(run["attack"]),
                f"<small>{text(config)}</small>",
                str(run["attacked"]),
                str(run["broken"]),
            ]
        )
    note = '<p class="note">Each attack runs on the images that the earlier ones left.</p>'
    return table(["radius", "attack", "parameters", "attacked", "broken"], rows, False) + note
