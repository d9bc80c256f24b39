"""Matrices: on vectors (``Dense``) and on the channels of each pixel (``Pointwise``)."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from dynzoo.operators import bfloat16_products
from dynzoo.operators.base import MatrixOperator

__all__ = ["Dense", "Pointwise", "matmul_channels"]


def matmul_channels(x, matrix):
    """``x @ matrix`` over the last axis, as one plain matrix product on every backend."""
    if len(x.shape) == 2:
        return _matmul(x, matrix)
    flat = _matmul(ops.reshape(x, (-1, x.shape[-1])), matrix)
    # sizes that TensorFlow does not know yet are tensors here
    return ops.reshape(flat, (-1, *ops.shape(x)[1:-1], matrix.shape[-1]))


def _matmul(x, matrix):
    if bfloat16_products.suits(x, matrix):
        return bfloat16_products.product(x, matrix)
    return ops.matmul(x, matrix)


@keras.saving.register_keras_serializable(package="dynzoo")
class Dense(MatrixOperator):
    r"""A matrix on vectors, $A = K^T$ for a kernel $K$ of shape (inputs, units).

    Args:
        units: number of rows of A, a positive integer.

    Raises:
        ValueError: if ``units`` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import GradientFlow
    >>> layer = GradientFlow(operators.Dense(64), step_size="maximal")
    >>> tuple(layer(np.ones((2, 8), "float32")).shape)
    (2, 8)
    """

    def apply(self, x, kernel):
        return matmul_channels(x, kernel)

    def adjoint(self, y, kernel):
        return matmul_channels(y, ops.transpose(kernel))

    def apply_float64(self, x, kernel):
        return np.asarray(x) @ np.asarray(kernel, dtype=np.float64)

    def adjoint_float64(self, y, kernel):
        return np.asarray(y) @ np.asarray(kernel, dtype=np.float64).T


@keras.saving.register_keras_serializable(package="dynzoo")
class Pointwise(Dense):
    """A 1x1 convolution: the same matrix on the channels of each pixel (NHWC images).

    Its operator norm is that of the matrix, whatever the image size.

    Args:
        units: number of output channels, a positive integer.

    Raises:
        ValueError: if ``units`` is not a positive integer, or inputs are not images.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import GradientFlow
    >>> layer = GradientFlow(operators.Pointwise(32), step_size="maximal")
    >>> tuple(layer(np.ones((1, 4, 4, 8), "float32")).shape)
    (1, 4, 4, 8)
    """

    def kernel_shape(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                f"`Pointwise` needs NHWC images. Received: input_shape={tuple(input_shape)}"
            )
        return super().kernel_shape(input_shape)

    def flatten(self, x):
        return ops.reshape(x, (-1, x.shape[-1]))
