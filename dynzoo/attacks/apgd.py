"""Auto-PGD: projected gradient ascent with momentum whose step size adapts to each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from dynzoo.attacks.base import Attack
from dynzoo.attacks.geometry import INSIDE, per_image, project, random_points, unit
from dynzoo.attacks.losses import classes_needed, require_classes, runner_up
from dynzoo.attacks.passes import loss_and_gradient
from dynzoo.attacks.pgd import LOOK
from dynzoo.inference.batching import Pool
from dynzoo.inference.passes import pure, scalar
from dynzoo.utils.arguments import integer, number, one_of

APGD_LOSSES = ("margin", "ce", "dlr")
MOMENTUM = 0.75


def checkpoints(steps: int) -> dict[int, int]:
    """After which steps the step size is reviewed, and the number of steps under review.

    The first period is 22 % of the steps; each later one is 3 % shorter, and none below 6 %.
    """
    period, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    result, step = {}, period
    while step <= steps:
        result[step] = period
        period = max(period - shorter, least)
        step += period
    return result


class APGD(Attack):
    r"""Auto-PGD: gradient ascent with momentum and a step size that each image adapts by itself.

    From a random start, with $S(g) = \mathrm{sign}(g)$ for Linf and $g/\|g\|_2$ for L2,
    $$u = P(x_k + \eta\,S(\nabla \ell(x_k))), \qquad
      x_{k+1} = P(x_k + \tfrac34 (u - x_k) + \tfrac14 (x_k - x_{k-1})),$$
    where $P$ projects on the ball, then on the box, and $\eta = 2\varepsilon$ at first. At a few
    checkpoints $\eta$ is halved, and the search goes on from the best point so far, where the loss
    rose in at most a share $\rho$ of the steps since the last checkpoint, or where $\eta$ was kept
    there and the best loss has not changed since. The first misclassified iterate is kept.

    The result is an upper bound of the model's robustness, never a proof of it. There is no step
    size to tune. The default loss is the margin: cross-entropy misses many adversarial examples
    of 1-Lipschitz networks.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball, > 0.
        seed: seed of the random starts.
        steps: number of gradient steps, >= 1.
        restarts: runs on images that still resist, >= 1.
        loss: ``"margin"``, ``"ce"`` or ``"dlr"``, see ``dynzoo.attacks.losses``.
        rho: share of steps that must raise the loss, in (0, 1).
        eot: passes through a random model whose losses, margins and gradients are averaged.
        batch_size: images processed at once.

    Raises:
        ValueError: if an argument is out of its range, or the model has too few classes for the
            loss.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks import APGD
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> APGD(norm="linf", eps=0.1, steps=5)(model, x, y).shape
    (5, 4)

    Reference: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks" (2020), section 3, algorithm 1.
    """

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        steps: int = 100,
        restarts: int = 1,
        loss: str = "margin",
        rho: float = 0.75,
        eot: int = 1,
        batch_size: int = 256,
    ) -> None:
        super().__init__(norm, eps, seed, False, restarts, batch_size)
        one_of("loss", loss, APGD_LOSSES)
        self.steps = integer("steps", steps)
        self.loss = loss
        self.rho = number("rho", rho, high=1.0, closed="none")
        self.eot = integer("eot", eot)

    def check_classes(self, classes: int) -> None:
        require_classes(self.loss, classes)

    def objective(self, logits: np.ndarray, y: np.ndarray, restart: int) -> tuple[str, np.ndarray]:
        """The loss of this run, and the class that each image is driven to if it has one."""
        return self.loss, y

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
        loss, rival = self.objective(logits, y, restart)
        look = loss_and_gradient(model, loss, eot=self.eot)
        reviews = checkpoints(self.steps)
        start = random_points(x, self.eps, self.norm, self.seed, indices, restart)
        labels = [ops.convert_to_tensor(v.astype("int32")) for v in (y, rival)]
        fixed = [ops.convert_to_tensor(x, dtype="float32"), *labels]
        moving = _begin(ops.convert_to_tensor(start, dtype="float32"), 2.0 * self.eps)
        eps, momentum, none = (scalar(v) for v in (self.eps * INSIDE, 1.0 - MOMENTUM, 0.0))
        pool = Pool(real, len(x), 2, self.rows_at_once(x))
        for iteration in range(self.steps + 1):  # the last pass only judges the last iterate
            center, *labels = fixed
            point = moving[3]
            advance = pure(_make_advance, self.norm, iteration in reviews)
            enough = scalar(self.rho * reviews.get(iteration, 0))
            inertia = momentum if iteration else none
            moving = advance(eps, inertia, enough, center, *look(point, *labels), *moving)
            if iteration % LOOK == LOOK - 1:
                packed = pool.pack(moving[2], [*moving, *fixed])
                moving, fixed = packed[: len(moving)], packed[len(moving) :]
                if not pool.open:
                    break
        best, best_loss = pool.results(moving)
        return best, best_loss


class TargetedAPGD(APGD):
    r"""Auto-PGD towards one wrong class after another; any misclassification is a success.

    Run number $k$ climbs the targeted DLR loss
    $$\frac{z_t - z_y}{z_{(1)} - (z_{(3)} + z_{(4)})/2}$$
    for $t$ the class of the $k$-th largest wrong logit of the clean image, or $z_t - z_y$ for a
    model of two or three classes, where that loss is not defined. See ``APGD`` for the iteration.
    There are $\min(\text{targets}, K - 1)$ runs on images that still resist.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball, > 0.
        seed: seed of the random starts.
        steps: number of gradient steps of each run, >= 1.
        restarts: how often all targets are tried, >= 1.
        targets: number of classes to aim at, >= 1.
        rho: share of steps that must raise the loss, in (0, 1).
        eot: passes through a random model whose losses, margins and gradients are averaged.
        batch_size: images processed at once.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks import TargetedAPGD
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> TargetedAPGD(norm="linf", eps=0.1, steps=5)(model, x, y).shape
    (5, 4)

    Reference: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks" (2020), section 4.2, equation 7.
    """

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        steps: int = 100,
        restarts: int = 1,
        targets: int = 9,
        rho: float = 0.75,
        eot: int = 1,
        batch_size: int = 256,
    ) -> None:
        super().__init__(norm, eps, seed, steps, restarts, "margin", rho, eot, batch_size)
        self.targets = integer("targets", targets)

    def runs(self, classes: int) -> int:
        return self.restarts * min(self.targets, classes - 1)

    def objective(self, logits: np.ndarray, y: np.ndarray, restart: int) -> tuple[str, np.ndarray]:
        classes = logits.shape[1]
        loss = "pairwise_dlr" if classes >= classes_needed("pairwise_dlr", False) else "pairwise"
        return loss, runner_up(logits, y, restart % min(self.targets, classes - 1))


def _begin(start: Any, step: float) -> list[Any]:
    """The state at the start: what ``_make_advance`` takes and gives."""
    count = start.shape[0]

    def filled(value: float) -> Any:
        return ops.full((count,), value, dtype="float32")

    best, best_loss, found = start, filled(-np.inf), ops.zeros((count,), dtype="bool")
    point = previous = best_gradient = start
    last, rises, sizes, halved, mark = filled(np.inf), filled(0), filled(step), found, best_loss
    return [
        best, best_loss, found, point, previous, best_gradient, last, rises, sizes, halved, mark
    ]  # fmt: skip


def _make_advance(norm: str, review: bool) -> Callable[..., Any]:
    """One iteration as a pure function: remember the present point, adapt the step, take it."""

    def advance(
        eps: Any, inertia: Any, enough: Any, center: Any,
        losses: Any, gap: Any, gradient: Any,
        best: Any, best_loss: Any, found: Any, point: Any, previous: Any, best_gradient: Any,
        last: Any, rises: Any, sizes: Any, halved: Any, mark: Any,
    ) -> list[Any]:  # fmt: skip
        gradient = ops.where(ops.isfinite(gradient), gradient, ops.zeros_like(gradient))
        # Strict: a tie is left to the forward pass that judges the returned point.
        fooled = gap > 0.0
        better = ops.logical_and(ops.logical_not(found), ops.logical_or(fooled, losses > best_loss))
        wide = per_image(better, point)
        best, best_gradient = ops.where(wide, point, best), ops.where(wide, gradient, best_gradient)
        best_loss = ops.where(better, losses, best_loss)
        found = ops.logical_or(found, fooled)
        rises, last = rises + ops.cast(losses > last, "float32"), losses
        if review:
            stuck = ops.logical_and(ops.logical_not(halved), best_loss <= mark)
            halved = ops.logical_or(rises <= enough, stuck)
            sizes = ops.where(halved, sizes / 2.0, sizes)
            wide = per_image(halved, point)
            point, gradient = ops.where(wide, best, point), ops.where(wide, best_gradient, gradient)
            mark, rises = best_loss, ops.zeros_like(rises)
        ascent = point + per_image(sizes, point) * unit(gradient, norm)
        ascent = project(ascent, center, eps, norm)
        moved = point + (1.0 - inertia) * (ascent - point) + inertia * (point - previous)
        moved = project(moved, center, eps, norm)
        return [
            best, best_loss, found, moved, point, best_gradient, last, rises, sizes, halved, mark
        ]  # fmt: skip

    return advance
