"""Shares, lengths of time, radii and norms as text, the same way everywhere."""

from __future__ import annotations

from fractions import Fraction

__all__ = ["clock", "duration", "eps_text", "norm_text", "percent", "radius_text"]


def percent(share: float | None, digits: int = 2, unit: str = " %", missing: str = "") -> str:
    """A share in [0, 1] in percent.

    Args:
        share: the share, or ``None`` where it is not known.
        digits: digits after the point.
        unit: what follows the number; "" in a column whose title says it.
        missing: the text where there is none.

    Example:

    >>> percent(0.7125), percent(0.7125, 1), percent(0.7125, unit=""), percent(None)
    ('71.25 %', '71.2 %', '71.25', '')
    """
    return missing if share is None else f"{100 * float(share):.{digits}f}{unit}"


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


def clock(seconds: float) -> str:
    """Seconds as a clock shows them, for a line that is updated.

    Example:

    >>> clock(95), clock(3725)
    ('1:35', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def eps_text(eps: float) -> str:
    """A radius the way papers write it, rounded to four digits where it is not a short number.

    Example:

    >>> eps_text(36 / 255), eps_text(0.5), eps_text(2**0.5)
    ('36/255', '0.5', '1.414')
    """
    steps = eps * 255.0
    if abs(steps - round(steps)) < 1e-6 and round(steps) > 0 and eps < 1.0:
        return f"{round(steps)}/255"
    simple = Fraction(eps).limit_denominator(1000)
    return f"{float(simple):g}" if abs(float(simple) - eps) < 1e-9 else f"{eps:.4g}"


def radius_text(eps: float | str) -> str:
    """A radius as a key: `36/255` where it is such a one, else every digit; a text stays one.

    Example:

    >>> radius_text(36 / 255), radius_text(2**0.5), radius_text("36/255")
    ('36/255', '1.4142135623730951', '36/255')
    """
    if "/" in str(eps):
        return str(eps)
    text = eps_text(float(eps))
    return text if "/" in text else repr(float(eps))


def norm_text(norm: str) -> str:
    """`norm` the way papers write it.

    Example:

    >>> norm_text("l2"), norm_text("linf")
    ('L2', 'Linf')
    """
    return {"l2": "L2", "linf": "Linf"}[norm]
