"""AutoAttack: an ensemble of attacks without free parameters, and its pointwise worst case."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.attacks.apgd import APGD, TargetedAPGD
from dynzoo.attacks.base import Attack, check_labels
from dynzoo.attacks.fab import FAB
from dynzoo.attacks.losses import classes_needed, margins
from dynzoo.attacks.square import Square
from dynzoo.inference.passes import mean_logits
from dynzoo.utils.arguments import one_of

VERSIONS = ("standard", "plus", "rand")
# Passes whose losses and gradients the version for random models averages.
EOT = 20


class AutoAttack(Attack):
    r"""Ensemble of attacks, each on the images that still resist: the pointwise worst case.

    | version | members, in turn |
    |---|---|
    | ``"standard"`` | APGD on cross-entropy, targeted APGD, targeted FAB, Square |
    | ``"plus"`` | APGD on cross-entropy and DLR, FAB (5 restarts each), Square, the targeted two |
    | ``"rand"`` | APGD on cross-entropy and on DLR, with the mean of 20 passes: for random models |

    The gradient attacks take 100 iterations, Square 5000 queries, and the targeted ones aim at up
    to 9 classes. A model of fewer than 4 classes (3 for untargeted DLR) has no such loss, and gets
    the margin instead. An image is robust only where every member fails. The result is an upper
    bound of the model's robustness, never a proof of it.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball, > 0.
        seed: seed of all members.
        version: ``"standard"``, ``"plus"`` or ``"rand"``.
        batch_size: images processed at once.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks import AutoAttack
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    >>> model.add(keras.layers.Dense(3))
    >>> x, y = np.full((2, 8, 8, 1), 0.5, "float32"), np.zeros(2, "int64")
    >>> AutoAttack(norm="linf", eps=0.3)(model, x, y).shape
    (2, 8, 8, 1)

    Reference: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks" (2020), section 5.
    """

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        version: str = "standard",
        batch_size: int = 256,
    ) -> None:
        super().__init__(norm, eps, seed, False, 1, batch_size)
        one_of("version", version, VERSIONS)
        self.version = version

    def members(self, classes: int | None = None) -> list[Attack]:
        """The attacks in the order in which they run, for a model of so many classes."""
        common: dict[str, Any] = {
            name: getattr(self, name) for name in ("norm", "eps", "seed", "batch_size")
        }
        enough = classes is None or classes >= classes_needed("dlr", targeted=False)
        dlr = "dlr" if enough else "margin"
        if self.version == "rand":
            return [APGD(loss=loss, eot=EOT, **common) for loss in ("ce", dlr)]
        targeted = [TargetedAPGD(**common), FAB(**common)]
        if self.version == "standard":
            return [APGD(loss="ce", **common), *targeted, Square(**common)]
        return [
            APGD(loss="ce", restarts=5, **common),
            APGD(loss=dlr, restarts=5, **common),
            FAB(targeted_rivals=False, restarts=5, **common),
            Square(**common),
            *targeted,
        ]

    def cost(self) -> float:
        """Forward passes that an image which resists takes, roughly: those of all members."""
        return sum(member.cost() for member in self.members())

    def _attack(
        self, model: Any, given: np.ndarray, x: np.ndarray, y: np.ndarray, indices: np.ndarray
    ) -> np.ndarray:
        clean = mean_logits(model, x, self.batch_size)
        check_labels(y, clean.shape[1])
        best, best_gap = np.array(x, dtype=np.float32), np.full(len(x), -np.inf)
        rows = np.flatnonzero(~self.fooled(clean, y))
        for member in self.members(clean.shape[1]):
            if not rows.size:
                break
            points = member(model, given[rows], y[rows], indices=indices[rows])
            logits = mean_logits(model, points, self.batch_size)
            success, gap = self.fooled(logits, y[rows]), margins(logits, y[rows])
            better = success | (gap > best_gap[rows])
            best[rows[better]], best_gap[rows[better]] = points[better], gap[better]
            rows = rows[~success]
        return best
