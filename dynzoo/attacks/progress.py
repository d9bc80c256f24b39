"""How far an evaluation is, and how long its attacks will still take."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import numpy as np

from dynzoo.attacks.campaign import Campaign
from dynzoo.attacks.passes import listening

__all__ = ["Progress", "seconds_left"]

# A gradient step costs a forward and a backward pass, about three times a forward pass.
_GRADIENT_STEP = 3.0


def cost(attack: Any) -> float:
    """Forward passes that an attack needs for an image that resists, roughly."""
    passes = _GRADIENT_STEP * getattr(attack, "steps", 0) + getattr(attack, "queries", 0)
    runs = getattr(attack, "restarts", 1) * getattr(attack, "targets", 1)
    return max(passes, 1.0) * runs * getattr(attack, "eot", 1)


def seconds_left(campaign: Campaign) -> float | None:
    """Time that the rest of a campaign takes if no more images fall; `None` while unknown."""
    outcomes = campaign.outcomes
    costs = np.array([[cost(attack) for attack in row] for row in campaign.attacks]).T
    done = outcomes.attacked.sum(axis=0)
    if not (done * costs).any():
        return None
    speed = outcomes.seconds.sum() / (done * costs).sum()
    # An attack that has run says itself how long it takes.
    ran = done.sum(axis=1)
    each = np.where(ran > 0, outcomes.seconds.sum(axis=1) / np.maximum(ran, 1), np.nan)
    per_image = np.where(np.isnan(each)[:, None], speed * costs, each[:, None])
    left = 0.0
    for radius in range(len(outcomes.eps)):
        for attack in range(len(outcomes.attacks)):
            rows = campaign.rows(attack, radius)
            still = (~outcomes.attacked[rows, attack, radius]).sum()
            left += float(still) * float(per_image[attack, radius])
    return left


class Progress:
    """Prints what runs, what fell and the time left: at most a line in a while, and at each end.

    Args:
        file: Where to; standard output by default.
        seconds: Least time between two lines of one attack or check.
        quiet: Print nothing.
        clock: Gives the time in seconds.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        seconds: float = 5.0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.file, self.seconds, self.quiet, self.clock = file, seconds, quiet, clock
        self._start = clock()
        self._last, self._shown = -float("inf"), ""
        # The batch of an attack that runs, and when it was first seen.
        self._batch, self._since = (-1, -1, -1), 0.0

    @contextlib.contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Says that a check begins, and within it, now and then at its passes, that it goes on."""
        text = f"checking: {what}"

        def tick(*_: Any) -> None:
            if not self.quiet and self.clock() - self._last >= self.seconds:
                self._say(text)

        if not self.quiet:
            self._say(text)
        with listening(tick):
            yield

    def __call__(self, campaign: Campaign) -> None:
        """Show where the campaign stands, if it is time."""
        outcomes, number, radius = campaign.outcomes, campaign.attack, campaign.radius
        if self.quiet:
            return
        due = self.clock() - self._last >= self.seconds
        # Asked at each pass: the rest of this function is work.
        if not due and not campaign.finished_attack:
            return
        rows = campaign.rows(number, radius)
        tried = int(outcomes.attacked[rows, number, radius].sum())
        if (radius, number, tried) != self._batch:
            self._batch, self._since = (radius, number, tried), self.clock()
        left = seconds_left(campaign)
        if left is not None:  # which knows of whole batches only, and one may take half an hour
            left = max(left - (self.clock() - self._since), 0.0)
        text = (
            f"eps {outcomes.eps[radius]:.4f}  {outcomes.attacks[number]:<16} broke "
            f"{int(outcomes.broken[rows, number, radius].sum())} of {tried}/{len(rows)}  "
            f"robust {outcomes.waiting(number + 1, radius).mean():.4f}"
        )
        if campaign.repeating:
            text = (
                f"eps {outcomes.eps[radius]:.4f}  again: {campaign.repeating} images that fell in "
                "a smaller ball"
            )
        if due or text != self._shown:
            self._say(text, left)

    def _say(self, text: str, left: float | None = None) -> None:
        now = self.clock()
        times = f"  after {duration(now - self._start)}"
        times += "" if left is None else f", left {duration(left)}"
        print(text + times, file=self.file or sys.stdout, flush=True)
        self._last, self._shown = now, text


def duration(seconds: float) -> str:
    """`95` as `1:35`, `3725` as `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
