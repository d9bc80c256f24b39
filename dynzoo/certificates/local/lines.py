r"""Lines below and above an activation on an interval, as movements from a point of it.

With the movement t of the input, $f(z + t) - f(z) \ge a t - b$ below and $\le a t + b$ above, for
$-d \le t \le u$. For a rectifier the best are known; for any other function a slope is chosen and
its b is the largest gap on a grid, plus what the curvature allows between the points of the grid.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dynzoo.certificates.local.ops import Curve, Rectifier

__all__ = ["MODES", "Lines", "Range", "lines"]

Array = np.ndarray

# Slopes of the lines below a rectifier that can switch: that of the line above, 0 or 1 by the
# longer side, or its slope where it is. The lines above are chords in all of them.
MODES = ("chord", "adaptive", "tangent")
_GRID = 16
# What is rounded in a gap, relative to the numbers in it.
_GAP = 1e-12


class Range(NamedTuple):
    """Input of an activation: its value, how far down and up it may go, the error of the value."""

    z: Array
    down: Array
    up: Array
    error: Array

    @property
    def open(self) -> Array:
        """Where a rectifier can switch."""
        return (self.z - self.down < 0) & (self.z + self.up > 0)


class Lines(NamedTuple):
    """Slopes and gaps below and above, entry by entry."""

    low: Array
    low_gap: Array
    high: Array
    high_gap: Array


def lines(op: Rectifier | Curve, given: Range, mode: str) -> Lines:
    """The lines of an activation whose input is in a range."""
    if isinstance(op, Rectifier):
        return _of_rectifier(op.slope, given, mode)
    return _of_curve(op, given, mode)


def _of_rectifier(kappa: float, given: Range, mode: str) -> Lines:
    z, down, up, error = given
    wide = given.open
    here = np.where(z > 0, 1.0, kappa)
    low, high = z - down, z + up
    length = np.where(wide, high - low, 1.0)
    chord = np.where(wide, (high - kappa * low) / length, here)
    value = np.where(z > 0, z, kappa * z)
    rounded = np.where(wide, _GAP * length + 2.0 * error, 0.0)
    above = np.where(wide, np.maximum(kappa * low + chord * (z - low) - value, 0.0), 0.0)
    if mode == "chord":
        below = chord
    elif mode == "adaptive":
        below = np.where(wide, np.where(high > -low, 1.0, kappa), here)
    else:
        below = here
    gap = np.where(wide, np.maximum(value - below * z, 0.0), 0.0)
    return Lines(below, gap + rounded, chord, above + rounded)


def _of_curve(op: Curve, given: Range, mode: str) -> Lines:
    z, down, up, error = given
    low, high = z - down, z + up
    length = high - low
    # Slopes need not be right, only what they leave.
    chord = (op.forward(high) - op.forward(low)) / np.maximum(length, 1e-12)
    step = 1e-6 * np.maximum(1.0, np.abs(z))
    tangent = (op.forward(z + step) - op.forward(z - step)) / (2.0 * step)
    slopes = [np.clip(slope, op.low, op.high) for slope in (chord, tangent)]
    slopes = slopes[:1] if mode == "chord" else slopes
    found = [_gaps(op, given, slope) for slope in slopes]
    if mode == "chord":
        return Lines(slopes[0], found[0][0], slopes[0], found[0][1])
    below, above = (np.stack([gaps[side] for gaps in found]) for side in (0, 1))
    slope = np.stack(slopes)
    if mode == "tangent":  # at a point, not over the whole interval
        first = second = np.ones((1, *z.shape), np.int64)
    else:
        first, second = below.argmin(axis=0)[None], above.argmin(axis=0)[None]
    picked = [
        np.take_along_axis(a, i, axis=0)[0]
        for a, i in ((slope, first), (below, first), (slope, second), (above, second))
    ]
    return Lines(*picked)


def _gaps(op: Curve, given: Range, slope: Array) -> tuple[Array, Array]:
    """How far a line of that slope through the point is above and below the function at most."""
    z, down, up, error = given
    low, length = z - down, down + up
    value = op.forward(z)
    below, above, size = np.zeros_like(z), np.zeros_like(z), np.abs(value)
    points = [low + share * length for share in np.linspace(0.0, 1.0, _GRID)]
    points += [np.clip(kink, low, z + up) for kink in op.kinks]
    for point in points:
        there = op.forward(point)
        gap = slope * (point - z) - (there - value)
        below, above = np.maximum(below, gap), np.maximum(above, -gap)
        size = np.maximum(size, np.abs(there))
    between = op.curvature * (length / (_GRID - 1)) ** 2 / 8.0 * (1 + 1e-9)
    steep = max(abs(op.low), abs(op.high))
    rounded = between + _GAP * (size + steep * (length + np.abs(z))) + 4.0 * steep * error
    return below + rounded, above + rounded
