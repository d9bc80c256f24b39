"""Projected gradient ascent on a loss of the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.attacks.base import Attack, compiled, positive_float, positive_int
from dynzoo.attacks.geometry import project, random_points, steepest
from dynzoo.attacks.losses import LOSSES, attack_loss, classes_needed, margin

# The search stays this much inside the ball, relatively, so that rounding rarely leaves it.
_INSIDE = 1.0 - 1e-6
# How many steps pass between two looks at whether every image of the batch has fallen.
_LOOK = 10


class PGD(Attack):
    r"""Projected gradient descent.

    $x_{k+1} = P(x_k + \alpha\, d_k)$ with $d_k$ the direction of steepest ascent of the loss in
    the chosen norm (components that leave the box removed) and $P$ the projection on the ball and
    the box. The first iterate that fools the model is kept; if there is none, the one of the
    highest loss. The result is an upper bound of the model's robustness, never a proof of it.

    The default loss is the margin, because cross-entropy misses many adversarial examples of
    1-Lipschitz networks. `loss="pairwise"` climbs $z_r - z_y$ for one fixed runner-up $r$: run
    (restart) number k takes the (k+1)-th largest wrong logit of the clean image.

    Args:
        norm: `"l2"` or `"linf"`.
        eps: Radius of the ball, > 0.
        seed: Seed of the random starts.
        steps: Number of gradient steps, >= 1.
        step_size: Length of a step in the chosen norm; `2.5 * eps / steps` if `None`.
        restarts: Runs on images that still resist, >= 1.
        random_start: Start every run from a random point of the ball. If false, the first run
            starts at the image itself; later ones are random in any case, except for the runs of
            `"pairwise"`, which differ by their runner-up.
        loss: `"margin"`, `"ce"`, `"dlr"` or `"pairwise"`, see `dynzoo.attacks.losses`.
        targeted: If true, `y` is the class to reach.
        batch_size: Images processed at once.

    Raises:
        ValueError: If an argument is out of its range, or the model has too few classes for the
            loss.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks import PGD
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> PGD(norm="linf", eps=0.1, steps=5)(model, x, y).shape
    (5, 4)

    Reference: Madry et al., *Towards deep learning models resistant to adversarial attacks* (2018),
    section 2.1; Carlini and Wagner, *Towards evaluating the robustness of neural networks* (2017),
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
    ) -> None:
        super().__init__(norm, eps, seed, targeted, restarts, batch_size)
        if loss not in LOSSES:
            raise ValueError(f"`loss` must be one of {LOSSES}. Received: loss={loss!r}")
        if loss == "pairwise" and targeted:
            raise ValueError(
                '`loss="pairwise"` picks its own rival class; a targeted attack needs "margin", '
                '"ce" or "dlr". Received: targeted=True'
            )
        self.steps = positive_int("steps", steps)
        self.step_size = None if step_size is None else positive_float("step_size", step_size)
        self.random_start = bool(random_start)
        self.loss = loss

    def check_classes(self, classes: int) -> None:
        needed = classes_needed(self.loss, self.targeted)
        if classes < needed:
            raise ValueError(
                f"`loss={self.loss!r}` with targeted={self.targeted} needs at least {needed} "
                f"classes. Received: a model with {classes}"
            )

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
        rival = y
        if self.loss == "pairwise":
            others = logits.copy()
            others[np.arange(len(y)), y] = -np.inf
            order = np.argsort(-others, axis=1, kind="stable")
            # After the last rival the turn is the first one's again.
            rival = order[:, restart % (logits.shape[1] - 1)]
        start = x
        if self.random_start or (restart > 0 and self.loss != "pairwise"):
            start = random_points(x, self.eps, self.norm, self.seed, indices, restart)

        key = ("pgd", self.norm, self.loss, self.targeted)
        step = compiled(model, key, lambda f: _make_step(f, *key[1:]))
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        center = ops.convert_to_tensor(x, dtype="float32")
        best = point = ops.convert_to_tensor(start, dtype="float32")
        best_loss = ops.convert_to_tensor(np.full(len(x), -np.inf, dtype="float32"))
        found = ops.convert_to_tensor(np.arange(len(x)) >= real)
        # Tensors, because a Python number would be traced anew for each value.
        constants = [
            center,
            ops.convert_to_tensor(y.astype("int32")),
            ops.convert_to_tensor(rival.astype("int32")),
            ops.convert_to_tensor(np.asarray(self.eps * _INSIDE, dtype="float32")),
            ops.convert_to_tensor(np.asarray(size, dtype="float32")),
        ]
        for number in range(self.steps + 1):  # the last pass only judges the last iterate
            point, best, best_loss, found = step(*constants, point, best, best_loss, found)
            if number % _LOOK == _LOOK - 1 and backend.to_numpy(found).all():
                break
        return backend.to_numpy(best), backend.to_numpy(best_loss)


def _make_step(
    infer: Callable[[Any, Any], Any], norm: str, loss_name: str, targeted: bool
) -> Callable[..., Any]:
    """One iteration as a pure function: judge the present point, remember it, take a step."""

    def step(
        weights: Any,
        center: Any,
        y: Any,
        rival: Any,
        eps: Any,
        size: Any,
        point: Any,
        best: Any,
        best_loss: Any,
        found: Any,
    ) -> tuple[Any, Any, Any, Any]:
        def objective(x: Any) -> tuple[Any, tuple[Any, Any]]:
            logits = ops.cast(infer(weights, x), "float32")
            losses = attack_loss(loss_name, logits, y, rival, targeted)
            return ops.sum(losses), (losses, margin(logits, y))

        (_, (losses, gap)), gradient = backend.value_and_grad(objective)(point)
        # Strict: a tie is left to the forward pass that judges the returned point.
        fooled = gap < 0.0 if targeted else gap > 0.0
        fresh = ops.logical_not(found)
        better = ops.logical_and(fresh, ops.logical_or(fooled, losses > best_loss))
        shape = (-1,) + (1,) * (len(point.shape) - 1)
        best = ops.where(ops.reshape(better, shape), point, best)
        best_loss = ops.where(better, losses, best_loss)
        found = ops.logical_or(found, fooled)
        moved = project(point + size * steepest(gradient, point, norm), center, eps, norm)
        return moved, best, best_loss, found

    return step
