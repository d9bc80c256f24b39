"""Labels and radii of the images that a smoothed classifier has answered so far, in a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo import backend
from dynzoo.inference.answers import NO_ANSWER
from dynzoo.inference.model_identity import identity_of
from dynzoo.utils import strict_json
from dynzoo.utils.files import check_place, write_atomically
from dynzoo.utils.strict_json import short

__all__ = ["SmoothingCheckpoint"]

# A file of a few kilobytes, beside seconds of draws an image.
_SECONDS = 5.0


class SmoothingCheckpoint:
    """What a call of ``SmoothedClassifier.radii`` has found, from which the next one goes on.

    An image's noise comes from its index alone, so that a call that goes on finds what one that was
    never stopped does; what a model remembers of its calls is looked for in each by itself. The
    file is trusted as a checkpoint of attacks is: whoever may write it may
    write any radius that the settings allow.

    Args:
        path: JSON file, new or of the same model, images and settings; ``None`` for none.
        smoothed: the smoothed classifier.
        x: the images (n, ...).
        indices: index of each.

    Raises:
        ValueError: if the file is damaged, or of something else.
        OSError: if it cannot be read or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        smoothed: Any,
        x: np.ndarray,
        indices: np.ndarray,
    ):
        self.path = None if path is None else check_place(path)
        self.labels = np.full(len(x), NO_ANSWER, np.int64)
        self.radii = np.zeros(len(x))
        self._known = np.zeros(len(x), bool)
        self._of: dict[str, Any] = {}
        self._written = time.monotonic()
        if self.path is None:
            return
        images = hashlib.sha256(f"{x.shape} {x.dtype}".encode() + x.tobytes())
        images.update(indices.astype(np.int64).tobytes())
        self._of = {
            **{f"model's {key}": value for key, value in identity_of(smoothed.model).items()},
            "images": images.hexdigest(),
            "settings": smoothed.to_dict(),
            "backend": backend.name(),
        }
        if self.path.exists():
            self._read(self.path, smoothed)

    @property
    def left(self) -> np.ndarray:
        """Positions of the images that are still to be answered."""
        return np.flatnonzero(~self._known)

    def add(self, rows: Any, labels: Any, radii: Any) -> None:
        """Takes the answers of a few images, and writes the file if it is time."""
        self.labels[rows], self.radii[rows], self._known[rows] = labels, radii, True
        if time.monotonic() - self._written >= _SECONDS:
            self.write()

    def write(self) -> None:
        """Writes all that is known."""
        if self.path is None:
            return
        rows = np.flatnonzero(self._known)
        found = {
            "positions": rows.tolist(),
            "labels": self.labels[rows].tolist(),
            "radii": self.radii[rows].tolist(),
        }
        write_atomically(self.path, json.dumps({"of": self._of, **found}).encode())
        self._written = time.monotonic()

    def remove(self) -> None:
        """Deletes the file, if there is one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path, smoothed: Any) -> None:
        content = path.read_bytes()
        try:
            file = strict_json.parse(content)
            of, rows = file["of"], np.array(file["positions"], np.int64)
            labels, radii = np.array(file["labels"], np.int64), np.array(file["radii"], np.float64)
            if not isinstance(of, dict) or not rows.shape == labels.shape == radii.shape:
                raise ValueError("its parts do not fit each other")
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(
                f"`checkpoint` must be a file of smoothing, or a new one. {path} is damaged "
                f"or another file ({short(error)})"
            ) from None
        other = [key for key, value in self._of.items() if of.get(key) != value]
        if other:
            raise ValueError(
                f"`checkpoint` must be of this model, these images and settings. {path} "
                f"differs in its {', '.join(other)}: choose another file"
            )
        # the largest radius that so many draws can prove
        most = smoothed.sigma * _quantile(smoothed.alpha ** (1 / smoothed.samples))
        if len(rows) and not (
            0 <= rows.min() <= rows.max() < len(self.labels)
            and labels.min() >= NO_ANSWER
            and (radii >= 0).all()
            and radii.max() <= most
        ):
            raise ValueError(f"`checkpoint` must hold labels and radii. {path} is damaged")
        self.labels[rows], self.radii[rows], self._known[rows] = labels, radii, True


def _quantile(p: float) -> float:
    from scipy import stats

    return math.inf if p >= 1 else max(float(stats.norm.ppf(p)), 0.0)
