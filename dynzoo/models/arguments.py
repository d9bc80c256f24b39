"""Checks of arguments that the model builders share."""

from __future__ import annotations

import numbers

from dynzoo.utils.arguments import integer

__all__ = ["check_classes", "check_image", "check_stages"]


def check_classes(num_classes) -> None:
    if not isinstance(num_classes, numbers.Integral):
        raise ValueError(f"`num_classes` must be an integer. Received: num_classes={num_classes!r}")
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2. Received: num_classes={num_classes}")


def check_image(input_shape, factor: int) -> None:
    """Height and width must survive being divided by ``factor``."""
    if any(size is None or size % factor for size in input_shape[:2]):
        raise ValueError(
            f"`input_shape` must have height and width divisible by {factor}. "
            f"Received: input_shape={tuple(input_shape)}"
        )


def check_stages(widths, steps) -> None:
    if len(widths) != len(steps) or not widths:
        raise ValueError(
            "`steps` must have one entry for each of `widths`. "
            f"Received: widths={tuple(widths)}, steps={tuple(steps)}"
        )
    for name, entries in (("widths", widths), ("steps", steps)):
        for entry in entries:
            integer(name, entry)
