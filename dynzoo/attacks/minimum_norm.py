"""What minimum-norm attacks share: they look for the smallest perturbation, at no fixed radius."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.attacks.base import Attack, check_images, check_labels, keys_of
from dynzoo.attacks.geometry import INSIDE, distances, per_image
from dynzoo.attacks.losses import margin, margins
from dynzoo.attacks.passes import judged
from dynzoo.inference.batching import batches
from dynzoo.inference.image_checks import check_unit_range
from dynzoo.inference.passes import mean_logits, noise
from dynzoo.utils.allocator import give_back_freed_memory

# Steps of the last line search, and how far beyond the estimated boundary it tries.
_LINE_STEPS = 6
_BEYOND = 1e-4


class MinimumNorm(Attack):
    r"""Attack that minimises $\|x' - x\|$ over the $x' \in [0, 1]^d$ that fool the model.

    A subclass implements ``nearest``. Called as an attack, an image has fallen once a point within
    ``eps`` is found, and takes no more steps; ``minimum_norm`` goes on to the end.
    """

    def nearest(
        self,
        model: Any,
        x: np.ndarray,
        y: np.ndarray,
        logits: np.ndarray,
        indices: np.ndarray,
        real: int,
        restart: int,
        enough: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One run on one padded batch; the arguments are those of ``search``.

        ``enough`` is the distance at which an image may stop, 0 for never.

        Returns:
            The nearest points found, of shape (batch, ...), and their float32 distances, of shape
            (batch,): infinite where none was found.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `nearest`.")

    def search(
        self,
        model: Any,
        x: np.ndarray,
        y: np.ndarray,
        logits: np.ndarray,
        indices: np.ndarray,
        real: int,
        restart: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        enough = self.eps * INSIDE
        points, found = self.nearest(model, x, y, logits, indices, real, restart, enough)
        if not (found[:real] <= enough).all():
            points = towards_image(model, x, y, logits, points, found > enough, self.eot)
        return points, -found

    def minimum_norm(
        self, model: Any, x: Any, y: Any, indices: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nearest point found that fools the model, whatever its distance.

        Args:
            model: built Keras model that maps a batch of images to logits.
            x: array of shape (n, ...) with values in [0, 1].
            y: integer array of shape (n,): true labels.
            indices: integer array of shape (n,) that keys each image's random numbers.

        Returns:
            Float32 points of the shape of ``x`` in the box, and their float64 distances from ``x``
            in the norm of the attack, of shape (n,): an upper bound of the distance to the decision
            boundary, 0 where the model is wrong already, infinite (and the point the image) where
            nothing was found.

        Raises:
            ValueError: if ``x`` is not finite or not in [0, 1], or ``y`` does not fit ``x`` or the
                model.
        """
        given, y = check_images(x, y)
        check_unit_range(model)
        x = given.astype(np.float32, copy=False)
        indices = keys_of(indices, len(x))
        best, best_distance = x.copy(), np.full(len(x), np.inf)
        with noise(model, x, self.batch_size, self.seed):
            clean = mean_logits(model, x, self.batch_size)
            check_labels(y, clean.shape[1])
            self.check_classes(clean.shape[1])
            wrong = self.fooled(clean, y)
            best_distance[wrong] = 0.0
            right = np.flatnonzero(~wrong)
            for restart in range(self.runs(clean.shape[1])):
                for picks, real in batches(len(right), self.rows_at_once(x)):
                    rows = right[picks]
                    images = (model, x[rows], y[rows], clean[rows])
                    points, found = self.nearest(*images, indices[rows], real, restart, 0.0)
                    points = towards_image(*images, points, np.isfinite(found), self.eot)
                    rows, points = rows[:real], np.clip(points[:real], 0.0, 1.0)
                    away = distances(points, given[rows], self.norm)
                    fooled = self.fooled(mean_logits(model, points, self.batch_size), y[rows])
                    better = fooled & (away < best_distance[rows])
                    best[rows[better]] = points[better]
                    best_distance[rows[better]] = away[better]
                    give_back_freed_memory()
        return best, best_distance


def towards_image(
    model: Any,
    x: np.ndarray,
    y: np.ndarray,
    logits: np.ndarray,
    points: np.ndarray,
    which: np.ndarray,
    eot: int = 1,
) -> np.ndarray:
    """Points drawn back along the straight line to their images as far as they still fool.

    Secant and bisection steps on the margin take turns: the first are exact where the model is
    affine along the line, the second make progress wherever it is not.

    Args:
        model: the attacked Keras model.
        x: images of shape (n, ...).
        y: labels of shape (n,).
        logits: logits of the images, of shape (n, classes).
        points: points that fool the model, of the shape of ``x``.
        which: bool array of shape (n,): rows to move; the others stay.
        eot: passes through a random model whose logits are averaged.
    """
    if not which.any():
        return points
    run = judged(model, "line-search", _between, _gap, eot)
    start = ops.convert_to_tensor(x, dtype="float32")
    labels = ops.convert_to_tensor(y.astype("int32"))

    def at(share: np.ndarray) -> np.ndarray:
        shares = ops.convert_to_tensor(share.astype("float32"))
        return backend.to_numpy(run(start, end, labels, shares)).astype(np.float64)

    end = ops.convert_to_tensor(points, dtype="float32")
    low, high = np.zeros(len(x)), np.ones(len(x))
    low_gap, high_gap = margins(logits, y), at(high)
    which = which & (low_gap < 0.0) & (high_gap > 0.0)
    for step in range(_LINE_STEPS):
        share = (low + high) / 2.0
        if step % 2 == 0:
            with np.errstate(divide="ignore", invalid="ignore"):
                crossing = low + (high - low) * low_gap / (low_gap - high_gap) + _BEYOND
            share = np.where(np.isfinite(crossing), np.clip(crossing, low, high), share)
        gap = at(share)
        hit = gap > 0.0
        low, low_gap = np.where(hit, low, share), np.where(hit, low_gap, gap)
        high, high_gap = np.where(hit, share, high), np.where(hit, gap, high_gap)
    moved = which & (high < 1.0)
    shares = high.astype(np.float32).reshape((-1,) + (1,) * (x.ndim - 1))
    result = points.copy()
    result[moved] = (x + shares * (points - x))[moved]
    return result


def _between(start: Any, end: Any, labels: Any, share: Any) -> Any:
    return start + per_image(share, start) * (end - start)


def _gap(logits: Any, start: Any, end: Any, labels: Any, share: Any) -> Any:
    return margin(logits, labels)
