"""Options that several commands share: help texts, and what argparse turns their text into."""

from argparse import ArgumentParser, ArgumentTypeError
from fractions import Fraction

PRESET = "name of a preset (see `dynzoo list`) or a folder with one"
FILE = (
    "data as an .npz file with the keys x_train, y_train, x_test, y_test, or a folder of images "
    "with a subfolder a class (or `train` and `test` with one each), or of shards (docs/data.md)"
)
DATASET = "cifar10, cifar100, mnist or digits"


def add_preset(parser: ArgumentParser) -> None:
    """The preset, as the first argument of a command."""
    parser.add_argument("preset", metavar="PRESET", help=PRESET)


def positive(text: str) -> int:
    """A whole number of at least 1, as the value of an option."""
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def shard(text: str) -> tuple[int, int]:
    """A part, such as 3/16: the third of sixteen."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ArgumentTypeError(f"must be a part such as 3/16, the third of 16, not {text!r}")
    return int(number), int(count)


def seed(text: str) -> int:
    """A seed, as Keras takes it."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise ArgumentTypeError(f"must be from 0 to 2**32 - 1, not {value}")
    return value


def names(text: str) -> list[str]:
    """Words between commas."""
    return text.split(",")


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
