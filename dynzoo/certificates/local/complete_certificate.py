"""Answers at one radius that are certified, falsified with a point, or open when time is over."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import Any

import keras
import numpy as np

from dynzoo.certificates.certificate import Certificate
from dynzoo.certificates.compiled_inference import run_batches
from dynzoo.certificates.identity import input_dtype
from dynzoo.certificates.local.backward_certificate import AlphaCertificate
from dynzoo.certificates.local.branching import decided, descended
from dynzoo.certificates.local.movement_certificate import Ball
from dynzoo.certificates.local.parts import in_parts
from dynzoo.utils.arguments import number
from dynzoo.utils.jobs import checked_jobs

__all__ = ["OUTCOMES", "CompleteCertificate", "Decisions"]

Array = np.ndarray

OUTCOMES = ("certified", "falsified", "unknown")
_SECONDS = 60.0


@dataclass(frozen=True)
class Decisions:
    """What is known of each image at one radius; made by ``CompleteCertificate.decide``.

    Attributes:
        eps: the radius.
        norm: "l2" or "linf".
        labels: the model's answers (n,).
        outcomes: for each image "certified", "falsified" or "unknown".
        points: (n, ...), of falsified images a point of the ball with another answer of the model;
            the image itself elsewhere. Pixels may leave the range of images, as the ball does.
    """

    eps: float
    norm: str
    labels: Array
    outcomes: Array
    points: Array

    @property
    def shares(self) -> dict[str, float]:
        """Share of the images with each outcome."""
        many = max(1, len(self.outcomes))
        return {name: float(np.sum(self.outcomes == name)) / many for name in OUTCOMES}

    def to_dict(self) -> dict[str, Any]:
        """Radius, norm, shares and the outcome of each image, for JSON."""
        return {
            "eps": self.eps,
            "norm": self.norm,
            "shares": self.shares,
            "labels": self.labels.tolist(),
            "outcomes": self.outcomes.tolist(),
        }


class CompleteCertificate(AlphaCertificate):
    """Branch and bound at one radius; made by ``certify_local(method="complete")``.

    ``radii`` are those of "alpha-crown"; ``decide`` and ``certified`` split balls as well.
    """

    method = "complete"

    def __init__(
        self,
        certificate: Certificate,
        model: keras.Model,
        iterations: int,
        exact_units: int | None,
        norm: str = "l2",
        time_limit: float | None = None,
    ):
        limit = _SECONDS if time_limit is None else time_limit
        super().__init__(certificate, model, iterations, exact_units, norm, limit)

    def certified(
        self,
        x: Any,
        eps: float,
        batch_size: int = 256,
        rounding: str | None = None,
        jobs: int | None = None,
    ) -> tuple[Array, Array]:
        """Labels, and whether each is proved to hold within a radius, as ``decide`` finds."""
        found = self.decide(x, eps, batch_size, rounding, jobs)
        return found.labels, found.outcomes == "certified"

    def decide(
        self,
        x: Any,
        eps: float,
        batch_size: int = 256,
        rounding: str | None = None,
        jobs: int | None = None,
    ) -> Decisions:
        """Each answer is certified within a radius, falsified with a point of the ball, or open.

        Guarantee: of a certified answer, as ``Certificate.radii``; a point that falsifies was given
        to the model, and its distance from x is at most eps in float64.

        Args:
            x: float images (n, ...), as in ``radii``.
            eps: radius, in the units of x and the norm of ``norm``.
            batch_size: as in ``radii``.
            rounding: as in ``radii``.
            jobs: as in ``radii``, image by image. What is decided before the time is over does not
                depend on it; how far that comes does, as on anything else that the machine does.

        Returns:
            The ``Decisions``.
        """
        eps, jobs = number("eps", eps), checked_jobs(jobs)
        given = self._begin(x, batch_size, rounding)
        exact = np.asarray(self.certificate._check_images(x), np.float64)
        points = given.images.copy()
        outcomes = np.where(given.radii >= eps, "certified", "unknown").astype("<U9")
        rows = given.rows[outcomes[given.rows] == "unknown"]
        self._tell(len(outcomes) - len(rows))

        def task(row: Array) -> tuple[Any, ...]:
            return given.balls(row), float(given.moved[row[0]]), exact[row[0]], points[row[0]], eps

        for (row,), (word, point) in in_parts(self, "_decided", list(rows[:, None]), task, jobs):
            # A process has a model of its own: what falsifies is given to this one.
            if word == "falsified" and self._answer(point) == given.labels[row]:
                continue
            outcomes[row], points[row] = word, point
        return Decisions(eps, self.norm, given.labels, outcomes, points)

    def _decided(
        self, ball: Ball, moved: float, x: Array, seen: Array, eps: float
    ) -> tuple[str, Array]:
        """What is known of one image, and a point that falsifies it, or the image."""
        self._start(1)
        search = _Search(self, x, seen, int(ball.labels[0]), eps)
        answer = None
        if ball.limit[0] > eps + moved:
            answer = self._decide(ball, eps + moved, search)
        if search.found is not None:
            return "falsified", search.found
        return "certified" if answer else "unknown", seen

    def _answer(self, point: Array) -> int:
        certificate = self.certificate
        logits = run_batches(certificate._model, certificate._settings, point[None], 1)[0]
        return int(logits.argmax())

    def _decide(self, ball: Ball, radius: float, search: _Search) -> bool | None:
        rivals = self._rivals(ball.labels, ball.margins, ball.growth)
        limits, margins, growth, directions = rivals
        near = max(1, int((limits < radius).sum()))
        margins, growth, directions = margins[:, :near], growth[:, :near], directions[:, :near]
        values, whole = self._unrolled.values(ball.images), np.array([radius])
        crown = self._reach(values, whole, margins, growth, directions, limits, efforts=2)
        if crown[0] >= radius:
            return True
        for direction in directions[0]:
            start = np.asarray(ball.images[0], np.float64)
            if search.breaks(descended(self._unrolled, start, direction, radius, self._plan.order)):
                return False
        if monotonic() > self._plan.stop:
            return None
        bounds = self._bounds(values, whole, len(self._efforts) - 1)
        needed = (margins - growth * radius)[0]
        return decided(bounds, directions[0], needed - 1e-9 * np.abs(needed), search.breaks)


class _Search:
    """Looks for a point of a ball with another answer of the model itself."""

    def __init__(self, local: CompleteCertificate, x: Array, seen: Array, label: int, eps: float):
        self.local, self.x, self.seen, self.label, self.eps = local, x, seen, label, eps
        self.found: Array | None = None

    def breaks(self, moved: Array) -> bool:
        """Whether the model gives another answer at a movement, made to fit into the ball."""
        local = self.local
        order = 2 if local.norm == "l2" else np.inf
        length = float(np.linalg.norm(moved.ravel(), order))
        moved = moved * min(1.0, self.eps * (1 - 1e-6) / max(length, 1e-300))
        point = (self.x + moved).astype(input_dtype(local._model))
        distance = np.linalg.norm((point.astype(np.float64) - self.x).ravel(), order)
        if not distance <= self.eps:
            return False
        if local._answer(point) == self.label:
            return False
        self.found = point
        return True
