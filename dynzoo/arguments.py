"""Checks of arguments that all of the package shares; it imports nothing of it."""

from __future__ import annotations

import numbers

__all__ = ["positive_integer"]


def positive_integer(name: str, value) -> int:
    """`value` as an int, NumPy's integers too, or a ValueError that names the argument."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)
