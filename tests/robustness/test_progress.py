"""What an evaluation prints while it runs: never silent for long, whatever it does."""

import functools
import io
import os
import re
import shutil

import numpy as np
import pytest
from robustness_fixtures import centroids, held_out

from dynzoo import backend
from dynzoo.attacks import APGD, PGD
from dynzoo.inference import passes
from dynzoo.robustness import evaluation as robustness
from dynzoo.robustness.progress import Progress


class Clock:
    """A clock that stands still but for what moves it."""

    now = 100.0

    def __call__(self):
        return self.now


class Stamped(io.StringIO):
    """Notes when each line was printed."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.lines = clock, []

    def write(self, text):
        if text.strip():
            self.lines.append((self.clock.now, text))
        return super().write(text)


@pytest.fixture
def slow(monkeypatch):
    """A clock on which each compiled pass takes a second, and the lines of `evaluate` by it."""
    clock = Clock()
    lines = Stamped(clock)
    original = backend.jit

    def jit(function):
        fast = original(function)

        def run(*args):
            clock.now += 1.0
            return fast(*args)

        return run

    monkeypatch.setattr(backend, "jit", jit)
    monkeypatch.setattr(
        robustness, "Progress", functools.partial(Progress, file=lines, clock=clock)
    )
    passes.pure.cache_clear()
    yield lines
    passes.pure.cache_clear()


def test_no_part_of_an_evaluation_is_silent_for_ten_seconds(slow):
    attacks = [PGD(steps=15, random_start=False), APGD(steps=15)]
    report = robustness.evaluate(
        centroids(), *held_out(60), eps=(0.3, 0.6, 0.8), attacks=attacks, certificate=False,
        verbose=1, attack_certified="all",
    )  # fmt: skip
    assert report.warnings == [] and report.robust[0.8] < report.robust[0.3] < report.clean
    times = [100.0, *(when for when, _ in slow.lines), slow.clock.now]
    assert times[-1] - times[0] > 300
    assert max(np.diff(times)) <= 10.0
    text = slow.getvalue()
    for what in (
        "checking: clean accuracy", "checking: certificate", "checking: outputs of two passes",
        "checking: gradients against differences", "checking: attack without a limit", "broke",
        "again: ", "checking: attack of twice the steps", "checking: attack on planted examples",
    ):  # fmt: skip
        assert what in text


def test_a_quiet_evaluation_prints_nothing(slow, capsys):
    robustness.evaluate(centroids(), *held_out(10), eps=0.3, attacks="fast", certificate=False)
    assert slow.getvalue() == "" and capsys.readouterr().out == ""


class Terminal(Stamped):
    def isatty(self):
        return True


def test_on_a_terminal_it_is_one_line_in_the_units_of_the_report(monkeypatch):
    clock = Clock()
    screen = Terminal(clock)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((100, 24)))
    monkeypatch.setattr(
        robustness, "Progress", functools.partial(Progress, file=screen, clock=clock, seconds=0.0)
    )
    x, y = held_out(40)
    attacks = [PGD(steps=15, random_start=False), APGD(steps=15)]
    robustness.evaluate(
        centroids(), x, y, eps=(36 / 255, 0.6), attacks=attacks, certificate=False, verbose=1
    )
    text = screen.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    updates = text.split("\r\x1b[K")[1:]
    assert all(len(update.rstrip("\n")) < 100 for update in updates)
    attacked = [update for update in updates if "broke" in update]
    assert any(update.startswith("36/255  PGD-margin") for update in attacked)
    assert all(" %" in update and "after 0:0" in update for update in attacked)
    shares = [int(re.search(r"(\d+) % done", u)[1]) for u in attacked if "% done" in u]
    assert shares == sorted(shares) and shares[-1] == 100
    assert re.search(r"robust \d+\.\d\d %", attacked[-1]) and "left 0:00" in attacked[-1]
