"""Numbers that training takes, checked without Keras: the command asks before it loads anything."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

__all__ = ["check_crop_padding", "check_finetuning", "check_training"]


def check_training(
    max_seconds: float | None = None,
    distribute: bool = False,
    devices: int | None = None,
    pilot: float | None = None,
    weights_dtype: str = "float32",
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
