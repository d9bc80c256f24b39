"""Several evaluations side by side: one table, one figure, one page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo import plots
from dynzoo.robustness.report import RobustnessReport
from dynzoo.robustness.saved_report import SavedReport, read_report
from dynzoo.utils.csv_text import csv_text
from dynzoo.utils.files import write_atomically
from dynzoo.utils.formatting import eps_text, norm_text
from dynzoo.utils.html import document, image, percent, picture, table, text

__all__ = ["Comparison", "compare"]

# What must agree for two numbers to be comparable.
_SAME = ("attacks", "checks", "seed")


@dataclass
class Comparison:
    """Reports of several models on the same images.

    Args:
        names: A name for each report.
        reports: the reports.
        notes: where the reports differ in how they were made.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
    >>> reports = [dynzoo.evaluate(model, x, y, attacks="none", eps=e) for e in (0.1, 0.1)]
    >>> dynzoo.compare(reports, names=["first", "second"]).differences("first", "second", 0.1)
    (0, 0)
    """

    names: list[str]
    reports: list[RobustnessReport | SavedReport]
    notes: list[str]

    def rows(self) -> list[dict[str, Any]]:
        """A row a model and radius, with accuracies as shares of the images."""
        return [
            {
                "model": name,
                "images": report.images,
                "norm": report.norm,
                "eps": e,
                "clean": report.clean,
                "attacked": report.robust[e],
                "certified": report.certified[e],
                "warnings": " ".join(sorted({w.name for w in report.warnings})),
            }
            for name, report in zip(self.names, self.reports, strict=True)
            for e in sorted(report.robust)
        ]

    def _csv(self) -> str:
        rows = self.rows()
        return csv_text(rows[0], rows)

    def differences(self, first: str, second: str, eps: float) -> tuple[int, int]:
        """Images that one model has robust at a radius and the other has not: (first, second).

        Robust is what survived the attacks; where one of the two was not attacked, what is proved.
        Pairs tell more than two shares do: the sign of a small difference of shares is chance
        unless one of these counts is much larger than the other (McNemar's test).

        Raises:
            ValueError: if a name is none of these, or neither attacks nor certificates are there
                for both.
        """
        one, other = (self._report(name) for name in (first, second))
        attacked = one.attacked and other.attacked
        a, b = (_robust(report, eps, attacked) for report in (one, other))
        return int((a & ~b).sum()), int((b & ~a).sum())

    def _report(self, name: str) -> RobustnessReport | SavedReport:
        if name not in self.names:
            raise ValueError(f"`name` must be one of {self.names}. Received: {name!r}")
        return self.reports[self.names.index(name)]

    def to_dict(self) -> dict[str, Any]:
        """Rows, notes and the settings of each report, JSON-able."""
        details = {
            name: report.to_dict() for name, report in zip(self.names, self.reports, strict=True)
        }
        return {"rows": self.rows(), "notes": self.notes, "reports": details}

    def _repr_html_(self) -> str:
        """Numbers and curves, for a notebook."""
        return notebook(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Attacked (solid) and certified (dashed) accuracy by radius, a colour a model."""
        figure = plots.comparison_figure(
            {
                name: (report.clean, report.robust, report.certified)
                for name, report in zip(self.names, self.reports, strict=True)
            },
            self.reports[0].norm,
        )
        if path is not None:
            figure.savefig(path, dpi=160)
        return figure

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a page (``.html``), data (``.json``) or rows (``.csv``), complete or not at all.

        Raises:
            ValueError: if the suffix is another one.
        """
        path = Path(path)
        if path.suffix.lower() == ".html":
            content = render(self)
        elif path.suffix.lower() == ".json":
            content = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        elif path.suffix.lower() == ".csv":
            content = self._csv()
        else:
            raise ValueError(
                f"`path` must end in .html or .json or .csv. Received: path={str(path)!r}"
            )
        write_atomically(path, content.encode())
        return path


def compare(
    reports: Iterable[RobustnessReport | SavedReport | str | os.PathLike[str]],
    names: Sequence[str] | None = None,
) -> Comparison:
    """Put reports of ``dynzoo.evaluate`` side by side.

    Args:
        reports: at least one report, or JSON file of a report that was saved; all of the same
            images, norm and radii.
        names: A name for each; by default the name of its model, with a number if not unique.

    Returns:
        A ``Comparison``.

    Raises:
        ValueError: if there is no report, a file holds none, or they are of other images, norms
            or radii, as far as the labels and the shape of the images tell.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> a, b = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ab")
    >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
    >>> reports = [dynzoo.evaluate(model, x, y, attacks="none") for model in (a, b)]
    >>> dynzoo.compare(reports, names=["a", "b"]).save("both.html").name
    'both.html'
    """
    read = [read_report(r) if isinstance(r, (str, os.PathLike)) else r for r in reports]
    if not read:
        raise ValueError("`reports` must hold at least one report. Received: none")
    first = read[0]
    for report in read[1:]:
        for what, a, b in (
            ("norm", first.norm, report.norm),
            ("eps", sorted(first.robust), sorted(report.robust)),
            ("images", first.images, report.images),
            ("shape of images", _shape(first), _shape(report)),
        ):
            if a != b:
                raise ValueError(f"`reports` must agree in their {what}. Received: {a} and {b}")
        if not np.array_equal(first.per_image["labels"], report.per_image["labels"]):
            raise ValueError("`reports` must be of the same images. Their labels differ.")
    if names is None:
        names = numbered([str(r.details.get("model") or "model") for r in read])
    if len(names) != len(read) or len(set(names)) != len(names):
        raise ValueError(f"`names` must be {len(read)} different names. Received: {list(names)}")
    notes = []
    for key in _SAME:
        values = [_setting(report, key) for report in read]
        if any(value != values[0] for value in values):
            notes.append(f"The reports differ in their {key}: {_short(names, values)}.")
    settings = [_attack_settings(report) for report in read]
    # of attacks of other names that is said above
    if all(each.keys() == settings[0].keys() for each in settings):
        other = [k for k, v in settings[0].items() if any(each[k] != v for each in settings)]
        values = [", ".join(f"{k} {each[k]}" for k in other) for each in settings]
        if other:
            notes.append(f"Their attacks differ in their settings: {_short(names, values)}.")
    return Comparison(list(names), read, notes)


def _robust(report: RobustnessReport | SavedReport, eps: float, attacked: bool) -> np.ndarray:
    """Which images are robust at a radius: by the attacks, or else by the certificate."""
    if attacked:
        return report.per_image["robust"][sorted(report.robust).index(eps)]
    radii = report.per_image["radii"]
    if radii is None:
        raise ValueError("A model that was neither attacked nor certified has no robust images.")
    if report.norm == "l2":
        return radii > eps
    proved = radii > eps * np.sqrt(np.prod(report.details["image_shape"]))
    own = report.per_image.get("linf_radii")
    return proved if own is None else proved | (own > eps)


def _shape(report: RobustnessReport | SavedReport) -> list[int] | None:
    shape = report.details.get("image_shape")
    return None if shape is None else list(shape)


def _attack_settings(report: RobustnessReport | SavedReport) -> dict[str, Any]:
    """Steps, restarts and so on of each attack at the smallest radius, by attack and name."""
    runs = report.details.get("runs") or []
    found = {
        f"{run['name']} {key}": value
        for run in runs
        if run["eps"] == runs[0]["eps"]
        for key, value in run["config"].items()
        if key not in ("eps", "seed", "batch_size")  # said above, or of no weight
    }
    return json.loads(json.dumps(found, default=str))  # as a file would give it


def _setting(report: RobustnessReport | SavedReport, key: str) -> Any:
    if key == "attacks":
        return report.details.get("threat_model", {}).get("attacks")
    return report.details.get(key)


def _short(names: Sequence[str], values: Sequence[Any]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))


def numbered(names: list[str]) -> list[str]:
    """The names, from its second use on each with a number."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        result.append(name if counts[name] == 1 else f"{name} {counts[name]}")
    return result


def render(comparison: Comparison) -> str:
    """The comparison as one HTML page without any reference to another file."""
    first = comparison.reports[0]
    intro = (
        f"{first.images} images, {norm_text(first.norm)} perturbations inside the pixel "
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
    curve = picture(lambda: plots.svg(comparison.plot()), _curves_text(comparison))
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
            text(eps_text(row["eps"])),
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
    low, high = plots.wilson_interval(share, count)
    return f"{percent(share)} <small>{100 * low:.1f}&ndash;{100 * high:.1f}</small>"


def _curves_text(comparison: Comparison) -> str:
    """What the curves show, in words."""
    parts = []
    for row in comparison.rows():
        known = [
            f"{name} {percent(row[key])}"
            for name, key in (("certified", "certified"), ("under attack", "attacked"))
            if row[key] is not None
        ]
        known = known or ["nothing known"]
        parts.append(f"{row['model']} at {eps_text(row['eps'])}: {' and '.join(known)}")
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
                cells = [f"{a} / {b}", eps_text(e), only_a, only_b]
                rows.append([text(cell) for cell in cells])
    note = (
        '<p class="note">Images that stay right under attack with one model only; of two models '
        "that were not both attacked, those proved with one only. A difference of shares means "
        "little unless one count is much larger than the other.</p>"
    )
    header = ["models", "radius", "first only", "second only"]
    return f"<section><h2>Image by image</h2>{table(header, rows)}{note}</section>"
