"""What a row of logits answers, which attacks, evaluations and smoothing must agree on."""

from __future__ import annotations

import numpy as np

__all__ = ["NO_ANSWER", "answers"]

NO_ANSWER = -1


def answers(logits: np.ndarray) -> np.ndarray:
    r"""The class of each row, $\arg\max_c z_c$; -1, no class at all, where a logit is NaN.

    A model that returns NaN has failed: it is right about no image, and whatever made it fail has
    fooled it. Infinite logits are numbers in their order, and a tie goes to the first class, as
    everywhere; certificates give both kinds of rows the radius 0.

    Args:
        logits: array (n, K).

    Returns:
        Integers (n,) in [-1, K).

    Example:

    >>> answers(np.array([[0.0, 1.0], [np.nan, 1.0], [np.inf, 1.0]])).tolist()
    [1, -1, 0]
    """
    return np.where(np.isnan(logits).any(axis=1), NO_ANSWER, logits.argmax(axis=1))
