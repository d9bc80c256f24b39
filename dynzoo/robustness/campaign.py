"""Attacks in turn on the images that still resist, in batches that survive being killed."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dynzoo.attacks.base import GRADIENT_STEP, Attack
from dynzoo.inference.passes import listening
from dynzoo.robustness.outcomes import Outcomes
from dynzoo.utils.files import write_atomically

__all__ = ["Campaign", "Found", "Work"]

# Images that fell in a smaller ball and are attacked once more in each larger one.
REPEATS = 64


@dataclass
class Work:
    """What an attack has done on its batch, in forward passes, and what it has left.

    Args:
        images: of the batch.
        cost: passes that an image which resists takes.
    """

    images: int
    cost: float
    done: float = 0.0
    each: float = 0.0  # passes of an image that has been in all of them
    last: int = 0  # images of the last pass: of those that fell, some attacks make no more

    def count(self, images: int, backward: bool) -> None:
        """A pass, of whose images there may be several for one of the batch."""
        weight = GRADIENT_STEP if backward else 1.0
        self.done += weight * images
        self.each += weight * max(images / self.images, 1.0)
        self.last = min(images, self.images)

    @property
    def left(self) -> float:
        """Passes that are left, of the images that are still attacked."""
        return max(self.cost - self.each, 0.0) * self.last


@dataclass
class Found:
    """What a campaign has found.

    Args:
        outcomes: what was attacked, and what fell.
        repeated: integers (radii, 2): of the images that fell in a smaller ball, how many were
            tried again, and how many resisted; -1 where they were not tried yet.
        fooled: of each radius, number, label and point of a few images that fell.
    """

    outcomes: Outcomes
    repeated: np.ndarray
    fooled: list[list[tuple[int, int, np.ndarray]]]

    KEPT: ClassVar[int] = 8  # points that are kept of each radius


class Campaign:
    """Runs a list of attacks at each radius, smallest radius first.

    What a batch is depends on earlier outcomes only, so a campaign that is stopped anywhere and
    started again makes the same batches, skips those that are done, and ends with the same
    outcomes. At most one batch of one attack is lost.

    Args:
        attacks: A list of attacks for each radius, the same kinds in the same order.
        eps: Radii, increasing.
        y: True labels of shape (n,).
        correct: Bool array of shape (n,): right without an attack.
        judge: `judge(attack, rows) -> (points, labels)` attacks rows and gives the model's labels
            of the points.
        skip: Bool array of shape (radii, n): images that need no attack at a radius, or `None`.
        skip_from: Number of the first attack that leaves those images out.
        batch_size: Images in one batch.
        repeats: Images that fell in a smaller ball and are attacked once more in each larger one.
        about: What is evaluated, JSON-able: a checkpoint of something else is refused.
        checkpoint: File that is written after each batch, and read if it exists; or `None`.
        tick: Called with the campaign before and after each batch and at each pass in it.

    Raises:
        ValueError: If the checkpoint is damaged, or of another evaluation.
    """

    def __init__(
        self,
        attacks: Sequence[Sequence[Attack]],
        eps: Sequence[float],
        y: np.ndarray,
        correct: np.ndarray,
        judge: Callable[..., tuple[np.ndarray, np.ndarray]],
        skip: np.ndarray | None = None,
        skip_from: int = 0,
        batch_size: int = 256,
        repeats: int = REPEATS,
        about: dict[str, Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        tick: Callable[[Campaign], None] | None = None,
    ) -> None:
        self.attacks, self.y, self.judge, self.batch_size = attacks, y, judge, batch_size
        self.outcomes = Outcomes.start(_names(attacks[0]), eps, correct)
        self.skip = np.zeros((len(eps), len(y)), bool) if skip is None else skip
        self.skip_from, self.repeats = skip_from, repeats
        # Of the images that fell in a smaller ball: how many were tried, how many resisted.
        self.repeated = np.full((len(eps), 2), -1)
        self.about = json.loads(json.dumps(about or {}, default=repr))
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.tick = tick or _nothing
        self.attack, self.radius, self.finished_attack = 0, 0, False
        self.work: Work | None = None  # on the batch that is attacked now
        self.repeating = 0  # images that fell in a smaller ball and are now attacked again
        # Of each radius: rows, labels and points of a few images that fell.
        self.fooled: list[list[tuple[int, int, np.ndarray]]] = [[] for _ in eps]
        if self.checkpoint is not None and self.checkpoint.exists():
            self._resume(self.checkpoint)

    def rows(self, attack: int, radius: int) -> np.ndarray:
        """Numbers of the images that an attack has to try at a radius."""
        waiting = self.outcomes.waiting(attack, radius)
        if attack >= self.skip_from:
            waiting = waiting & ~self.skip[radius]
        return np.flatnonzero(waiting)

    def run(self) -> Outcomes:
        """Do what is left to do."""
        for radius in range(len(self.outcomes.eps)):
            self.radius = radius
            # As they stood before this radius, which a resumed campaign must not forget.
            fallen = np.flatnonzero(self.outcomes.broken[:, :, :radius].any(axis=(1, 2)))
            for number in range(len(self.outcomes.attacks)):
                self.attack = number
                self._attack()
            if self.repeated[radius, 0] < 0:
                self._repeat(fallen[: self.repeats])
                self._save()
        return self.outcomes

    def found(self) -> Found:
        """What it has found so far."""
        return Found(self.outcomes, self.repeated, self.fooled)

    def _attack(self) -> None:
        attack, radius = self.attack, self.radius
        rows = self.rows(attack, radius)
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            if self.outcomes.attacked[batch, attack, radius].all():
                continue
            self.tick(self)
            began = time.perf_counter()
            passes = np.zeros(2, dtype=np.int64)
            member = self.attacks[radius][attack]
            self.work = work = Work(len(batch), member.cost())

            def count(
                images: int, backward: bool, passes: np.ndarray = passes, work: Work = work
            ) -> None:
                passes += images, images * backward
                work.count(images, backward)
                self.tick(self)

            with listening(count):
                points, labels = self.judge(member, batch)
            self.work = None
            self.outcomes.passes[:, attack, radius] += passes
            hit = labels != self.y[batch]
            self.outcomes.record(batch, attack, radius, hit, time.perf_counter() - began)
            found = self.fooled[radius]
            for row in np.flatnonzero(hit)[: Found.KEPT - len(found)]:
                found.append((int(batch[row]), int(labels[row]), points[row]))
            self._save()
            self.finished_attack = start + self.batch_size >= len(rows)
            self.tick(self)
        self.finished_attack = False

    def _repeat(self, fallen: np.ndarray) -> None:
        """Attack again what fell in a smaller ball: an attack that cannot repeat it is weak."""
        self.repeating = tried = len(fallen)
        with listening(lambda *_: self.tick(self)):
            for member in self.attacks[self.radius]:
                if len(fallen):
                    fallen = fallen[self.judge(member, fallen)[1] == self.y[fallen]]
        self.repeated[self.radius] = tried, len(fallen)
        self.repeating = 0

    # --- checkpoint ---

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        buffer = io.BytesIO()
        about = np.frombuffer(json.dumps(self.about).encode(), dtype=np.uint8)
        arrays = {**self.outcomes.arrays(), "repeated": self.repeated, "evaluation": about}
        for radius, found in enumerate(self.fooled):
            if found:
                rows, labels, points = zip(*found, strict=True)
                arrays |= {
                    f"fooled_{radius}": np.array([rows, labels]),
                    f"points_{radius}": np.stack(points),
                }
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomically(self.checkpoint, buffer.getvalue())

    def _resume(self, path: Path) -> None:
        try:
            # Read whole, so that a damaged archive leaves no open file behind.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(arrays["evaluation"].tobytes())
            outcomes = Outcomes.from_arrays(arrays)
            repeated = arrays["repeated"]
            fooled = [_fooled(arrays, radius) for radius in range(len(outcomes.eps))]
        except Exception as error:  # zipfile and NumPy raise some ten kinds over a damaged archive
            raise ValueError(
                f"`checkpoint` must be a file of an evaluation. {path} is damaged or something "
                f"else ({error})"
            ) from None
        names = sorted({*about, *self.about})
        other = [name for name in names if about.get(name) != self.about.get(name)]
        if other or outcomes.attacks != self.outcomes.attacks or outcomes.eps != self.outcomes.eps:
            raise ValueError(
                f"`checkpoint` must be of the same evaluation. {path} has other "
                f"{', '.join(other) or 'attacks or radii'}: choose another file, or delete it."
            )
        self.outcomes, self.repeated, self.fooled = outcomes, repeated, fooled


def _nothing(*_: Any) -> None:
    pass


def _fooled(arrays: dict[str, np.ndarray], radius: int) -> list[tuple[int, int, np.ndarray]]:
    if f"fooled_{radius}" not in arrays:
        return []
    rows, labels = arrays[f"fooled_{radius}"].tolist()
    return list(zip(rows, labels, arrays[f"points_{radius}"], strict=True))


def _names(attacks: Sequence[Attack]) -> list[str]:
    """A name for each attack: its class, its loss if it has one, a number if that is not unique."""
    names: list[str] = []
    for attack in attacks:
        base = type(attack).__name__ + (f"-{attack.loss}" if attack.loss else "")
        count = sum(name == base or name.startswith(f"{base} ") for name in names)
        names.append(base if not count else f"{base} {count + 1}")
    return names
