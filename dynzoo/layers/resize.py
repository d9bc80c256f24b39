"""Images of another size, brought to that of a network as a fixed linear map of known norm."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo import spectral
from dynzoo.guarantee import Guarantee
from dynzoo.utils.arguments import integer, number

__all__ = ["Resize", "bicubic"]

_SHARPNESS = -0.5  # Keys' choice, for which the interpolation has order three
_SUPPORT = 2.0


def bicubic(size: int, new: int, start: float = 0.0, stop: float | None = None) -> np.ndarray:
    r"""Matrix (new, size) that resamples an axis by cubic convolution, with antialiasing.

    New pixel i is the mean of old pixels j with weights $k((j + \tfrac12 - c_i)/s)$ of sum one,
    $c_i = a + (i + \tfrac12)(b - a)/n$, $s = \max(1, (b - a)/n)$ and Keys' kernel k.

    Args:
        size: number of old pixels.
        new: number n of new ones.
        start: a, where the part that is resampled begins, in old pixels.
        stop: b, where it ends; ``None`` for the end of the axis.

    Returns:
        float64 array (new, size).

    Reference: R. Keys, "Cubic convolution interpolation for digital image processing", IEEE Trans.
    ASSP 29 (1981).
    """
    step = ((size if stop is None else stop) - start) / new
    scale = max(1.0, step)
    centres = start + (np.arange(new) + 0.5) * step
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / scale
    a = _SHARPNESS
    near = ((a + 2.0) * distance - (a + 3.0)) * distance**2 + 1.0
    far = a * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    weights = np.where(distance < 1.0, near, np.where(distance < _SUPPORT, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


@keras.saving.register_keras_serializable(package="dynzoo")
class Resize(keras.layers.Layer):
    r"""Brings images to a size: cut in the middle to its proportions, then bicubic, antialiased.

    $$x \mapsto \mathrm{clip}(R\,x\,C^T)$$

    for each channel, with R and C the matrices of ``bicubic`` for the rows and columns. Up to the
    rounding to bytes, it is what ``dynzoo.data.load`` does to
    the pictures of a folder. Keras' own layer has another bicubic kernel on PyTorch.

    Guarantee: Lipschitz with constant $\|R\|_2\|C\|_2$, which is exact without the clip. It
    falls with the size of the image: many pixels make one.

    Args:
        height: rows of the output.
        width: columns of the output.
        value_range: ``(low, high)``, where overshooting values are cut off; ``None`` for no cut.

    Input shape: (batch, H, W, channels), of known size. Output shape: (batch, height, width,
    channels).

    Raises:
        ValueError: if an argument is out of its range, or the input is not of a known size.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import Resize
    >>> tuple(Resize(32, 32)(np.zeros((1, 480, 640, 3), "float32")).shape)
    (1, 32, 32, 3)

    Reference: R. Keys, IEEE Trans. ASSP 29 (1981); the norm is elementary.
    """

    def __init__(self, height, width, value_range=None, **kwargs):
        super().__init__(**kwargs)
        self.height = integer("height", height)
        self.width = integer("width", width)
        self.value_range: Any = None if value_range is None else _checked_range(value_range)

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(
                "`Resize` needs images (batch, height, width, channels) of known size. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        sizes = [int(n) for n in input_shape[1:3]]
        new = [self.height, self.width]
        self._matrices = [
            # as float32 holds them, so that every pass takes the same numbers
            bicubic(n, m, a, b).astype(np.float32)
            for n, m, (a, b) in zip(sizes, new, _middle(sizes, new), strict=True)
        ]

    def call(self, x):
        rows, columns = (ops.convert_to_tensor(m, self.compute_dtype) for m in self._matrices)
        y = ops.einsum("bhwc,ih->biwc", x, rows)
        y = ops.einsum("biwc,jw->bijc", y, columns)
        return y if self.value_range is None else ops.clip(y, *self.value_range)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        rows, columns = (m.astype(np.float64) for m in self._matrices)
        x = np.asarray(x, dtype=np.float64)
        y = np.einsum("bhwc,ih,jw->bijc", x, rows, columns, optimize=True)
        return y if self.value_range is None else np.clip(y, *self.value_range)

    def matrices(self) -> list[np.ndarray]:
        """R and C, float64 arrays (height, H) and (width, W)."""
        return [m.astype(np.float64) for m in self._matrices]

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant (two matrix norms, in float64)."""
        return math.prod(spectral.dense_norm_float64(m) for m in self.matrices()) * (1 + 1e-15)

    def guarantees(self) -> list[Guarantee]:
        """What holds for this map."""
        value = self.lipschitz_bound(None) if self.built else None
        return [Guarantee("Lipschitz", "the norms of two matrices multiply", value)]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.height, self.width, input_shape[3])

    def get_config(self):
        return {
            **super().get_config(),
            "height": self.height,
            "width": self.width,
            "value_range": self.value_range,
        }


def _checked_range(value_range) -> list[float]:
    try:
        low, high = value_range
    except (TypeError, ValueError):
        raise ValueError(
            f"`value_range` must be (low, high) or None. Received: value_range={value_range!r}"
        ) from None
    low, high = (number("value_range", v, -math.inf) for v in (low, high))
    if not low < high:
        raise ValueError(
            "`value_range` must be (low, high) with low < high. "
            f"Received: value_range={value_range!r}"
        )
    return [low, high]


def _middle(sizes: list[int], new: list[int]) -> list[tuple[float, float]]:
    """For each axis, the part in the middle that has the proportions of the new size."""
    share = min(n / m for n, m in zip(sizes, new, strict=True))
    return [((n - share * m) / 2, (n + share * m) / 2) for n, m in zip(sizes, new, strict=True)]
