"""Checks of constructor arguments that the flows share, with errors in Keras' style."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

import numpy as np
from keras import ops

from dynzoo.utils.listed import positive_integer as positive_integer

__all__ = ["float64", "number", "one_of", "positive_integer"]


def number(name: str, value, low: float = 0.0, high: float = math.inf, closed: str = "high"):
    """A finite float in an interval: its ``closed`` ends ("low", "high", "both") belong to it."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    above = real and (value >= low if closed in ("low", "both") else value > low)
    below = real and (value <= high if closed in ("high", "both") else value < high)
    if not (above and below and math.isfinite(value)):
        left = "[" if closed in ("low", "both") else "("
        right = "]" if closed in ("high", "both") and math.isfinite(high) else ")"
        raise ValueError(
            f"`{name}` must be in {left}{low:g}, {high:g}{right}. Received: {name}={value!r}"
        )
    return float(value)


def one_of(name: str, value, choices: Iterable):
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}"
        )
    return value


def float64(variable) -> np.ndarray:
    """A weight's present value as a NumPy float64 array."""
    return np.asarray(ops.convert_to_numpy(variable.value), dtype=np.float64)
