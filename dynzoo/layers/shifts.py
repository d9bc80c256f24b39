"""Spatial shifts of channel groups, alone and with the sort of channel pairs."""

from __future__ import annotations

import keras
import numpy as np

from dynzoo.guarantee import Guarantee
from dynzoo.layers.isometries import Isometry, MaxMin
from dynzoo.operators import torch_passes
from dynzoo.operators.shift import (
    check_padding,
    moved_groups,
    shift,
    shift_float64,
    shift_joined,
)
from dynzoo.utils.arguments import number

__all__ = ["MaxMinShift", "SpatialShift"]


class _Shifting(Isometry):
    """The arguments of a shift."""

    def __init__(self, reverse=False, padding="circular", fraction=0.5, **kwargs):
        super().__init__(**kwargs)
        self.reverse = bool(reverse)
        self.padding = check_padding(padding)
        self.fraction = number("fraction", fraction, high=1.0)

    def guarantees(self) -> list[Guarantee]:
        """What holds for this layer as it is configured."""
        if self.padding == "zero":
            return [Guarantee("1-Lipschitz", "what leaves the image is dropped", 1.0)]
        return super().guarantees()

    def get_config(self):
        return {
            **super().get_config(),
            "reverse": self.reverse,
            "padding": self.padding,
            "fraction": self.fraction,
        }


@keras.saving.register_keras_serializable(package="dynzoo")
class SpatialShift(_Shifting):
    """Moves four groups of channels by one pixel up, down, left and right; the rest stays.

    Guarantee: circular padding permutes the entries, an isometry; zero padding drops the border,
    1-Lipschitz. Between two pointwise steps it lets neighbouring pixels mix.

    Args:
        reverse: move the other way (the exact adjoint).
        padding: ``"circular"`` or ``"zero"``.
        fraction: share of the channels that moves, in (0, 1].

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import SpatialShift
    >>> tuple(SpatialShift()(np.zeros((1, 8, 8, 16), "float32")).shape)
    (1, 8, 8, 16)

    Reference: Wu et al., "Shift: a zero FLOP, zero parameter alternative", CVPR 2018.
    """

    def call(self, x):
        return shift(x, self.reverse, self.padding, self.fraction)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64)
        return shift_float64(x, self.reverse, self.padding, self.fraction)

    lipschitz_bound = Isometry.lipschitz_bound


@keras.saving.register_keras_serializable(package="dynzoo")
class MaxMinShift(_Shifting, MaxMin):
    """``MaxMin``, then ``SpatialShift``, without the copy in between: a third less to move.

    Guarantee: 1-Lipschitz, as both are; with circular padding the Jacobian is a permutation.

    Args:
        reverse: move the other way.
        padding: ``"circular"`` or ``"zero"``.
        fraction: share of the channels that moves, in (0, 1].

    Raises:
        ValueError: if an argument is out of its range, or the number of channels is odd.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import MaxMinShift
    >>> tuple(MaxMinShift()(np.zeros((1, 8, 8, 16), "float32")).shape)
    (1, 8, 8, 16)

    Reference: those of ``MaxMin`` and ``SpatialShift``.
    """

    def call(self, x):
        moved, moves = moved_groups(x.shape[-1], self.reverse, self.fraction)
        within = moved * len(moves) <= x.shape[-1] // 2 and self.padding == "circular"
        if within and torch_passes.suits(x):
            return torch_passes.maxmin_shift(x, moved, moves)
        return shift_joined(self._sorted(x), self.reverse, self.padding, self.fraction)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        return shift_float64(super().call_float64(x), self.reverse, self.padding, self.fraction)

    lipschitz_bound = Isometry.lipschitz_bound
