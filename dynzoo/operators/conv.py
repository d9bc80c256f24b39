"""Convolution with stride 1 on images, and its exact adjoint."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from dynzoo import constraints, spectral
from dynzoo.operators.base import Operator
from dynzoo.operators.shift import check_padding
from dynzoo.utils.arguments import integer

__all__ = ["Conv"]


@keras.saving.register_keras_serializable(package="dynzoo")
class Conv(Operator):
    r"""A $k \times k$ convolution (cross-correlation), stride 1, output as large as the input.

    $$(Ax)_p = \sum_t K_t^T x_{p + t - \lfloor (k-1)/2 \rfloor}$$

    Its norm is bounded for the given image size: see ``dynzoo.spectral.conv_norm_float64``.

    Args:
        filters: number of output channels, a positive integer.
        kernel_size: side of the square kernel in pixels, a positive integer.
        padding: ``"zero"`` or ``"circular"``.

    Raises:
        ValueError: if an argument is out of its range, or inputs are not sized NHWC images.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import GradientFlow
    >>> layer = GradientFlow(operators.Conv(32), constraint="spectral_norm")
    >>> tuple(layer(np.ones((1, 4, 4, 3), "float32")).shape)
    (1, 4, 4, 3)

    Reference: Sedghi et al., ICLR 2019 (circular symbols).
    """

    def __init__(self, filters, kernel_size=3, padding="zero"):
        self.filters = integer("filters", filters)
        self.kernel_size = integer("kernel_size", kernel_size)
        self.padding = check_padding(padding)

    @property
    def _before(self) -> int:
        return (self.kernel_size - 1) // 2

    @property
    def _after(self) -> int:
        return self.kernel_size // 2

    def kernel_shape(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(f"`Conv` needs NHWC images. Received: input_shape={input_shape}")
        return (self.kernel_size, self.kernel_size, int(input_shape[-1]), self.filters)

    def _padded(self, x, before, after, pad):
        """Pads both image axes; circular padding may be wider than the image."""
        mode = "wrap" if self.padding == "circular" else "constant"
        return pad(x, ((0, 0), (before, after), (before, after), (0, 0)), mode)

    def apply(self, x, kernel):
        x = self._padded(x, self._before, self._after, _pad)
        return ops.conv(x, kernel, padding="valid", data_format="channels_last")

    def adjoint(self, y, kernel):
        # Correlation with the flipped, transposed kernel, with the two paddings exchanged.
        y = self._padded(y, self._after, self._before, _pad)
        flipped = ops.swapaxes(ops.flip(kernel, axis=(0, 1)), 2, 3)
        return ops.conv(y, flipped, padding="valid", data_format="channels_last")

    def apply_float64(self, x, kernel):
        kernel = np.asarray(kernel, dtype=np.float64)
        height, width = x.shape[1:3]
        x = self._padded(np.asarray(x), self._before, self._after, np.pad)
        return sum(
            x[:, i : i + height, j : j + width] @ kernel[i, j]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        )

    def adjoint_float64(self, y, kernel):
        kernel = np.asarray(kernel, dtype=np.float64)
        height, width = y.shape[1:3]
        y = self._padded(np.asarray(y), self._after, self._before, np.pad)
        last = self.kernel_size - 1
        return sum(
            y[:, last - i : last - i + height, last - j : last - j + width] @ kernel[i, j].T
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        )

    def norm_float64(self, kernel, input_shape):
        if None in tuple(input_shape[1:3]):
            return spectral.conv_all_sizes_norm_float64(kernel)
        return spectral.conv_norm_float64(kernel, input_shape[1:3], self.padding, small_images=True)

    def spectral_norm_constraint(self, max_norm, input_shape):
        spatial = None if None in tuple(input_shape[1:3]) else tuple(input_shape[1:3])
        return constraints.SpectralNorm(max_norm, spatial=spatial, padding=self.padding)

    def initializer(self, seed=None):
        return DeltaOrthonormal(seed=seed)

    def get_config(self):
        return {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "padding": self.padding,
        }


def _pad(x, widths, mode):
    if mode == "wrap":
        # ops.pad has no wrap mode on every backend; images are at least as large as the border.
        for axis, (before, after) in enumerate(widths):
            if before or after:
                length = x.shape[axis]
                if length is None:  # not known to TensorFlow yet
                    outer = (slice(None),) * axis
                    parts = [x[(*outer, slice(-before, None))]] if before else []
                    parts += [x, x[(*outer, slice(None, after))]] if after else [x]
                    x = ops.concatenate(parts, axis=axis)
                else:
                    index = np.arange(-before, length + after) % length
                    x = ops.take(x, index, axis=axis)
        return x
    return ops.pad(x, widths, mode="constant")


@keras.saving.register_keras_serializable(package="dynzoo")
class DeltaOrthonormal(keras.initializers.Initializer):
    """Convolution kernel that is an orthonormal matrix at its centre tap and zero elsewhere.

    Its operator norm is 1 for every image size.

    Args:
        seed: integer seed, or ``None``.

    Example:

    >>> from keras import ops
    >>> from dynzoo import operators
    >>> kernel = operators.DeltaOrthonormal(seed=0)((3, 3, 4, 8))
    >>> round(float(ops.sum(kernel**2)), 4)  # four orthonormal rows
    4.0

    Reference: Xiao et al., ICML 2018 (delta-orthogonal initialisation).
    """

    def __init__(self, seed=None):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        matrix = keras.initializers.Orthogonal(seed=self.seed)(shape[-2:], dtype=dtype)
        centre = ((shape[0] - 1) // 2, (shape[1] - 1) // 2)
        mask = np.zeros((*shape[:2], 1, 1), dtype="float32")
        mask[centre] = 1.0
        return ops.cast(mask, matrix.dtype) * matrix

    def get_config(self):
        return {"seed": self.seed}
