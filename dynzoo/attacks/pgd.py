"""Projected gradient ascent on a loss of the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from dynzoo.attacks.base import Attack
from dynzoo.attacks.geometry import INSIDE, per_image, project, random_points, steepest
from dynzoo.attacks.losses import ATTACK_LOSSES, require_classes, runner_up
from dynzoo.attacks.passes import loss_and_gradient
from dynzoo.inference.batching import Pool
from dynzoo.inference.passes import pure, scalar
from dynzoo.utils.arguments import integer, number, one_of

# How many steps pass between two looks at which images of the batch have fallen.
LOOK = 10


class PGD(Attack):
    r"""Projected gradient descent.

    $x_{k+1} = P(x_k + \alpha\, d_k)$ with $d_k$ the direction of steepest ascent of the loss in
    the chosen norm (components that leave the box removed) and $P$ the projection on the ball and
    the box. The first iterate that fools the model is kept; if there is none, the one of the
    highest loss. The result is an upper bound of the model's robustness, never a proof of it.

    The default loss is the margin, because cross-entropy misses many adversarial examples of
    1-Lipschitz networks. ``loss="pairwise"`` climbs $z_r - z_y$ for one fixed runner-up $r$: run
    (restart) number k takes the (k+1)-th largest wrong logit of the clean image.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball, > 0.
        seed: seed of the random starts.
        steps: number of gradient steps, >= 1.
        step_size: length of a step in the chosen norm; ``2.5 * eps / steps`` if ``None``.
        restarts: runs on images that still resist, >= 1.
        random_start: start every run from a random point of the ball. If false, the first run
            starts at the image itself; later ones are random in any case, except for the runs of
            ``"pairwise"``, which differ by their runner-up.
        loss: ``"margin"``, ``"ce"``, ``"dlr"``, ``"pairwise"`` or ``"pairwise_dlr"``, see
            ``dynzoo.attacks.losses``.
        targeted: if true, ``y`` is the class to reach.
        batch_size: images processed at once.
        eot: passes through a random model whose losses, margins and gradients are averaged.

    Raises:
        ValueError: if an argument is out of its range, or the model has too few classes for the
            loss.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks import PGD
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> PGD(norm="linf", eps=0.1, steps=5)(model, x, y).shape
    (5, 4)

    Reference: Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018),
    section 2.1; Carlini and Wagner, "Towards evaluating the robustness of neural networks" (2017),
    for the margin loss.
    """

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        steps: int = 40,
        step_size: float | None = None,
        restarts: int = 1,
        random_start: bool = True,
        loss: str = "margin",
        targeted: bool = False,
        batch_size: int = 256,
        eot: int = 1,
    ) -> None:
        super().__init__(norm, eps, seed, targeted, restarts, batch_size)
        one_of("loss", loss, ATTACK_LOSSES)
        self._pairwise = loss.startswith("pairwise")
        if self._pairwise and targeted:
            raise ValueError(
                f'`loss="{loss}"` picks its own rival class; a targeted attack needs "margin", '
                '"ce" or "dlr". Received: targeted=True'
            )
        self.steps = integer("steps", steps)
        self.step_size = None if step_size is None else number("step_size", step_size)
        self.random_start = bool(random_start)
        self.loss = loss
        self.eot = integer("eot", eot)

    def check_classes(self, classes: int) -> None:
        require_classes(self.loss, classes, self.targeted)

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
        # Run number k of a pairwise loss climbs towards the (k+1)-th largest wrong logit.
        rival = runner_up(logits, y, restart) if self._pairwise else y
        start = x
        if self.random_start or (restart > 0 and not self._pairwise):
            start = random_points(x, self.eps, self.norm, self.seed, indices, restart)

        look = loss_and_gradient(model, self.loss, self.targeted, self.eot)
        advance = pure(_make_advance, self.norm, self.targeted)
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        scalars = [scalar(v) for v in (self.eps * INSIDE, size)]
        point = ops.convert_to_tensor(start, dtype="float32")
        state = [
            point,
            ops.full((len(x),), -np.inf, dtype="float32"),
            ops.zeros((len(x),), dtype="bool"),
            point,
            ops.convert_to_tensor(x, dtype="float32"),
            ops.convert_to_tensor(y.astype("int32")),
            ops.convert_to_tensor(rival.astype("int32")),
        ]
        pool = Pool(real, len(x), 2, self.rows_at_once(x))
        for iteration in range(self.steps + 1):  # the last pass only judges the last iterate
            point, center, *labels = state[3:]
            moved = advance(*scalars, *look(point, *labels), *state[:4], center)
            state = [*moved, center, *labels]
            if iteration % LOOK == LOOK - 1:
                state = pool.pack(state[2], state)
                if not pool.open:
                    break
        best, best_loss = pool.results(state)
        return best, best_loss


def _make_advance(norm: str, targeted: bool) -> Callable[..., Any]:
    """One iteration as a pure function: judge the present point, remember it, take a step."""

    def advance(
        eps: Any,
        size: Any,
        losses: Any,
        gap: Any,
        gradient: Any,
        best: Any,
        best_loss: Any,
        found: Any,
        point: Any,
        center: Any,
    ) -> tuple[Any, Any, Any, Any]:
        # Strict: a tie is left to the forward pass that judges the returned point.
        fooled = gap < 0.0 if targeted else gap > 0.0
        better = ops.logical_and(ops.logical_not(found), ops.logical_or(fooled, losses > best_loss))
        best = ops.where(per_image(better, point), point, best)
        best_loss = ops.where(better, losses, best_loss)
        found = ops.logical_or(found, fooled)
        moved = project(point + size * steepest(gradient, point, norm), center, eps, norm)
        return best, best_loss, found, moved

    return advance
