"""Certified radii, and answers at one radius, from passes back through the model."""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

import keras
import numpy as np

from dynzoo.certificates.certificate import Certificate
from dynzoo.certificates.local.backward import Backward, Plan
from dynzoo.certificates.local.branching import decided
from dynzoo.certificates.local.lines import MODES
from dynzoo.certificates.local.movement_certificate import Ball, LocalCertificate
from dynzoo.certificates.local.parts import in_chunks, in_parts
from dynzoo.certificates.local.rows import Rows
from dynzoo.certificates.local.slopes import optimised, tightened
from dynzoo.utils.arguments import number
from dynzoo.utils.jobs import checked_jobs

__all__ = ["AlphaCertificate", "BackwardCertificate", "output_rows"]

Array = np.ndarray

# Numbers in the values and lines of a chunk of images.
_ENTRIES = 500_000
_TOLERANCE = 0.001
_GROWTH = 4.0
# Parts of a ball that "alpha-crown" may look at, and from which share of the ball on.
_PARTS, _NEAR = 16, 0.8


class BackwardCertificate(LocalCertificate):
    """Radii from passes back for each unit; made by ``certify_local(method="crown")``.

    Attributes:
        time_limit: seconds for an image, or ``None``.
    """

    method = "crown"
    _curves = True
    # What is tried one after the other, at images that need it: one slope for both sides of a
    # unit, then adaptive ones as well.
    _efforts: tuple[dict[str, Any], ...] = ({}, {"refine": True})

    def __init__(
        self,
        certificate: Certificate,
        model: keras.Model,
        iterations: int,
        exact_units: int | None,
        norm: str = "l2",
        time_limit: float | None = None,
    ):
        super().__init__(certificate, model, iterations, exact_units, norm)
        self.time_limit = None if time_limit is None else number("time_limit", time_limit)
        order = 2.0 if norm == "l2" else math.inf
        self._plan = Plan(self._unrolled, order, self.exact_units)

    def certified(
        self,
        x: Any,
        eps: float,
        batch_size: int = 256,
        rounding: str | None = None,
        jobs: int | None = None,
    ) -> tuple[Array, Array]:
        """Labels, and whether each is proved to hold within a radius: one ball, not a search.

        Args:
            x: float images (n, ...), as in ``radii``.
            eps: radius, in the units of x and the norm of ``norm``.
            batch_size: as in ``radii``.
            rounding: as in ``radii``.
            jobs: as in ``radii``.

        Returns:
            (labels (n,) int64, booleans (n,)).
        """
        eps, jobs = number("eps", eps), checked_jobs(jobs)
        given = self._begin(x, batch_size, rounding)
        answers = given.radii >= eps
        open_rows = given.rows[~answers[given.rows]]
        self._tell(len(answers) - len(open_rows))

        def task(chunk: Array) -> tuple[Ball, Array]:
            return given.balls(chunk), eps + given.moved[chunk]

        for chunk, found in in_parts(self, "_holds", self._chunks(open_rows, 0), task, jobs):
            answers[chunk] = found
        return given.labels, answers

    def _holds(self, ball: Ball, radius: Array) -> Array:
        limits, margins, growth, directions = self._rivals(ball.labels, ball.margins, ball.growth)
        values = self._unrolled.values(ball.images)
        self._start(len(radius))
        reach = self._reach(values, radius, margins, growth, directions, limits)
        return (reach >= radius) & (ball.limit > radius)

    def slopes(self, x: Any, radius: Any, jobs: int | None = None) -> Array:
        """Not known to this method: ``certify_local(model)`` has it."""
        raise ValueError(f"`slopes` needs method='movement'. Received: method={self.method!r}")

    def _chunks(self, rows: Array, directions: int) -> list[Array]:
        units = sum(math.prod(shape) for shape in self._unrolled.shapes)
        return in_chunks(rows, _ENTRIES // units)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"time_limit": self.time_limit}

    def _start(self, images: int) -> None:
        """The clock of a chunk of images."""
        limit = math.inf if self.time_limit is None else self.time_limit * images
        self._plan.stop = monotonic() + limit

    def _grow(
        self, images: Array, labels: Array, margins: Array, growth: Array, start: Array
    ) -> Array:
        """The largest certified radius that a search finds, for each image."""
        limits, margins, growth, directions = self._rivals(labels, margins, growth)
        values = self._unrolled.values(images)
        self._start(len(images))
        low, high = start.copy(), np.full(len(start), np.inf)
        # As far as the model would hold if it were linear, from which on there is less.
        tiny = self._bounds(values, 1e-6 * start, effort=0)
        candidate = np.clip(0.7 * self._best(tiny, directions, margins, growth), start, 1e9 * start)
        for _ in range(self.iterations):
            rows = np.flatnonzero((high > low * (1 + _TOLERANCE)) & (candidate > 0))
            if not len(rows) or monotonic() > self._plan.stop:
                break
            ball = candidate[rows]
            reach = self._reach(
                [v[rows] for v in values],
                ball,
                margins[rows],
                growth[rows],
                directions[rows],
                limits=limits[rows],
            )
            holds = reach >= ball
            low[rows] = np.maximum(low[rows], np.minimum(reach, ball))
            high[rows] = np.maximum(np.where(holds, np.minimum(high[rows], reach), ball), low[rows])
            wide = np.minimum(0.5 * (low[rows] + high[rows]), _GROWTH * low[rows])
            candidate[rows] = np.where(np.isfinite(high[rows]), wide, _GROWTH * low[rows])
        return low

    def _bounds(self, values: list[Array], radius: Array, effort: int) -> Backward:
        return Backward(self._plan, values, radius, **self._efforts[effort])

    def _reach(
        self,
        values: list[Array],
        ball: Array,
        margins: Array,
        growth: Array,
        directions: Array,
        limits: Array,
        efforts: int | None = None,
    ) -> Array:
        """How far (n,) each answer is certified by bounds on a ball; only up to the ball."""
        # Classes that the global bound keeps away need no local one.
        near = max(1, int((limits < ball[:, None]).sum(axis=1).max()))
        margins, growth, directions = margins[:, :near], growth[:, :near], directions[:, :near]
        result = np.zeros(len(ball))
        for effort in range(efforts or len(self._efforts)):
            rows = np.flatnonzero(result < ball)
            if not len(rows) or (effort and monotonic() > self._plan.stop):
                break
            bounds = self._bounds([v[rows] for v in values], ball[rows], effort)
            found = self._best(bounds, directions[rows], margins[rows], growth[rows])
            result[rows] = np.maximum(result[rows], found)
        return result

    def _best(self, bounds: Backward, directions: Array, margins: Array, growth: Array) -> Array:
        """The reach (n,) of the best lines for each class."""
        rows, last = output_rows(directions), len(self._unrolled.shapes) - 1
        reach = np.zeros(margins.shape)
        for mode in MODES:
            steep, beta = bounds.lower(rows, last, mode)
            reach = np.maximum(reach, _reaches(steep, beta, margins, growth))
        return reach.min(axis=1) * (1 - 1e-9)


class AlphaCertificate(BackwardCertificate):
    """As ``BackwardCertificate``, with slopes of rectifiers found by descent where that is needed.

    Where these nearly do, the ball is split at a few units.
    """

    method = "alpha-crown"
    _efforts = (*BackwardCertificate._efforts, {"refine": True, "tighten": tightened})

    def _best(self, bounds: Backward, directions: Array, margins: Array, growth: Array) -> Array:
        reach = super()._best(bounds, directions, margins, growth)
        if bounds.tighten is None or not (reach < bounds.radius).any():
            return reach
        missing = np.flatnonzero(reach < bounds.radius)
        rows, last = output_rows(directions[missing]), len(self._unrolled.shapes) - 1
        rows.image = missing
        ball = bounds.radius[missing][:, None]
        needed = margins[missing] - growth[missing] * ball
        best = optimised(bounds, rows, last, needed=needed * (1 - 1e-8))
        found = _reaches(best.steep, best.beta, margins[missing], growth[missing])
        reach[missing] = np.maximum(reach[missing], found.min(axis=1) * (1 - 1e-9))
        for i, image in enumerate(missing.tolist()):
            short = np.flatnonzero(found[i] * (1 - 1e-9) < bounds.radius[image])
            # A few parts take no longer than the slopes did.
            if 0 < len(short) and reach[image] > _NEAR * bounds.radius[image]:
                own = needed[i, short] * (1 - 1e-8)
                most = _PARTS + len(short)
                if decided(bounds, directions[image, short], own, image=image, most=most):
                    reach[image] = bounds.radius[image] * (1 + 1e-12)
        return reach


def output_rows(directions: Array) -> Rows:
    """Directions (n, q, K) as rows on the logits."""
    n, _, classes = directions.shape
    values = np.ascontiguousarray(np.moveaxis(directions, -1, 0))
    return Rows(values, np.arange(n), None, (classes,))


def _reaches(steep: Array, beta: Array, margins: Array, growth: Array) -> Array:
    room = margins - beta
    with np.errstate(divide="ignore", invalid="ignore"):
        # What rounding may add grows with the ball, as a slope does.
        reach = np.where(room > 0, room / (steep + growth), 0.0)
    return np.nan_to_num(reach, posinf=1e300)
