"""Numbers that training takes, checked without Keras: the command asks before it loads anything."""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["axes_of", "check_crop_padding", "check_finetuning", "check_training"]


def check_training(
    max_seconds: float | None = None,
    distribute: bool = False,
    devices: int | None = None,
    pilot: float | None = None,
    weights_dtype: str = "float32",
    layout: Any = None,
) -> None:
    """A ValueError for an argument of `train` that is out of its range, whatever the recipe."""
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"`max_seconds` must be positive. Received: max_seconds={max_seconds}")
    if devices is not None and not distribute:
        raise ValueError(f"`devices` needs `distribute=True`. Received: devices={devices}")
    if pilot is not None and not 0 < pilot < math.inf:
        raise ValueError(f"`pilot` must be a positive number of seconds. Received: pilot={pilot}")
    if weights_dtype not in ("float32", "float16"):
        raise ValueError(
            f"`weights_dtype` must be 'float32' or 'float16'. Received: {weights_dtype!r}"
        )

    if layout is not None and distribute:
        raise ValueError(
            "`layout` (--layout) and `distribute` (--distribute) are two ways to use devices: give "
            f"one. Received: layout={layout!r}, distribute=True"
        )
    if isinstance(layout, str) and axes_of(layout) is None and not os.path.isfile(layout):
        raise ValueError(
            "`layout` must be axes such as 'model=4' or 'batch=2,model=2', or a YAML file. "
            f"Received: {layout!r}"
        )


def axes_of(layout: str) -> dict[str, int] | None:
    """The axes of a mesh that a text names; ``None`` if it is something else.

    Example:

    >>> axes_of("batch=2,model=4")
    {'batch': 2, 'model': 4}
    """
    parts = [re.fullmatch(r"(batch|model)=([1-9]\d*)", part) for part in layout.split(",")]
    axes = {part[1]: int(part[2]) for part in parts if part}
    return axes if len(axes) == len(parts) == layout.count("=") else None


def check_finetuning(learning_rate: float) -> None:
    """A ValueError for an argument of `finetune` that is out of its range, whatever the images."""
    if not 0 < learning_rate < math.inf:
        raise ValueError(
            f"`learning_rate` must be positive. Received: learning_rate={learning_rate}"
        )


def check_crop_padding(crop_padding: int, image_shape: Sequence[int]) -> None:
    """A ValueError where images of that shape (height, width, channels) cannot be shifted so."""
    side = min(image_shape[:2])
    if not isinstance(crop_padding, numbers.Integral) or not 0 <= crop_padding < side:
        raise ValueError(
            f"`crop_padding` must be an integer in [0, {side}), less than the image's height and "
            f"width. Received: crop_padding={crop_padding}"
        )
