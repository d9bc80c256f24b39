"""Radii from how far units can move in a ball around each image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from dynzoo.certificates.certificate import Certificate
from dynzoo.certificates.graph import trace
from dynzoo.certificates.identity import input_dtype
from dynzoo.certificates.local.layers import unroll
from dynzoo.certificates.local.parts import in_chunks, in_parts, sent
from dynzoo.certificates.local.relaxation import relax
from dynzoo.certificates.margins import pair_errors, reach
from dynzoo.certificates.rounding.bound import rounding_kinds
from dynzoo.certificates.upper import product
from dynzoo.inference.packed import Packed
from dynzoo.utils.arguments import integer, number
from dynzoo.utils.jobs import checked_jobs

__all__ = ["Ball", "LocalCertificate"]

# Numbers in the largest array of a backward pass.
_ENTRIES = 8_000_000
_GROWTH = 3.0
# The bisection stops when this much, relatively, could still be gained.
_TOLERANCE = 0.01


class Ball(NamedTuple):
    """Images, their labels, margins (n, K) less rounding, its growth (n, K) and the reach (n,)."""

    images: np.ndarray
    labels: np.ndarray
    margins: np.ndarray
    growth: np.ndarray
    limit: np.ndarray


@dataclass
class _Given:
    """What is known of a set of images before local bounds; ``rows`` are those worth bounding."""

    local: LocalCertificate
    images: np.ndarray
    logits: np.ndarray
    seen: np.ndarray
    moved: np.ndarray
    labels: np.ndarray
    radii: np.ndarray
    rows: np.ndarray
    kinds: tuple[str, ...]

    def balls(self, chunk: np.ndarray) -> Ball:
        z, own = self.logits[chunk], self.labels[chunk]
        error, growth, limit = self.local._rounding(self.seen[chunk], own, self.kinds)
        margins = z[np.arange(len(z)), own][:, None] - z - error
        stretch = self.local._stretch
        return Ball(self.images[chunk], own, margins, growth * stretch, limit / stretch)


class LocalCertificate:
    """Radii from local bounds; made by ``certify_local``.

    Attributes:
        certificate: the global ``Certificate`` underneath.
        lipschitz: its global bound.
        method: how units are bounded.
        norm: of the radii, "l2" or "linf".
        iterations: balls tried for each image.
        exact_units: largest layer that is bounded unit by unit; ``None`` for no limit.
        tick: called with the number of images that were done since its last call; ``None``.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.certificates import certify_local
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    ... )
    >>> labels, radii = certify_local(model).radii(np.random.default_rng(0).random((5, 4)))
    """

    method = "movement"
    _curves = False

    def __init__(
        self,
        certificate: Certificate,
        model: keras.Model,
        iterations: int,
        exact_units: int | None,
        norm: str = "l2",
    ):
        self.certificate, self._model = certificate, model
        self.lipschitz, self.norm = certificate.lipschitz, norm
        self.tick: Callable[[int], Any] | None = None
        self._known_as: tuple[dict[str, Any], Packed] | None = None
        self.iterations = integer("iterations", iterations)
        self.exact_units = exact_units
        if exact_units is not None:
            self.exact_units = integer("exact_units", exact_units, least=0)
        # Of the model as it was certified, not as it may be by now.
        certificate._check_current()
        self._unrolled = unroll(trace(model), self._curves)
        entries = certificate.image_entries
        # How long a movement of a ball's radius may be in L2.
        self._stretch = 1.0 if norm == "l2" else math.sqrt(entries) * (1 + 1e-12)

    @property
    def model(self) -> keras.Model:
        """The model that is certified."""
        return self._model

    def radii(
        self,
        x: Any,
        batch_size: int = 256,
        rounding: str | None = None,
        jobs: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels and certified radii: of the global and the local bound the larger.

        Args:
            x: float images (n, ...) of the model's input shape, in the scale the model takes.
            batch_size: images per forward pass of the model.
            rounding: what is assumed of roundings, as in ``Certificate.radii``.
            jobs: number of processes that bound parts of the images side by side, one thread each,
                or of another engine of joblib (see ``dynzoo.evaluate``); labels and radii are those
                of one process with one thread, but where a time limit cuts the work short.
                ``None`` for none.

        Returns:
            (labels (n,) int64, radii (n,) float64 in the units of x and the norm of ``norm``).

        Raises:
            StaleCertificateError: (a ValueError) if the model changed since it was certified.
            ReferenceMismatchError: if the forward pass is too far from the float64 reference.
            ValueError: if x is not a float array of the model's input shape, or ``jobs`` no number
                of processes.
        """
        jobs = checked_jobs(jobs)
        given = self._begin(x, batch_size, rounding)
        self._tell(len(given.labels) - len(given.rows))
        chunks = self._chunks(given.rows, len(self.certificate.pair_distances))

        def task(chunk: np.ndarray) -> tuple[Ball, np.ndarray]:
            return given.balls(chunk), given.radii[chunk] + given.moved[chunk]

        for chunk, found in in_parts(self, "_reached", chunks, task, jobs):
            radius = found - given.moved[chunk]
            given.radii[chunk] = np.maximum(given.radii[chunk], radius)
        return given.labels, given.radii

    def _reached(self, ball: Ball, start: np.ndarray) -> np.ndarray:
        found = self._grow(ball.images, ball.labels, ball.margins, ball.growth, start)
        return np.minimum(found, ball.limit)

    def certified(
        self,
        x: Any,
        eps: float,
        batch_size: int = 256,
        rounding: str | None = None,
        jobs: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels, and whether each is proved to hold within a radius.

        Args:
            x: float images (n, ...), as in ``radii``.
            eps: radius, in the units of x and the norm of ``norm``.
            batch_size: as in ``radii``.
            rounding: as in ``radii``.
            jobs: as in ``radii``.

        Returns:
            (labels (n,) int64, booleans (n,)).
        """
        eps = number("eps", eps)
        labels, radii = self.radii(x, batch_size, rounding, jobs)
        return labels, radii >= eps

    def _tell(self, images: int) -> None:
        if self.tick is not None and images:
            self.tick(images)

    def _begin(self, x: Any, batch_size: int, rounding: str | None) -> _Given:
        """Global radii, and what local bounds need of the images that have one."""
        certificate = self.certificate
        rounding = rounding or certificate.assumed
        labels, radii = certificate.radii(x, batch_size, rounding)
        given = certificate._check_images(x)
        images = given.astype(input_dtype(self._model))
        rows = np.flatnonzero((radii > 0) & np.isfinite(radii))
        # The ball is around the image as the model sees it, rounded to its input type.
        logits, seen, moved = certificate._logits(x, batch_size)
        if self.norm == "linf":
            # A cube lies in the ball of its half diagonal, and what moved no further moved so far.
            radii = radii / self._stretch
        kinds = rounding_kinds(rounding)
        # What is computed stays true for the weights that were unrolled: `radii` checked them.
        return _Given(
            self, images, logits.astype(np.float64), seen, moved, labels, radii, rows, kinds
        )

    def _rounding(
        self, images: np.ndarray, labels: np.ndarray, kinds: tuple[str, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pair errors, their growth (both (n, K)) and the reach, of each image's best anchor."""
        bound = self.certificate._bound()
        distances, best = bound.distances(images), None
        for kind in kinds:
            for k in range(len(bound.anchors)):
                s = distances[:, k]
                error, growth = pair_errors(
                    labels, self.certificate.pair_distances, bound, s, kind, k
                )
                found = (error, growth[labels], reach(bound, s, k))
                if best is None:
                    best = found
                    continue
                better = (error.max(axis=1) < best[0].max(axis=1)) & (found[2] > 0)
                best = tuple(
                    np.where(better[:, None] if new.ndim == 2 else better, new, old)
                    for new, old in zip(found, best, strict=True)
                )
        assert best is not None
        return best

    def slopes(self, x: Any, radius: Any, jobs: int | None = None) -> np.ndarray:
        """Lipschitz bounds of the differences of logits on balls, between any two points of them.

        Args:
            x: float images (n, ...) of the model's input shape.
            radius: positive radius of the balls, or one for each image (n,).
            jobs: as in ``radii``.

        Returns:
            Array (n, K, K): bound of the constant of logit i minus logit j, at most the global one.
        """
        certificate, jobs = self.certificate, checked_jobs(jobs)
        certificate._check_current()
        images = np.asarray(certificate._check_images(x), np.float64)
        radius = np.broadcast_to(np.asarray(radius, np.float64), (len(images),))
        if not (np.isfinite(radius) & (radius > 0)).all():
            raise ValueError(f"`radius` must be finite and above 0. Received: radius={radius!r}")
        classes = len(certificate.pair_distances)
        first, second = np.triu_indices(classes, 1)
        result = np.zeros((len(images), classes, classes))
        chunks = self._chunks(np.arange(len(images)), len(first))

        def task(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return images[chunk], radius[chunk]

        for chunk, found in in_parts(self, "_steepest", chunks, task, jobs):
            result[chunk[:, None], first, second] = found
        result += result.swapaxes(1, 2)
        return np.minimum(result, product(certificate.body_lipschitz, certificate.pair_distances))

    def _steepest(self, images: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Bounds (n, pairs) of the slopes of all pairs of classes."""
        classes = len(self.certificate.pair_distances)
        first, second = np.triu_indices(classes, 1)
        directions = np.eye(classes)[first] - np.eye(classes)[second]
        values = self._unrolled.values(images)
        bounds = relax(self._unrolled, values, radius, self.exact_units or 0, anywhere=True)
        return bounds.lower(np.broadcast_to(directions, (len(images), *directions.shape)))[0]

    def to_dict(self) -> dict[str, Any]:
        """The global certificate's numbers and the settings of the local one, for JSON."""
        settings = {
            "iterations": self.iterations,
            "exact_units": self.exact_units,
            "method": self.method,
            "norm": self.norm,
        }
        return {**self.certificate.to_dict(), "type": "local", "local": settings}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.certificate!r})"

    def _chunks(self, rows: np.ndarray, directions: int) -> list[np.ndarray]:
        """Row numbers of as many images as fit into memory together."""
        sizes = [int(np.prod(shape)) for shape in self._unrolled.shapes]
        exact = [size for size in sizes if size <= (self.exact_units or 0)]
        many = max([directions, *exact])
        at_once = _ENTRIES // (many * max(exact, default=1) + directions * max(sizes))
        return in_chunks(rows, at_once)

    def _settings(self) -> dict[str, Any]:
        """Arguments of ``__init__`` beside the global certificate and the model."""
        return {
            "iterations": self.iterations,
            "exact_units": self.exact_units,
            "norm": self.norm,
        }

    def _packed(self) -> Packed:
        """The certificate for other processes, packed once: the model may not change anyway."""
        settings = self._settings()
        if self._known_as is None or self._known_as[0] != settings:
            self._known_as = settings, sent(self, settings)
        return self._known_as[1]

    def _rivals(
        self, labels: np.ndarray, margins: np.ndarray, growth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Limits, margins and growths (n, K - 1), and directions (n, K - 1, K), nearest first."""
        certificate, classes = self.certificate, margins.shape[1]
        pairs = product(certificate.body_lipschitz, certificate.pair_distances)
        speeds = pairs[labels] * self._stretch + growth
        with np.errstate(divide="ignore", invalid="ignore"):
            limits = np.where(margins > 0, margins / speeds * (1 - 1e-12), 0.0)
        limits[np.arange(len(labels)), labels] = np.inf
        # The nearest class by the global bound first; the last is the answer itself.
        others = np.argsort(limits, axis=1)[:, : classes - 1]
        found = (np.take_along_axis(a, others, axis=1) for a in (limits, margins, growth))
        directions = np.eye(classes)[labels][:, None] - np.eye(classes)[others]
        return (*found, directions)

    def _grow(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        margins: np.ndarray,
        growth: np.ndarray,
        start: np.ndarray,
    ) -> np.ndarray:
        """The largest certified radius that a bisection from ``start`` finds, for each image."""
        limits, margins, growth, directions = self._rivals(labels, margins, growth)
        values = self._unrolled.values(images)
        low, high, candidate = start.copy(), np.full(len(start), np.inf), _GROWTH * start
        for _ in range(self.iterations):
            rows = np.flatnonzero(high > low * (1 + _TOLERANCE))
            if not len(rows):
                break
            ball = candidate[rows]
            # Classes that the global bound keeps away need no local one.
            near = max(1, int((limits[rows] < ball[:, None]).sum(axis=1).max()))
            bounds = relax(self._unrolled, [v[rows] for v in values], ball, self.exact_units or 0)
            slope, slack = bounds.lower(directions[rows, :near])
            room = margins[rows, :near] - slack
            with np.errstate(divide="ignore", invalid="ignore"):
                # What rounding may add grows with the ball, as a slope does.
                reach = np.where(room > 0, room / (slope + growth[rows, :near]), 0.0)
            reach = np.nan_to_num(reach, posinf=np.inf).min(axis=1) * (1 - 1e-9)
            holds = reach >= ball
            low[rows] = np.maximum(low[rows], np.minimum(reach, ball))
            high[rows] = np.maximum(np.where(holds, np.minimum(high[rows], reach), ball), low[rows])
            # Where no unit can switch, `reach` is the distance to the boundary and ends the search.
            middle = 0.5 * (low[rows] + np.minimum(high[rows], _GROWTH * low[rows]))
            wide = np.minimum(high[rows], _GROWTH * low[rows])
            candidate[rows] = np.where(holds, wide, middle)
        return low
