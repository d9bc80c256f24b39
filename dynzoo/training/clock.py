"""A training that ends when its time is up, with the schedule run through."""

from __future__ import annotations

import math
import time

import numpy as np

__all__ = ["TrainingClock"]


class TrainingClock:
    r"""How far a run is, as a share of its time, and how far the next epoch takes it.

    $$ s_{k+1} = s_k + \frac{1 - s_k}{n_k}, \qquad
       n_k = \max(1, \lfloor t_k / t_{\text{epoch}} \rfloor) $$

    with the time t_k that is left and what an epoch has taken so far. The last epoch ends at share
    1; it is shorter than others where the time does not hold a whole one.

    Args:
        end: when the last step must be done, in the seconds of ``time.monotonic``.
        steps: steps of an epoch.
        share: how far the run is already, in [0, 1].

    Example:

    >>> clock = TrainingClock(time.monotonic() + 600, steps=97)
    >>> count, share = clock.next_epoch(seconds_a_step=0.02)
    """

    def __init__(self, end: float, steps: int, share: float = 0.0):
        self.end, self.steps, self.share = end, steps, share

    def next_epoch(self, seconds_a_step: float) -> tuple[int, float]:
        """Steps of the next epoch, and the share of the run at its end.

        Args:
            seconds_a_step: what a step takes, with all that comes between steps.
        """
        left = max(0.0, self.end - time.monotonic()) / seconds_a_step
        epochs = math.floor(left / self.steps)
        if epochs <= 1:
            return min(self.steps, max(1, math.floor(left))), 1.0
        return self.steps, self.share + (1.0 - self.share) / epochs

    def positions(self, count: int, share: float) -> np.ndarray:
        """Shares of the run at which so many steps begin that end at ``share``."""
        return np.linspace(self.share, share, count, endpoint=False)
