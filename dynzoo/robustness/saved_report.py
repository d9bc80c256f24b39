"""Reports that were saved as JSON, read again: what ``compare`` needs of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynzoo.robustness.checks.warning import EvaluationWarning
from dynzoo.utils import strict_json
from dynzoo.utils.strict_json import short

__all__ = ["SavedReport", "read_report"]

_MAX_BYTES = 256 * 2**20  # a million images at ten radii


@dataclass(frozen=True)
class SavedReport:
    """A ``RobustnessReport`` without its pictures: numbers, settings, and the fate of each image.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        clean: accuracy without an attack.
        robust: accuracy under attack at each radius; ``None`` values if nothing was attacked.
        certified: certified accuracy at each radius; ``None`` values if there is no certificate.
        warnings: named reasons to doubt the numbers.
        per_image: ``"correct"`` (n,), ``"robust"`` (radii, n) or ``None``, both bool, ``"labels"``
            (n,), ``"radii"`` and ``"linf_radii"``, (n,) or ``None``.
        details: all that the file holds, but for ``per_image``.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> from dynzoo.robustness import read_report
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
    >>> dynzoo.evaluate(model, x, y, attacks="none").save("report.json").name
    'report.json'
    >>> read_report("report.json").images
    20
    """

    norm: str
    clean: float
    robust: dict[float, float | None]
    certified: dict[float, float | None]
    warnings: list[EvaluationWarning]
    per_image: dict[str, Any] = field(repr=False)
    details: dict[str, Any] = field(repr=False)

    @property
    def attacked(self) -> bool:
        """Whether attacks ran; without them only what is proved is known."""
        return self.per_image["robust"] is not None

    @property
    def images(self) -> int:
        """Number of evaluated images."""
        return len(self.per_image["correct"])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data, as ``RobustnessReport.to_dict`` gave it."""
        return self.details


def read_report(path: str | os.PathLike[str]) -> SavedReport:
    """A report from the file that ``RobustnessReport.save("report.json")`` wrote.

    Args:
        path: the JSON file.

    Returns:
        A ``SavedReport``.

    Raises:
        ValueError: if the file is something else, damaged, or without the fate of each image.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> from dynzoo.robustness import read_report
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
    >>> report = dynzoo.evaluate(model, x, y, attacks="none")
    >>> path = report.save("report.json")
    >>> read_report("report.json").clean == report.clean
    True
    """
    try:
        data = strict_json.read(path, _MAX_BYTES)
        if not isinstance(data, dict) or data.get("schema") != 1:
            raise ValueError("it is no report of schema 1")
        if "per_image" not in data:
            raise ValueError("it does not hold what became of each image: evaluate again")
        per_image = _arrays(data.pop("per_image"))
        report = SavedReport(
            norm=data["norm"],
            clean=data["clean"],
            robust={float(e): share for e, share in data["robust"].items()},
            certified={float(e): share for e, share in data["certified"].items()},
            warnings=[EvaluationWarning(**warning) for warning in data["warnings"]],
            per_image=per_image,
            details=data,
        )
        _check(report)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`path` must be a report that was saved as JSON. {path} is damaged or something else "
            f"({short(error)})"
        ) from error
    return report


def _arrays(lists: dict[str, Any]) -> dict[str, Any]:
    radii, own, robust = lists["radii"], lists.get("linf_radii"), lists["robust"]
    return {
        "correct": np.array(lists["correct"], dtype=bool),
        "robust": None if robust is None else np.array(robust, dtype=bool),
        "labels": np.array(lists["labels"], dtype=np.int64),
        "radii": None if radii is None else np.array(radii, dtype=np.float64),
        "linf_radii": None if own is None else np.array(own, dtype=np.float64),
    }


def _check(report: SavedReport) -> None:
    """Raise a ValueError where the fates of the images are not those of the shares."""
    correct, robust = report.per_image["correct"], report.per_image["robust"]
    if report.norm not in ("l2", "linf"):
        raise ValueError("its norm is neither l2 nor linf")
    shapes = [report.per_image["labels"].shape]
    expected: list[tuple[int, ...]] = [(report.images,)]
    shares, found = [report.robust[e] for e in sorted(report.robust)], []
    if robust is not None:
        shapes.append(robust.shape)
        expected.append((len(report.robust), report.images))
    if shapes != expected:
        raise ValueError(f"it has arrays of shapes {shapes} for {report.images} images")
    if robust is not None:
        found = robust.mean(axis=1).tolist()
    elif any(share is not None for share in shares):
        raise ValueError("it has accuracies under attack, and does not say of which images")
    known = [share for share in shares if share is not None]
    if len(known) != len(found) or not np.allclose(
        [report.clean, *known], [correct.mean(), *found]
    ):
        raise ValueError("its accuracies are not those of its images")
    if set(report.certified) != set(report.robust):
        raise ValueError("its certified and attacked radii differ")
    if not all(eps > 0 for eps in report.robust):
        raise ValueError("a radius is not above 0")
    for radii in (report.per_image["radii"], report.per_image["linf_radii"]):
        if radii is not None and (radii.shape != correct.shape or not (radii >= 0).all()):
            raise ValueError("its certified radii are not one number >= 0 an image")
    certified = [share for share in report.certified.values() if share is not None]
    if not all(0 <= share <= 1 for share in certified):
        raise ValueError("a certified accuracy is no share in [0, 1]")
