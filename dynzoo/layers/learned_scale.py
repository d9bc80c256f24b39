"""A learned scalar, free or held inside an interval."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from dynzoo.guarantee import Guarantee
from dynzoo.utils.arguments import float64, number

__all__ = ["LearnedScale"]


@keras.saving.register_keras_serializable(package="dynzoo")
class LearnedScale(keras.layers.Layer):
    r"""Multiplies by one learned scalar: $y = sx$.

    Guarantee: with a ``limit``, $|s| \le$ ``limit`` after each update, so Lipschitz constant at
    most ``limit``; without one it is $|s|$, whatever training makes of it.

    Args:
        limit: largest absolute value of s, positive, or ``None``.

    Input and output shape: equal, any.

    Raises:
        ValueError: if ``limit`` is not positive.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import LearnedScale
    >>> tuple(LearnedScale(limit=1.0)(np.ones((2, 4), "float32")).shape)
    (2, 4)

    Reference: the scalars after the lifts of E. Celledoni et al., arXiv 2210.02373.
    """

    def __init__(self, limit=None, **kwargs):
        super().__init__(**kwargs)
        self.limit = None if limit is None else number("limit", limit)
        self.supports_masking = True

    def build(self, input_shape):
        start = 1.0 if self.limit is None else min(1.0, self.limit)
        self.scale = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(start),
            constraint=None if self.limit is None else _Clip(self.limit),
            name="scale",
        )

    def call(self, x):
        return x * self.scale

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        return np.asarray(x, dtype=np.float64) * float64(self.scale)

    def lipschitz_bound(self, input_shape) -> float:
        """The present |s|."""
        return abs(float(float64(self.scale)))

    def guarantees(self) -> list[Guarantee]:
        """What holds for this layer as it is configured."""
        if self.limit is None:
            return []
        kept = "a constraint after each optimizer update"
        return [Guarantee("Lipschitz", "at most the limit of |s|", self.limit, kept)]

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "limit": self.limit}


class _Clip(keras.constraints.Constraint):
    """To [-limit, limit]: the sign is kept."""

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, w):
        return ops.clip(w, -self.limit, self.limit)
