"""Checks of arguments that all of the package shares, with errors in Keras' style."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = [
    "float64",
    "listed",
    "number",
    "one_of",
    "positive_float",
    "positive_floats",
    "positive_int",
    "positive_integer",
]


def number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, closed: str = "high"
) -> float:
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


def one_of(name: str, value: Any, choices: Iterable[Any]) -> Any:
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}"
        )
    return value


def float64(variable: Any) -> np.ndarray:
    """A weight's present value as a NumPy float64 array."""
    from keras import ops  # the command checks numbers here before it loads Keras

    return np.asarray(ops.convert_to_numpy(variable.value), dtype=np.float64)


def listed(values: Any) -> list[Any]:
    """One value, or several, as a list; NumPy's numbers and arrays are fine."""
    try:
        return list(values)
    except TypeError:
        return [values]


def positive_integer(name: str, value: Any) -> int:
    """`value` as an int, NumPy's integers too, or a ValueError that names the argument."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)


def positive_int(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int, or a ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {value!r}")
    return int(value)


def positive_floats(name: str, values: Any) -> list[float]:
    """One number, or several, as a list of floats above 0; NumPy's numbers and arrays are fine."""
    return [positive_float(name, value) for value in listed(values)]


def positive_float(name: str, value: Any) -> float:
    """`value` as a finite float above 0, or a ValueError that names the argument."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not (np.isfinite(number) and number > 0.0):
        raise ValueError(f"`{name}` must be a finite number above 0. Received: {name}={value!r}")
    return number
