"""Checks of arguments that all of the package shares, with errors in Keras' style."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = [
    "array",
    "float64",
    "integer",
    "listed",
    "number",
    "number_or_word",
    "one_of",
    "positive_floats",
    "seed_or_none",
]


def number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, closed: str = "high"
) -> float:
    """A finite float in an interval, of which ``closed`` ends are a part.

    Args:
        name: of the argument.
        value: what was passed.
        low: lower end.
        high: upper end.
        closed: ``"low"``, ``"high"``, ``"both"`` or ``"none"``.
    """
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


def number_or_word(name: str, value: Any, words: Iterable[str], high: float = math.inf) -> Any:
    """One of a few words, or a float in (0, high]."""
    words = tuple(words)
    if isinstance(value, str) and value in words:
        return value
    try:
        return number(name, value, high=high)
    except ValueError as error:
        allowed, received = str(error).split(". Received")
        choices = " or ".join(map(repr, words))
        raise ValueError(f"{allowed}, or {choices}. Received{received}") from None


def one_of(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """`value` if it is one of ``choices``, whose names the error lists."""
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
    """One value, or several, as a list; NumPy's numbers and arrays are fine, text is one value."""
    if isinstance(values, (str, bytes)):
        return [values]
    if isinstance(values, np.ndarray):
        values = values.tolist()
    try:
        return list(values)
    except TypeError:
        return [values]


def integer(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int, NumPy's integers too, or a ValueError that names the argument."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        words = {0: "a non-negative integer", 1: "a positive integer"}
        what = words.get(least, f"an integer of at least {least}")
        raise ValueError(f"`{name}` must be {what}. Received: {name}={value!r}")
    return int(value)


def seed_or_none(value: Any) -> int | None:
    """A seed as an int, or ``None``."""
    return None if value is None else integer("seed", value, least=0)


def array(name: str, value: Any) -> np.ndarray:
    """Numbers as a float64 array, or a ValueError that names the argument."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        received = " ".join(f"{name}={value!r}".split())
        raise ValueError(f"`{name}` must be numbers. Received: {received}") from None


def positive_floats(name: str, values: Any) -> list[float]:
    """One number, or several, as a list of floats above 0; NumPy's numbers and arrays are fine."""
    return [number(name, value) for value in listed(values)]
