"""How far an evaluation is, and how long its attacks will still take: a line that is updated."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import numpy as np

from dynzoo.inference.passes import listening
from dynzoo.robustness.campaign import Campaign, Found
from dynzoo.utils.formatting import clock, eps_text, percent

__all__ = ["Progress", "seconds_left"]

_TERMINAL = 0.5  # seconds between two updates of a line on a terminal


def seconds_left(campaign: Campaign) -> float | None:
    """Time that the rest of a campaign takes if no more images fall; `None` while unknown."""
    outcomes = campaign.outcomes
    costs = np.array([[attack.cost() for attack in row] for row in campaign.attacks]).T
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
    """Says what runs, what fell, the share done and the time left, in the units of the report.

    On a terminal that is one line, which is updated. Elsewhere (a file, a pipe) it is at most a
    line in a while, and one at the end of each attack.

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
        self._share, self._open = 0.0, False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._open:  # what comes next begins a line of its own
            self._open = False
            print(file=self.file or sys.stdout, flush=True)

    @contextlib.contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Says that a check begins, and within it, now and then at its passes, that it goes on."""
        text = f"checking: {what}"

        def tick(*_: Any) -> None:
            if not self.quiet and self.clock() - self._last >= self._least:
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
        due = self.clock() - self._last >= self._least
        # Asked at each pass: the rest of this function is work.
        if not due and not campaign.finished_attack:
            return
        rows = campaign.rows(number, radius)
        tried = int(outcomes.attacked[rows, number, radius].sum())
        if (radius, number, tried) != self._batch:
            self._batch, self._since = (radius, number, tried), self.clock()
        left = seconds_left(campaign)
        if left is not None:  # which knows of whole batches only, and one may take half an hour
            batch = self.clock() - self._since
            work = campaign.work
            # An attack that is slower than thought says so by what it has left to do.
            slow = batch * work.left / work.done if work is not None and work.done else 0.0
            left = max(left - batch, slow)
            spent = float(outcomes.seconds.sum()) + batch
            # Never less than before, though an attack may turn out to be slower than thought.
            self._share = max(self._share, spent / (spent + left) if spent else 0.0)
        radius_text = eps_text(outcomes.eps[radius])
        text = (
            f"{radius_text}  {outcomes.attacks[number]:<16} broke "
            f"{int(outcomes.broken[rows, number, radius].sum())} of {tried}/{len(rows)}  "
            f"robust {percent(outcomes.waiting(number + 1, radius).mean())}"
        )
        if campaign.repeating:
            text = f"{radius_text}  again: {campaign.repeating} images that fell in a smaller ball"
        if due or text != self._shown:
            self._say(text, left)

    def counting(self, shards: int) -> Callable[[int, Found], None]:
        """A function that is told of each part as it is done, and says how many are."""
        begin, images, robust = self.clock(), 0, np.zeros(1)

        done = 0

        def finished(number: int, found: Found) -> None:
            nonlocal done, images, robust
            done += 1
            resist = found.outcomes.robust()
            images, robust = images + resist.shape[1], robust + resist.sum(axis=1)
            if self.quiet:
                return
            self._share = done / shards
            left = (self.clock() - begin) * (shards - done) / done
            shares = ", ".join(
                f"{percent(share)} at {eps_text(e)}"
                for e, share in zip(found.outcomes.eps, robust / images, strict=True)
            )
            self._say(f"part {done} of {shards}  robust {shares}", left)

        return finished

    def lost(self, left: int) -> None:
        """A process died; what it was doing is done again."""
        if not self.quiet:
            self._say(f"a process was killed: its part is done again, {left} left")

    @property
    def _least(self) -> float:
        """Least time between two lines; less where the next one replaces the last."""
        return min(self.seconds, _TERMINAL) if _is_terminal(self.file) else self.seconds

    def _say(self, text: str, left: float | None = None) -> None:
        now, file = self.clock(), self.file or sys.stdout
        times = f"  after {clock(now - self._start)}"
        if left is not None:
            times = f"  {percent(self._share, 0)} done{times}, left {clock(left)}"
        if _is_terminal(self.file):
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{(text + times)[:width]}", end="", file=file, flush=True)
            self._open = True
        else:
            print(text + times, file=file, flush=True)
        self._last, self._shown = now, text


def _is_terminal(file: TextIO | None) -> bool:
    return (file or sys.stdout).isatty()
