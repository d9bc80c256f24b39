"""Checks of arguments that the model builders share, and the seeds of their layers."""

from __future__ import annotations

import numbers
from collections.abc import Iterator

import numpy as np

from dynzoo.utils.arguments import array, integer, listed

__all__ = [
    "check_classes", "check_image", "check_normalization", "check_stages", "check_widths",
    "layer_seeds",
]  # fmt: skip

# TensorFlow and JAX take seeds of 32 bits.
_SEEDS = 2**31


def check_classes(num_classes) -> None:
    if not isinstance(num_classes, numbers.Integral):
        raise ValueError(f"`num_classes` must be an integer. Received: num_classes={num_classes!r}")
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2. Received: num_classes={num_classes}")


def check_image(input_shape, factor: int) -> None:
    """Three positive integers, of which height and width survive being divided by ``factor``."""
    sizes = listed(input_shape)
    whole = [isinstance(s, int | np.integer) and not isinstance(s, bool) for s in sizes]
    if len(sizes) != 3 or not all(whole) or not all(s > 0 for s in sizes):
        raise ValueError(
            "`input_shape` must be (height, width, channels), positive integers. "
            f"Received: input_shape={input_shape!r}"
        )
    if any(size % factor for size in sizes[:2]):
        raise ValueError(
            f"`input_shape` must have height and width divisible by {factor}. "
            f"Received: input_shape={tuple(input_shape)}"
        )


def check_normalization(mean, deviation, channels: int) -> tuple[list[float], list[float]]:
    """Means and variances of the channels, from their means and standard deviations."""
    means, deviations = (
        _of_channels(name, value, channels)
        for name, value in (("mean", mean), ("deviation", deviation))
    )
    if not all(d > 0 for d in deviations):
        raise ValueError(f"`deviation` must be positive. Received: deviation={deviation!r}")
    return means, [d**2 for d in deviations]


def _of_channels(name, value, channels: int) -> list[float]:
    numbers_ = array(name, value)
    finite = abs(numbers_) < float("inf")
    if numbers_.shape != (channels,) or not finite.all():
        raise ValueError(
            f"`{name}` must list {channels} numbers, one for each channel. "
            f"Received: {name}={value!r}"
        )
    return numbers_.tolist()


def check_widths(name, values) -> list[int]:
    """A list of positive integers, at least one."""
    entries = listed(values)
    if not entries or isinstance(values, str | dict | numbers.Number) or values is None:
        raise ValueError(
            f"`{name}` must list positive integers, one for each stage. Received: {name}={values!r}"
        )
    return [integer(name, entry) for entry in entries]


def check_stages(widths, steps) -> None:
    if len(check_widths("widths", widths)) != len(check_widths("steps", steps)):
        raise ValueError(
            "`steps` must have one entry for each of `widths`. "
            f"Received: widths={tuple(widths)}, steps={tuple(steps)}"
        )


def layer_seeds(seed, apart: int = 1) -> Iterator[int]:
    """Seeds of a model's layers, ``apart`` from each other: those of two seeds are different."""
    first = 1000 * integer("seed", seed, least=0)
    return ((first + k) % _SEEDS for k in range(0, 1000, apart))
