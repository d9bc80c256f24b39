"""Checks of arguments that all of the package shares; it imports nothing of it."""

from __future__ import annotations

import numbers
from typing import Any

__all__ = ["listed", "positive_integer"]


def listed(values: Any) -> list[Any]:
    """One value, or several, as a list; NumPy's numbers and arrays are fine."""
    try:
        return list(values)
    except TypeError:
        return [values]


def positive_integer(name: str, value) -> int:
    """`value` as an int, NumPy's integers too, or a ValueError that names the argument."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)
