"""The result of an evaluation: numbers, figure, files, and a page with its pictures inside it."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo import plots
from dynzoo.attacks.geometry import distances
from dynzoo.certificates.local.complete_certificate import OUTCOMES
from dynzoo.inference.answers import NO_ANSWER
from dynzoo.robustness.checks.warning import EvaluationWarning
from dynzoo.robustness.outcomes import Outcomes
from dynzoo.utils.files import write_atomically
from dynzoo.utils.formatting import eps_text, norm_text
from dynzoo.utils.html import document, image, percent, picture, table, text

# Attacked images in the gallery.
EXAMPLES = 8


@dataclass(frozen=True)
class AttackedImage:
    """One image that an attack fooled: for the gallery of the report."""

    index: int
    label: int
    fooled_label: int
    eps: float
    distance: float
    x: np.ndarray
    x_adv: np.ndarray


def attacked_images(
    x: np.ndarray,
    y: np.ndarray,
    fooled: list[tuple[int, int, np.ndarray]],
    eps: float,
    norm: str,
) -> list[AttackedImage]:
    """Examples from (row, label of the point, point) of images that fell at a radius."""
    return [
        AttackedImage(
            index=row,
            label=int(y[row]),
            fooled_label=label,
            eps=eps,
            distance=float(distances(point[None], x[row : row + 1], norm)[0]),
            x=x[row].copy(),
            x_adv=point.copy(),
        )
        for row, label, point in fooled
    ]


def spread(examples: list[AttackedImage]) -> list[AttackedImage]:
    """At most ``EXAMPLES`` of the examples, taken from each radius in turn, smallest first."""
    ranked = []
    seen: dict[float, int] = {}
    for example in examples:
        seen[example.eps] = seen.get(example.eps, 0) + 1
        ranked.append((seen[example.eps], example.eps, example))
    ranked.sort(key=lambda item: item[:2])
    return sorted((item[2] for item in ranked[:EXAMPLES]), key=lambda item: item.eps)


@dataclass
class RobustnessReport:
    r"""What ``dynzoo.evaluate`` found.

    At every radius $\text{certified} \le \text{true robust accuracy} \le \text{robust}$: the first
    is proved, the last is what survived the attacks that were tried.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        clean: accuracy without an attack.
        robust: accuracy under attack at each radius; ``None`` values if nothing was attacked.
        certified: certified accuracy at each radius; ``None`` values if there is no certificate.
        warnings: named reasons to doubt the numbers.
        per_image: ``"correct"`` (n,), ``"robust"`` (radii, n) or ``None``, both bool, ``"labels"``
            (n,), and ``"radii"``: certified L2 radii (n,), 0 for wrong images, or ``None``;
            ``"linf_radii"`` likewise, where a certificate has radii in that norm.
        outcomes: what each attack did to each image at each radius.
        examples: A few attacked images.
        details: attacks with every parameter, certificate, seed, versions, time.
        title: heading of the page.
        class_names: names of the classes.
        sections: further parts of the page, pairs of a heading and a text, a list of (name, value),
            a PNG or SVG file as bytes, or a tuple of these.
        smoothed: numbers of a smoothed classifier, which is another classifier than the model:
            ``"clean"``, ``"abstained"``, ``"certified"`` at each radius, its ``"settings"`` and
            the number of ``"images"``.
        prediction_sets: sets of labels that hold the right one under attack with a probability of
            1 - ``"alpha"``: ``"coverage"`` and mean ``"size"`` on clean images at radius 0 and each
            radius, ``"certified_coverage"`` under any attack, how many ``"calibration_images"`` and
            other ``"images"`` these numbers are of, and the ``"threshold"`` (``None``: too few
            images).
        decisions: at each radius the shares of the images that a complete certificate found
            ``"certified"``, ``"falsified"`` (wrong, or with a point of the ball, whose pixels may
            leave [0, 1], that has another answer) and ``"unknown"`` when time was over.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
    >>> report = dynzoo.evaluate(model, x, y, eps=0.1, attacks="none")
    >>> report.certified[0.1] <= report.clean
    True
    >>> report.save("report.html").name
    'report.html'
    """

    norm: str
    clean: float
    robust: dict[float, float | None]
    certified: dict[float, float | None]
    warnings: list[EvaluationWarning] = field(default_factory=list)
    per_image: dict[str, Any] = field(default_factory=dict, repr=False)
    examples: list[AttackedImage] = field(default_factory=list, repr=False)
    details: dict[str, Any] = field(default_factory=dict)
    title: str = "Robustness"
    class_names: list[str] | None = None
    sections: list[tuple[str, Any]] = field(default_factory=list)
    smoothed: dict[str, Any] | None = None
    prediction_sets: dict[str, Any] | None = None
    decisions: dict[float, dict[str, float]] | None = None
    outcomes: Outcomes | None = field(default=None, repr=False)

    @property
    def images(self) -> int:
        """Number of evaluated images."""
        return len(self.per_image["correct"])

    @property
    def attacked(self) -> bool:
        """Whether attacks ran; without them only what is proved is known."""
        return self.per_image["robust"] is not None

    def radii(self) -> np.ndarray | None:
        """Certified radius of each image in the report's norm, or ``None``."""
        radii = self.per_image.get("radii")
        if radii is None or self.norm == "l2":
            return radii
        radii = radii / np.sqrt(np.prod(self.details["image_shape"]))
        own = self.per_image.get("linf_radii")
        return radii if own is None else np.maximum(radii, own)

    def after_each_attack(self) -> dict[str, dict[float, float]]:
        """Accuracy at each radius after the attacks of the list up to each one."""
        if self.outcomes is None or not self.attacked:
            return {}
        shares = self.outcomes.cumulative()
        return {
            name: dict(zip(self.outcomes.eps, row.tolist(), strict=True))
            for name, row in zip(self.outcomes.attacks, shares, strict=True)
        }

    def undecided(self, eps: float) -> np.ndarray:
        """Numbers of the images that are neither proved nor broken at one of the radii."""
        at = sorted(self.robust).index(eps)
        radii = self.radii()
        proved = np.zeros(self.images, bool) if radii is None else radii > eps
        left = self.per_image["robust"][at] if self.attacked else self.per_image["correct"]
        return np.flatnonzero(left & ~proved)

    def to_dict(self, per_image: bool = False) -> dict[str, Any]:
        """The report as JSON-able data; ``per_image=True`` adds one entry for every image."""
        result: dict[str, Any] = {
            "schema": 1,
            "title": self.title,
            "norm": self.norm,
            "images": self.images,
            "eps": sorted(self.robust),
            "clean": self.clean,
            "robust": {repr(e): v for e, v in self.robust.items()},
            "certified": {repr(e): v for e, v in self.certified.items()},
            "after_each_attack": {
                name: {repr(e): v for e, v in shares.items()}
                for name, shares in self.after_each_attack().items()
            },
            "warnings": [w.to_dict() for w in self.warnings],
            **self.details,
        }
        if self.smoothed is not None:
            shares = {repr(e): v for e, v in self.smoothed["certified"].items()}
            result["smoothed"] = {**self.smoothed, "certified": shares}
        if self.prediction_sets is not None:
            by_radius = {
                key: {repr(e): v for e, v in self.prediction_sets[key].items()}
                for key in ("coverage", "size")
            }
            result["prediction_sets"] = {**self.prediction_sets, **by_radius}
        if self.decisions is not None:
            result["decisions"] = {repr(e): shares for e, shares in self.decisions.items()}
        if per_image:
            radii = self.per_image["radii"]
            result["per_image"] = {
                "correct": self.per_image["correct"].tolist(),
                "robust": self.per_image["robust"].tolist() if self.attacked else None,
                "labels": self.per_image["labels"].tolist(),
                "radii": None if radii is None else radii.tolist(),
            }
            own = self.per_image.get("linf_radii")
            if own is not None:
                result["per_image"]["linf_radii"] = own.tolist()
        return result

    def _repr_html_(self) -> str:
        """The numbers and the curve, for a notebook."""
        return notebook(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Accuracy versus radius as a matplotlib figure; saved too if ``path`` is given."""
        figure = plots.robustness_figure(
            self.clean, self.robust, self.radii(), self.norm, self.after_each_attack()
        )
        if path is not None:
            figure.savefig(path, dpi=160)
        return figure

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report; the file appears complete or not at all.

        ``.html`` is a page for people, ``.json`` all numbers and settings and which images are
        right and robust, which ``dynzoo compare`` reads, ``.csv`` and ``.npz`` what each attack did
        to each image (``Outcomes``).

        Raises:
            ValueError: if the suffix is another one.
        """
        path = Path(path)
        if path.suffix.lower() == ".html":
            content = render(self)
        elif path.suffix.lower() == ".json":
            content = _json(self.to_dict(per_image=True))
        elif path.suffix.lower() in (".csv", ".npz") and self.outcomes is not None:
            labels, radii = self.per_image.get("labels"), self.per_image.get("radii")
            self.outcomes.save(path, labels, radii)
            return path
        else:
            raise ValueError(
                f"`path` must end in .html, .json, .csv or .npz. Received: path={str(path)!r}"
            )
        write_atomically(path, content.encode())
        return path


def _json(data: dict[str, Any]) -> str:
    """A report as indented JSON, but with a line for each array of the images."""
    arrays = data.pop("per_image")
    lines = [
        f"    {json.dumps(name)}: {json.dumps(values, allow_nan=False)}"
        for name, values in arrays.items()
    ]
    head = json.dumps(data, indent=2, allow_nan=False).removesuffix("\n}")
    return head + ',\n  "per_image": {\n' + ",\n".join(lines) + "\n  }\n}\n"


# Images that a table lists.
_LISTED = 20


def render(report: RobustnessReport) -> str:
    """The report as one HTML page without any reference to another file."""
    versions = report.details.get("versions", {})
    radii = ", ".join(eps_text(e) for e in sorted(report.robust))
    norm = norm_text(report.norm)
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
    if report.decisions is not None:
        parts.append(f"<section><h2>Decided at the image</h2>{_decided(report)}</section>")
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
    parts = [f"Accuracy versus {norm_text(report.norm)} radius: clean {percent(report.clean)}"]
    for e in sorted(report.robust):
        known = [
            f"{name} {percent(share)}"
            for name, share in (
                ("certified", report.certified[e]),
                ("under attack", report.robust[e]),
            )
            if share is not None
        ]
        parts.append(f"at {eps_text(e)} " + (" and ".join(known) or "nothing known"))
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
    curve = picture(lambda: plots.svg(report.plot()), curve_text(report))
    return (
        f"<div><p><b>{text(report.title)}</b>, {report.images} images</p>{_numbers(report)}"
        f'<div style="max-width:40rem;background:#fff">{curve}</div>'
        f"{f'<ul>{warnings}</ul>' if warnings else ''}</div>"
    )


def _tiles(report: RobustnessReport) -> str:
    first = min(report.robust)
    at = f"at {eps_text(first)}"
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
        rows.append((f"certified at {eps_text(e)}", percent(share)))
    note = (
        "<p class=note>The model under Gaussian noise, by majority, is another classifier than the "
        "model above: these radii are certified for its answers, image by image with probability "
        f"1 &minus; alpha ({text(settings)}). The attacks were on the model without noise.</p>"
    )
    return table([f"smoothed classifier, {numbers['images']} images", ""], rows) + note


def decision_shares(
    eps: Sequence[float], decisions: np.ndarray | None
) -> dict[float, dict[str, float]] | None:
    """Shares of the words of a complete certificate at each radius."""
    if decisions is None:
        return None
    return {
        e: {word: float(np.mean(row == word)) for word in OUTCOMES}
        for e, row in zip(eps, decisions, strict=True)
    }


def _decided(report: RobustnessReport) -> str:
    decisions = report.decisions or {}
    rows = [
        [text(eps_text(e)), *(percent(decisions[e][word]) for word in OUTCOMES)]
        for e in sorted(decisions)
    ]
    note = (
        "<p class=note>By branch and bound on the ball of each image. Falsified: the answer is "
        "wrong, or a point of the ball has another; its pixels may leave [0, 1], as the ball does. "
        "Unknown: time was over.</p>"
    )
    return table(["radius", *OUTCOMES], rows) + note


def _sets(report: RobustnessReport) -> str:
    sets = report.prediction_sets or {}
    promised = f"{percent(1 - sets['alpha'])}"
    rows = [
        [
            text(eps_text(e)) if e else "0",
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
    if report.per_image.get("linf_radii") is not None:
        return " Some of it is proved on Linf balls themselves."
    return (
        " The certificate is an L2 one: a Linf ball lies in the L2 ball whose radius is larger by "
        "the square root of the number of pixel values."
    )


def _numbers(report: RobustnessReport) -> str:
    def cell(value: float | None) -> str:
        if value is None:
            return "&ndash;"
        low, high = plots.wilson_interval(value, report.images)
        return f"{percent(value)} <small>{100 * low:.1f}&ndash;{100 * high:.1f}</small>"

    rows = [["0 (clean)", cell(None), cell(report.clean)]]
    for e in sorted(report.robust):
        rows.append([text(eps_text(e)), cell(report.certified[e]), cell(report.robust[e])])
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
            f"image {example.index}, radius {eps_text(example.eps)}, "
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
        rows.append([text(eps_text(e)), str(len(left)), shown or "&ndash;"])
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
                cells = [row, eps_text(e), outcomes.attacks[attack]]
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
                text(eps_text(run["eps"])),
                text(run["attack"]),
                f"<small>{text(config)}</small>",
                str(run["attacked"]),
                str(run["broken"]),
            ]
        )
    note = '<p class="note">Each attack runs on the images that the earlier ones left.</p>'
    return table(["radius", "attack", "parameters", "attacked", "broken"], rows, False) + note
