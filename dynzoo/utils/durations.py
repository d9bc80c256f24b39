"""Lengths of time for people, the same way everywhere."""

from __future__ import annotations

__all__ = ["duration"]


def duration(seconds: float | None) -> str:
    """Seconds as text, in hours and minutes from an hour on; "" where they are not known.

    Example:

    >>> duration(12755), duration(125), duration(7.2)
    ('3 h 32 min', '2 min 5 s', '7 s')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(float(seconds)), 60)
    if minutes >= 60:
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
