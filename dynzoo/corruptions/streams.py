"""Random numbers of each image, from its index alone: batches and their order change nothing."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Streams"]


class Streams:
    """One random generator an image, keyed by seed, name and image index.

    The severity is not part of the key: the same image gets the same random numbers at every
    severity, so that the steps between severities are not blurred by chance.

    Args:
        seed: non-negative integer.
        name: what the numbers are for; other names give independent numbers.
        indices: integer array of shape (n,).

    Example:

    >>> from dynzoo.corruptions import Streams
    >>> import numpy as np
    >>> Streams(0, "fog", np.arange(3))(lambda rng: rng.standard_normal((8, 8))).shape
    (3, 8, 8)
    """

    def __init__(self, seed: int, name: str, indices: np.ndarray):
        self.seed, self.name, self.indices = seed, name, indices

    @cached_property
    def generators(self) -> list[np.random.Generator]:
        """Made when they are first needed; half of the corruptions need none."""
        key = zlib.crc32(self.name.encode())
        return [np.random.default_rng([self.seed, key, int(index)]) for index in self.indices]

    def __call__(self, draw: Callable[[np.random.Generator], Any]) -> np.ndarray:
        """``draw`` of each generator, stacked: shape (n, ...)."""
        return np.stack([np.asarray(draw(generator)) for generator in self.generators])
