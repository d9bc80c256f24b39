"""What each attack did to each image at each radius: the raw result of an evaluation."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynzoo.utils.files import write_atomically

__all__ = ["Outcomes"]


@dataclass
class Outcomes:
    r"""Two boolean arrays of shape (images, attacks, radii): what was attacked, and what fell.

    Attacks run in order, each on the images that still resist, radius by radius from the smallest:
    an entry of ``attacked`` is false where the image was already wrong, or had fallen to an earlier
    attack or in a smaller ball. An image is robust at a radius if it is right and nothing broke it
    at this or a smaller radius (pointwise worst case).

    Args:
        attacks: name of each attack.
        eps: radii, increasing.
        correct: bool array of shape (images,): right without an attack.
        attacked: bool array of shape (images, attacks, radii).
        broken: bool array of the same shape.
        seconds: float array of shape (attacks, radii): time spent.
        passes: int array of shape (2, attacks, radii): images that went through the model, forward
            and backward, padding of batches included.

    Example:

    >>> outcomes = Outcomes.start(["pgd", "fab"], [0.1, 0.2], np.ones(3, bool))
    >>> outcomes.record(np.array([0, 1]), 0, 0, np.array([True, False]))
    >>> outcomes.robust()[0].tolist()
    [False, True, True]
    """

    attacks: list[str]
    eps: list[float]
    correct: np.ndarray
    attacked: np.ndarray
    broken: np.ndarray
    seconds: np.ndarray
    passes: np.ndarray

    @classmethod
    def start(cls, attacks: Sequence[str], eps: Sequence[float], correct: np.ndarray) -> Outcomes:
        """Nothing attacked yet."""
        shape = (len(correct), len(attacks), len(eps))
        return cls(
            attacks=list(attacks),
            eps=list(eps),
            correct=np.asarray(correct, dtype=bool),
            attacked=np.zeros(shape, dtype=bool),
            broken=np.zeros(shape, dtype=bool),
            seconds=np.zeros(shape[1:]),
            passes=np.zeros((2, *shape[1:]), dtype=np.int64),
        )

    def waiting(self, attack: int, radius: int) -> np.ndarray:
        """Which images an attack has to try at a radius, by what ran before it. Shape (n,)."""
        fallen = self.broken[:, :, :radius].any(axis=(1, 2))
        fallen |= self.broken[:, :attack, radius].any(axis=1)
        return self.correct & ~fallen

    def record(
        self, rows: np.ndarray, attack: int, radius: int, hit: np.ndarray, seconds: float = 0.0
    ) -> None:
        """Note that images were attacked, which of them fell, and how long it took."""
        self.attacked[rows, attack, radius] = True
        self.broken[rows, attack, radius] = hit
        self.seconds[attack, radius] += seconds

    def robust(self) -> np.ndarray:
        """Which images are right and resisted everything so far. Bool, shape (radii, n)."""
        fallen = np.logical_or.accumulate(self.broken.any(axis=1), axis=1)
        return (self.correct[:, None] & ~fallen).T

    def cumulative(self) -> np.ndarray:
        """Accuracy after each attack of the order, at each radius. Shape (attacks, radii)."""
        radii = range(len(self.eps))
        return np.array(
            [
                [self.waiting(attack + 1, radius).mean() for radius in radii]
                for attack in range(len(self.attacks))
            ]
        )

    # --- files ---

    def to_csv(self, labels: np.ndarray | None = None, radii: np.ndarray | None = None) -> str:
        """A line an image: 1 broken, 0 resisted, empty where the attack had nothing to try.

        Args:
            labels: ``True`` labels, for a column of their own.
            radii: certified L2 radii, for a column of their own.
        """
        text = io.StringIO()
        header = ["image"]
        header += ["label"] if labels is not None else []
        header += ["correct"]
        header += ["certified_l2_radius"] if radii is not None else []
        header += [f"{name} @ {e:.6g}" for e in self.eps for name in self.attacks]
        table = csv.writer(text, lineterminator="\n")
        table.writerow(header)
        for row in range(len(self.correct)):
            line: list[Any] = [row]
            line += [int(labels[row])] if labels is not None else []
            line += [int(self.correct[row])]
            line += [repr(float(radii[row]))] if radii is not None else []
            for radius in range(len(self.eps)):
                for attack in range(len(self.attacks)):
                    tried = self.attacked[row, attack, radius]
                    line.append(int(self.broken[row, attack, radius]) if tried else "")
            table.writerow(line)
        return text.getvalue()

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays for ``numpy.savez``."""
        about = json.dumps({"attacks": self.attacks, "eps": self.eps})
        return {
            "about": np.frombuffer(about.encode(), dtype=np.uint8),
            "correct": self.correct,
            "attacked": self.attacked,
            "broken": self.broken,
            "seconds": self.seconds,
            "passes": self.passes,
        }

    @classmethod
    def from_arrays(cls, arrays: Any) -> Outcomes:
        """The inverse of ``arrays``."""
        about = json.loads(arrays["about"].tobytes())
        names = ("correct", "attacked", "broken", "seconds", "passes")
        return cls(about["attacks"], about["eps"], *(np.array(arrays[name]) for name in names))

    def save(
        self,
        path: str | os.PathLike[str],
        labels: np.ndarray | None = None,
        radii: np.ndarray | None = None,
    ) -> None:
        """Write ``.csv`` (for people) or ``.npz`` (``Outcomes.load`` reads it), in one step.

        Raises:
            ValueError: if the suffix is another one.
        """
        suffix = os.path.splitext(path)[1].lower()
        if suffix == ".csv":
            content = self.to_csv(labels, radii).encode()
        elif suffix == ".npz":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **self.arrays())
            content = buffer.getvalue()
        else:
            raise ValueError(f"`path` must end in .csv or .npz. Received: path={str(path)!r}")
        write_atomically(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Outcomes:
        """Read what ``save`` wrote as ``.npz``."""
        with np.load(path, allow_pickle=False) as file:
            return cls.from_arrays(file)
