"""Types of command line options: what argparse turns their text into, or refuses."""

from argparse import ArgumentTypeError
from fractions import Fraction


def positive(text: str) -> int:
    """A whole number of at least 1, as the value of an option."""
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def radii(text: str) -> list[float]:
    """Positive numbers or fractions between commas."""
    try:
        values = [float(Fraction(part.strip())) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        values = []
    whole = [part.strip() for part in text.split(",") if part.strip().isdigit()]
    if values and whole and int(whole[0]):
        raise ArgumentTypeError(
            f"radii are for pixels in [0, 1]: write {whole[0]}/255 for {whole[0]} of 255 gray "
            f"values, or {whole[0]}.0 for {whole[0]} times the whole range, not {text!r}"
        )
    if not values or not all(0 < value < float("inf") for value in values):
        raise ArgumentTypeError(
            f"must be positive numbers or fractions such as 36/255,72/255, not {text!r}"
        )
    return values
