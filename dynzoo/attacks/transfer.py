"""Adversarial examples of one model, tried on another."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.attacks.base import Attack
from dynzoo.attacks.geometry import INSIDE, distances
from dynzoo.attacks.losses import margins
from dynzoo.inference.model_identity import identity_of
from dynzoo.inference.passes import mean_logits


class Transfer(Attack):
    r"""Runs an attack on a source model, and judges its points on the attacked model.

    The attacked model's gradients are not used, so that masked gradients are no defence: an image
    that falls to this but not to a gradient attack exposes the latter. Good sources are the same
    network without the part that may mask gradients, or another model of the same data. Each
    point of the source is tried twice, as it is and stretched to the rim of the ball,
    $x + \varepsilon (x' - x)/\|x' - x\|$, because an attack stops at the source's decision
    boundary and the other model's lies elsewhere.

    Args:
        attack: untargeted attack; its norm, radius, seed and batch size are those of the transfer.
        source_model: built Keras model of the same images and classes.

    Raises:
        ValueError: if ``attack`` is not an untargeted ``Attack``.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks import PGD, Transfer
    >>> make = lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> Transfer(PGD(eps=0.1, steps=5), source_model=make())(make(), x, y).shape
    (5, 4)

    Reference: Papernot, McDaniel and Goodfellow, "Transferability in machine learning" (2016);
    Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security" (2018).
    """

    transferred = True

    def __init__(self, attack: Attack, source_model: Any) -> None:
        if not isinstance(attack, Attack) or attack.targeted:
            raise ValueError(f"`attack` must be an untargeted Attack. Received: {attack!r}")
        super().__init__(attack.norm, attack.eps, attack.seed, False, 1, attack.batch_size)
        self.attack = attack
        self.source_model = source_model

    def get_config(self) -> dict[str, Any]:
        """What was run, JSON-able. It tells which source model it was, and so makes no copy."""
        return {
            "attack": type(self.attack).__name__,
            "config": self.attack.get_config(),
            "source_model": str(getattr(self.source_model, "name", "model")),
            "source": identity_of(self.source_model),
        }

    def cost(self) -> float:
        """Forward passes that an image which resists takes, roughly: those on the source."""
        return self.attack.cost()

    def at(self, eps: float) -> Transfer:
        return Transfer(self.attack.at(eps), self.source_model)

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
        best, best_gap = x.copy(), np.full(len(x), -np.inf)
        images, labels = x[:real], y[:real]
        points = self.attack(self.source_model, images, labels, indices=indices[:real])
        length = distances(points, images, self.norm).reshape((-1,) + (1,) * (x.ndim - 1))
        stretch = self.eps * INSIDE / np.maximum(length, 1e-30)
        far = np.where(length > 0.0, images + stretch * (points - images), images)
        for candidate in (points, np.clip(far, 0.0, 1.0).astype(np.float32)):
            gap = margins(mean_logits(model, candidate, self.batch_size), labels)
            better = np.flatnonzero(gap > best_gap[:real])
            best[better], best_gap[better] = candidate[better], gap[better]
        return best, best_gap
