"""The result of an evaluation: its numbers, its figure, and the files it is saved to."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo import plots
from dynzoo.attacks.geometry import distances
from dynzoo.robustness.checks.warning import EvaluationWarning
from dynzoo.robustness.outcomes import Outcomes
from dynzoo.utils.files import write_atomically

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
    """At most `EXAMPLES` of the examples, taken from each radius in turn, smallest first."""
    ranked = []
    seen: dict[float, int] = {}
    for example in examples:
        seen[example.eps] = seen.get(example.eps, 0) + 1
        ranked.append((seen[example.eps], example.eps, example))
    ranked.sort(key=lambda item: item[:2])
    return sorted((item[2] for item in ranked[:EXAMPLES]), key=lambda item: item.eps)


@dataclass
class RobustnessReport:
    r"""What `dynzoo.evaluate` found.

    At every radius $\text{certified} \le \text{true robust accuracy} \le \text{robust}$: the first
    is proved, the last is what survived the attacks that were tried.

    Args:
        norm: `"l2"` or `"linf"`.
        clean: Accuracy without an attack.
        robust: Accuracy under attack at each radius; `None` values if nothing was attacked.
        certified: Certified accuracy at each radius; `None` values if there is no certificate.
        warnings: Named reasons to doubt the numbers.
        per_image: `"correct"` (n,), `"robust"` (radii, n) or `None`, both bool, `"labels"` (n,),
            and `"radii"`: certified L2 radii (n,), 0 for wrong images, or `None`.
        outcomes: What each attack did to each image at each radius.
        examples: A few attacked images.
        details: Attacks with every parameter, certificate, seed, versions, time.
        title: Heading of the page.
        class_names: Names of the classes.
        sections: Further parts of the page, pairs of a heading and a text, a list of (name, value),
            a PNG or SVG file as bytes, or a tuple of these.
        smoothed: Numbers of a smoothed classifier, which is another classifier than the model:
            `"clean"`, `"abstained"`, `"certified"` at each radius and its `"settings"`.
        prediction_sets: Sets of labels that hold the right one under attack with a probability of
            1 - `"alpha"`: `"coverage"` and mean `"size"` on clean images at radius 0 and each
            radius, `"certified_coverage"` under any attack, how many `"calibration_images"` and
            other `"images"` these numbers are of, and the `"threshold"` (`None`: too few images).
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
        """Certified radius of each image in the report's norm, or `None`."""
        radii = self.per_image.get("radii")
        if radii is None or self.norm == "l2":
            return radii
        return radii / np.sqrt(np.prod(self.details["image_shape"]))

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
        """The report as JSON-able data; `per_image=True` adds one entry for every image."""
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
        if per_image:
            radii = self.per_image["radii"]
            result["per_image"] = {
                "correct": self.per_image["correct"].tolist(),
                "robust": self.per_image["robust"].tolist() if self.attacked else None,
                "labels": self.per_image["labels"].tolist(),
                "radii": None if radii is None else radii.tolist(),
            }
        return result

    def _repr_html_(self) -> str:
        """The numbers and the curve, for a notebook."""
        from dynzoo.robustness.page import (
            notebook,  # the page reads the report, so it imports this file
        )

        return notebook(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Accuracy versus radius as a matplotlib figure; saved too if `path` is given."""
        figure = plots.robustness_figure(
            self.clean, self.robust, self.radii(), self.norm, self.after_each_attack()
        )
        if path is not None:
            figure.savefig(path, dpi=160)
        return figure

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report; the file appears complete or not at all.

        `.html` is a page for people, `.json` all numbers and settings and which images are right
        and robust, which `dynzoo compare` reads, `.csv` and `.npz` what each attack did to each
        image (`Outcomes`).

        Raises:
            ValueError: If the suffix is another one.
        """
        path = Path(path)
        if path.suffix.lower() == ".html":
            from dynzoo.robustness.page import (
                render,  # the page reads the report, so it imports this file
            )

            text = render(self)
        elif path.suffix.lower() == ".json":
            text = _json(self.to_dict(per_image=True))
        elif path.suffix.lower() in (".csv", ".npz") and self.outcomes is not None:
            labels, radii = self.per_image.get("labels"), self.per_image.get("radii")
            self.outcomes.save(path, labels, radii)
            return path
        else:
            raise ValueError(
                f"`path` must end in .html, .json, .csv or .npz. Received: path={str(path)!r}"
            )
        write_atomically(path, text.encode())
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
