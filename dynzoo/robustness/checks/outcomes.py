"""What the outcomes of an evaluation say of the attacks themselves, without another pass.

Reference: Carlini et al., *On evaluating adversarial robustness* (2019), evaluation checklist;
Croce and Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks* (2020), for the black-box flag.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynzoo.attacks.base import Attack
from dynzoo.robustness.checks.warning import TOLERANCE, EvaluationWarning
from dynzoo.robustness.outcomes import Outcomes
from dynzoo.utils.formatting import percent

__all__ = ["check_outcomes"]

# Shares of the images that an attack without gradients may break beyond the gradient attacks, and
# that attacks on the margin may break beyond cross-entropy.
_BLACK_BOX, _CE_GAP = 0.002, 0.01
# On a handful of images a flat curve is chance.
_CURVE_IMAGES = 50


def check_outcomes(
    outcomes: Outcomes, attacks: Sequence[Attack], repeated: np.ndarray
) -> list[EvaluationWarning]:
    """Named warnings that follow from what fell to which attack at which radius.

    Args:
        outcomes: Of a finished campaign.
        attacks: The attacks, in the order of the outcomes.
        repeated: Integer array (radii, 2): images that fell in a smaller ball and were attacked
            again, and how many of them resisted.
    """
    return (
        _repeated(outcomes, repeated)
        + _curve(outcomes)
        + _without_gradients(outcomes, attacks)
        + _transferred(outcomes, attacks)
        + _crossentropy_only(outcomes, attacks)
    )


def _repeated(outcomes: Outcomes, repeated: np.ndarray) -> list[EvaluationWarning]:
    return [
        EvaluationWarning(
            "attack-not-monotone",
            f"At eps {eps:.4g} the attacks miss {missed} of {tried} images that they broke in a "
            "smaller ball (counted as broken): their steps do not suit this radius.",
        )
        for eps, (tried, missed) in zip(outcomes.eps, repeated.tolist(), strict=True)
        if missed > max(1.0, TOLERANCE * tried)
    ]


def _curve(outcomes: Outcomes) -> list[EvaluationWarning]:
    shares = outcomes.robust().mean(axis=1)
    clean, first, last = outcomes.correct.mean(), shares[0], shares[-1]
    radii = outcomes.eps
    # At accuracy 0 a flat curve is the end of the road.
    if len(outcomes.correct) < _CURVE_IMAGES or radii[-1] < 2.0 * radii[0]:
        return []
    if first == 0.0 or last < first:
        return []
    return [
        EvaluationWarning(
            "flat-curve",
            f"The attacked accuracy stays at {percent(first, 1)} (clean {percent(clean, 1)}) from "
            f"eps {radii[0]:.4g} to {radii[-1]:.4g}. Robustness must fall as the ball grows.",
        )
    ]


def _without_gradients(outcomes: Outcomes, attacks: Sequence[Attack]) -> list[EvaluationWarning]:
    blind = [attack.black_box for attack in attacks]
    if all(blind):
        return []
    start = blind.index(False)
    late = [k for k in range(start, len(attacks)) if blind[k]]
    broken = outcomes.broken[:, late].any(axis=1).sum(axis=0)  # per radius
    worst = int(broken.argmax()) if broken.size else 0
    if not broken.size or broken[worst] <= max(1.0, _BLACK_BOX * len(outcomes.correct)):
        return []
    names = ", ".join(outcomes.attacks[k] for k in late)
    return [
        EvaluationWarning(
            "black-box-beats-white-box",
            f"At eps {outcomes.eps[worst]:.4g} attacks without gradients ({names}) break "
            f"{broken[worst]} images that the gradient attacks do not: gradients are masked.",
        )
    ]


def _transferred(outcomes: Outcomes, attacks: Sequence[Attack]) -> list[EvaluationWarning]:
    foreign = [k for k, attack in enumerate(attacks) if attack.transferred]
    if not foreign or len(foreign) == len(attacks):
        return []
    broken = outcomes.broken[:, foreign].any(axis=1).sum(axis=0)
    worst = int(broken.argmax())
    if broken[worst] == 0:
        return []
    return [
        EvaluationWarning(
            "transfer-beats-white-box",
            f"At eps {outcomes.eps[worst]:.4g} points made for another model fool "
            f"{broken[worst]} images that the attacks on this model do not: gradients are masked.",
        )
    ]


def _crossentropy_only(outcomes: Outcomes, attacks: Sequence[Attack]) -> list[EvaluationWarning]:
    if len(attacks) < 2 or attacks[0].loss != "ce":
        return []
    shares = outcomes.cumulative()
    gap = shares[0] - shares[-1]
    worst = int(gap.argmax())
    if gap[worst] <= max(_CE_GAP, 1.5 / len(outcomes.correct)):
        return []
    return [
        EvaluationWarning(
            "crossentropy-only-gap",
            f"At eps {outcomes.eps[worst]:.4g} cross-entropy alone would report "
            f"{percent(gap[worst], 1)} more robust accuracy than all attacks together do: do not "
            "compare these numbers with those of attacks on cross-entropy only.",
        )
    ]
