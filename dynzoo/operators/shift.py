"""A 1x1 operator behind a fixed spatial shift of channel groups: A = V S.

The shift moves four groups of channels by one pixel up, down, left and right and leaves the rest,
so that a pointwise matrix mixes neighbouring pixels at a ninth of the cost of a 3x3 kernel. With
circular padding it is a permutation, exactly orthogonal; with zero padding it drops what leaves
the image (a partial isometry, norm 1).
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from dynzoo.operators.dense import Pointwise

__all__ = [
    "ShiftedPointwise",
    "check_padding",
    "moved_groups",
    "shift",
    "shift_float64",
    "shift_joined",
]

# axis (1 = rows, 2 = columns) and sign of the four moved groups
_MOVES = ((1, 1), (1, -1), (2, 1), (2, -1))


def check_padding(padding):
    if padding not in ("zero", "circular"):
        raise ValueError(f"`padding` must be 'zero' or 'circular'. Received: padding={padding!r}")
    return padding


def _sizes(channels: int, fraction: float) -> list[int]:
    moved = int(channels * fraction) // 4
    return [channels - 4 * moved] + 4 * [moved]


def moved_groups(channels: int, reverse: bool, fraction: float):
    """Channels of a group that moves, and axis and sign of each group, the last channels."""
    moves = tuple((axis, -sign if reverse else sign) for axis, sign in _MOVES)
    return _sizes(channels, fraction)[1], moves


def _cut(x, at: int, axis: int, split):
    """Both parts of an array: before and from a place, which may count from the end."""
    length = x.shape[axis]
    if length is not None:
        return split(x, [at if at > 0 else length + at], axis)
    # A size that TensorFlow does not know yet cannot be split by numbers.
    before = (slice(None),) * axis
    return x[(*before, slice(None, at))], x[(*before, slice(at, None))]


def _move(x, axis: int, sign: int, padding: str, split, concatenate, zeros_like):
    """One pixel along one axis, as a cut and a join: their gradients are cheap on every backend."""
    if sign > 0:
        body, edge = _cut(x, -1, axis, split)
        return concatenate([edge if padding == "circular" else zeros_like(edge), body], axis)
    edge, body = _cut(x, 1, axis, split)
    return concatenate([body, edge if padding == "circular" else zeros_like(edge)], axis)


def _moved(groups, reverse, padding, split, concatenate, zeros_like):
    return [
        _move(g, axis, -sign if reverse else sign, padding, split, concatenate, zeros_like)
        for g, (axis, sign) in zip(groups, _MOVES, strict=True)
    ]


def _shift(x, reverse, padding, fraction, split, concatenate, zeros_like):
    sizes = _sizes(x.shape[-1], fraction)
    if sizes[1] == 0:
        return x
    still, *groups = split(x, list(np.cumsum(sizes)[:-1]), -1)
    moved = _moved(groups, reverse, padding, split, concatenate, zeros_like)
    return concatenate([still, *moved], -1)


def _split(x, at, axis):
    return ops.split(x, [int(a) for a in at], axis=axis)


def _concatenate(parts, axis):
    return ops.concatenate(parts, axis=axis)


def shift(x, reverse: bool = False, padding: str = "circular", fraction: float = 0.5):
    """Shifts channel groups of NHWC images; ``reverse=True`` is the exact adjoint.

    Args:
        x: images (batch, height, width, channels).
        reverse: move the other way.
        padding: ``"circular"`` or ``"zero"``.
        fraction: share of the channels that moves, in (0, 1].

    Returns:
        Images of the shape of ``x``.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from dynzoo import operators
    >>> x = np.random.default_rng(0).random((1, 4, 4, 8))
    >>> back = operators.shift(operators.shift(x), reverse=True)
    >>> bool(np.all(ops.convert_to_numpy(back) == ops.convert_to_numpy(ops.convert_to_tensor(x))))
    True
    """
    return _shift(
        x,
        reverse,
        padding,
        fraction,
        _split,
        _concatenate,
        ops.zeros_like,
    )


def shift_joined(halves, reverse=False, padding="circular", fraction=0.5):
    """``shift`` of the concatenated halves, which are not joined where only the second moves."""
    first, second = halves
    still, *groups = _sizes(2 * first.shape[-1], fraction)
    rest = still - first.shape[-1]
    if groups[0] == 0 or rest < 0:
        return shift(ops.concatenate(halves, axis=-1), reverse, padding, fraction)
    at = np.cumsum([rest, *groups])[:-1]
    resting, *moving = _split(second, at, -1) if rest else [None, *_split(second, at[1:], -1)]
    moved = _moved(moving, reverse, padding, _split, _concatenate, ops.zeros_like)
    return ops.concatenate([first, *([resting] if rest else []), *moved], axis=-1)


def shift_float64(x, reverse: bool = False, padding: str = "circular", fraction: float = 0.5):
    """``shift`` in NumPy."""
    return _shift(x, reverse, padding, fraction, np.split, np.concatenate, np.zeros_like)


@keras.saving.register_keras_serializable(package="dynzoo")
class ShiftedPointwise(Pointwise):
    r"""$A = V S$: a spatial shift of channel groups, then a 1x1 matrix.

    Norm and orthonormal rows are those of the matrix $V$: exactly for circular padding, as an
    upper bound for zero padding.

    Args:
        units: number of output channels, a positive integer.
        padding: ``"circular"`` or ``"zero"``.
        fraction: share of the channels that is shifted, in (0, 1].

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import GradientFlow
    >>> layer = GradientFlow(operators.ShiftedPointwise(32), step_size="maximal")
    >>> tuple(layer(np.ones((1, 4, 4, 8), "float32")).shape)
    (1, 4, 4, 8)

    Reference: shift in place of convolution: Wu et al., CVPR 2018; in an orthogonal network:
    LipNeXt, arXiv 2601.18513. The gradient-flow form is ours.
    """

    def __init__(self, units, padding="circular", fraction=0.5):
        super().__init__(units)
        if not 0 < fraction <= 1:
            raise ValueError(f"`fraction` must be in (0, 1]. Received: fraction={fraction}")
        self.padding = check_padding(padding)
        self.fraction = float(fraction)

    def flatten(self, x):
        return x

    def apply(self, x, kernel):
        return super().apply(shift(x, False, self.padding, self.fraction), kernel)

    def adjoint(self, y, kernel):
        return shift(super().adjoint(y, kernel), True, self.padding, self.fraction)

    def apply_float64(self, x, kernel):
        return super().apply_float64(shift_float64(x, False, self.padding, self.fraction), kernel)

    def adjoint_float64(self, y, kernel):
        x = super().adjoint_float64(y, kernel)
        return shift_float64(x, True, self.padding, self.fraction)

    def min_singular_value_float64(self, kernel, input_shape):
        if self.padding == "zero":
            return 0.0
        return super().min_singular_value_float64(kernel, input_shape)

    def get_config(self):
        return {**super().get_config(), "padding": self.padding, "fraction": self.fraction}
