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

__all__ = ["Comparison", "compare"]

# What must agree for two numbers to be comparable.
_SAME = ("attacks", "checks", "seed")


@dataclass
class Comparison:
    """Reports of several models on the same images.

    Args:
        names: A name for each report.
        reports: The reports.
        notes: Where the reports differ in how they were made.
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
            ValueError: If a name is none of these, or neither attacks nor certificates are there
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
        from dynzoo.robustness.comparison_page import (
            notebook,  # it reads the comparison, hence this file
        )

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
        """Write a page (`.html`), data (`.json`) or the rows (`.csv`), complete or not at all.

        Raises:
            ValueError: If the suffix is another one.
        """
        path = Path(path)
        if path.suffix.lower() == ".html":
            from dynzoo.robustness.comparison_page import (
                render,  # it reads the comparison, hence this file
            )

            text = render(self)
        elif path.suffix.lower() == ".json":
            text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        elif path.suffix.lower() == ".csv":
            text = self._csv()
        else:
            raise ValueError(
                f"`path` must end in .html or .json or .csv. Received: path={str(path)!r}"
            )
        write_atomically(path, text.encode())
        return path


def compare(
    reports: Iterable[RobustnessReport | SavedReport | str | os.PathLike[str]],
    names: Sequence[str] | None = None,
) -> Comparison:
    """Put reports of `dynzoo.evaluate` side by side.

    Args:
        reports: At least one report, or JSON file of a report that was saved; all of the same
            images, norm and radii.
        names: A name for each; by default the name of its model, with a number if not unique.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: If there is no report, a file holds none, or they are of other images, norms
            or radii.

    Example:

    >>> compare([dynzoo.evaluate(a, x, y), dynzoo.evaluate(b, x, y)]).save("both.html")
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
    return Comparison(list(names), read, notes)


def _robust(report: RobustnessReport | SavedReport, eps: float, attacked: bool) -> np.ndarray:
    """Which images are robust at a radius: by the attacks, or else by the certificate."""
    if attacked:
        return report.per_image["robust"][sorted(report.robust).index(eps)]
    radii = report.per_image["radii"]
    if radii is None:
        raise ValueError("A model that was neither attacked nor certified has no robust images.")
    entries = np.prod(report.details["image_shape"]) if report.norm == "linf" else 1.0
    return radii > eps * np.sqrt(entries)


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
