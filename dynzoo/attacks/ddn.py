"""Decoupled direction and norm: the gradient turns the perturbation, success sets its length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from dynzoo.attacks.geometry import lengths, per_image, random_points, steepest
from dynzoo.attacks.losses import require_classes
from dynzoo.attacks.minimum_norm import MinimumNorm
from dynzoo.attacks.passes import loss_and_gradient
from dynzoo.attacks.pgd import LOOK
from dynzoo.inference.batching import Pool
from dynzoo.inference.passes import pure, scalar
from dynzoo.utils.arguments import integer, number, one_of

_LOSSES = ("margin", "ce", "dlr")
# Step lengths at the first and the last step, between which a half cosine leads.
_FIRST, _LAST = 1.0, 0.01


class DDN(MinimumNorm):
    r"""Decoupled direction and norm attack, L2.

    With $d_k$ the unit vector of steepest ascent of the loss at $x + \delta_k$,

    $$\epsilon_{k+1} = (1 \mp \gamma)\,\epsilon_k, \quad
    v = \delta_k + \alpha_k d_k, \quad
    x + \delta_{k+1} = P_{[0,1]}\big(x + \epsilon_{k+1}\, v / \|v\|_2\big)$$

    where the norm shrinks if $x + \delta_k$ fools the model and grows if not, and $\alpha_k$ falls
    from 1 to 0.01 along a half cosine. The nearest point that fools the model is kept, and a line
    search goes from it towards the image. The result is an upper bound of the distance to the
    decision boundary, never a proof of it.

    Args:
        norm: ``"l2"``, the only norm of this attack.
        eps: radius within which an image counts as fallen, > 0; ``minimum_norm`` needs none.
        seed: seed of the random starts of all but the first restart.
        steps: number of gradient steps, >= 1.
        gamma: share by which the norm changes in a step, in (0, 1).
        init_eps: norm of the first step, > 0.
        restarts: runs, the first from the image and the others from random points.
        loss: ``"margin"``, ``"ce"`` or ``"dlr"``, see ``dynzoo.attacks.losses``. The published
            attack takes ``"ce"``, which misleads it on 1-Lipschitz networks.
        batch_size: images processed at once.
        eot: passes through a random model whose margins and gradients are averaged.

    Raises:
        ValueError: if an argument is out of its range, or the model has too few classes for the
            loss.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks.ddn import DDN
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> points, distances = DDN(steps=10).minimum_norm(model, x, y)
    >>> points.shape, distances.shape
    ((5, 4), (5,))

    Reference: Rony et al., "Decoupling direction and norm for efficient gradient-based L2
    adversarial attacks and defenses" (2019), algorithm 1.
    """

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        steps: int = 200,
        gamma: float = 0.05,
        init_eps: float = 1.0,
        restarts: int = 1,
        loss: str = "margin",
        batch_size: int = 256,
        eot: int = 1,
    ) -> None:
        if norm != "l2":
            raise ValueError(f"`norm` must be 'l2': DDN has no other. Received: norm={norm!r}")
        super().__init__(norm, eps, seed, False, restarts, batch_size)
        one_of("loss", loss, _LOSSES)
        self.steps = integer("steps", steps)
        self.gamma = number("gamma", gamma)
        if self.gamma >= 1.0:
            raise ValueError(f"`gamma` must be in (0, 1). Received: gamma={gamma!r}")
        self.init_eps = number("init_eps", init_eps)
        self.loss = loss
        self.eot = integer("eot", eot)

    def check_classes(self, classes: int) -> None:
        require_classes(self.loss, classes)

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
        start = x
        if restart > 0:
            start = random_points(x, self.init_eps, "l2", self.seed, indices, restart)
        look = loss_and_gradient(model, self.loss, eot=self.eot)
        advance = pure(_make_advance)
        center, point = (ops.convert_to_tensor(v, dtype="float32") for v in (x, start))
        state = [
            center,
            ops.full((len(x),), np.inf, dtype="float32"),
            point,
            # The first step keeps this norm, whichever way its point answers.
            ops.full((len(x),), self.init_eps / (1.0 + self.gamma), dtype="float32"),
            center,
            ops.convert_to_tensor(y.astype("int32")),
        ]
        gamma, limit = (scalar(v) for v in (self.gamma, enough))
        pool = Pool(real, len(x), 2, self.rows_at_once(x))
        for iteration in range(self.steps + 1):  # the last pass only judges the last iterate
            point, center, label = state[2], state[4], state[5]
            fall = (1.0 + np.cos(np.pi * iteration / self.steps)) / 2.0
            size = scalar(_LAST + (_FIRST - _LAST) * fall)
            _, gap, gradient = look(point, label, label)
            state[:4] = advance(gamma, limit, size, gap, gradient, *state[:4], center)
            if enough > 0.0 and iteration % LOOK == LOOK - 1:
                state = pool.pack(state[1] <= enough, state)
                if not pool.open:
                    break
        best, found = pool.results(state)
        return best, found


def _make_advance() -> Callable[..., Any]:
    """One iteration as a pure function: judge the present point, remember it, take a step."""

    def advance(
        gamma: Any,
        limit: Any,
        size: Any,
        gap: Any,
        gradient: Any,
        best: Any,
        found: Any,
        point: Any,
        radius: Any,
        center: Any,
    ) -> tuple[Any, Any, Any, Any]:
        delta = point - center
        away = lengths(delta, "l2")
        # Strict: a tie is left to the forward pass that judges the returned point.
        fooled = gap > 0.0
        # What has fallen stays as it is, so that it does not matter when it leaves the batch.
        better = fooled & (away < found) & (found > limit)
        best = ops.where(per_image(better, point), point, best)
        found = ops.where(better, away, found)
        radius = radius * ops.where(fooled, 1.0 - gamma, 1.0 + gamma)
        delta = delta + size * steepest(gradient, point, "l2")
        delta = delta * per_image(radius / ops.maximum(lengths(delta, "l2"), 1e-30), delta)
        return best, found, ops.clip(center + delta, 0.0, 1.0), radius

    return advance
