"""Regularisers: what a loss may ask of a kernel where no constraint imposes it."""

from __future__ import annotations

import keras
from keras import ops

from dynzoo.utils.arguments import number

__all__ = ["Orthogonality", "orthogonality_distance"]


def orthogonality_distance(kernel):
    r"""How far a linear map is from having orthonormal rows, $\|AA^T - I\|$, by its kernel alone.

    A stride-1 convolution K has the autocorrelation $C_t = \sum_s K_{s+t}^T K_s$ as the kernel of
    $AA^T$ (away from the borders), of side 2k - 1. The distance is the Frobenius norm
    $(\sum_t \|C_t - \delta_t I\|_F^2)^{1/2}$. Where the map has more outputs than inputs its rows
    cannot be orthonormal, and the columns ($A^TA$) take their place.

    Args:
        kernel: (height, width, inputs, outputs), or (inputs, outputs) of a matrix.

    Returns:
        A scalar; its gradient is finite everywhere, and 0 where the distance is.

    Example:

    >>> import numpy as np
    >>> from dynzoo.regularizers import orthogonality_distance
    >>> float(orthogonality_distance(np.eye(4, dtype="float32"))) == 0.0
    True
    """
    kernel = ops.convert_to_tensor(kernel)
    if len(kernel.shape) == 2:
        kernel = ops.reshape(kernel, (1, 1, *kernel.shape))
    height, width, inputs, outputs = kernel.shape
    if outputs > inputs:
        # A^T is the convolution with the flipped, transposed kernel; flipping both factors of an
        # autocorrelation only renames its offsets, which the norm does not see.
        kernel = ops.swapaxes(kernel, 2, 3)
        outputs = inputs
    # Each output's kernel is an image that all of them are correlated with.
    images = ops.transpose(kernel, (3, 0, 1, 2))
    margins = ((0, 0), (height - 1, height - 1), (width - 1, width - 1), (0, 0))
    found = ops.conv(ops.pad(images, margins), kernel, padding="valid", data_format="channels_last")
    spike = ops.pad(
        ops.reshape(ops.eye(outputs, dtype=kernel.dtype), (outputs, 1, 1, outputs)), margins
    )
    squared = ops.sum(ops.square(found - spike))
    # The square root has no derivative at 0, where an orthonormal start may be.
    positive = squared > 0
    root = ops.sqrt(ops.where(positive, squared, ops.ones_like(squared)))
    return ops.where(positive, root, ops.zeros_like(root))


@keras.saving.register_keras_serializable(package="dynzoo")
class Orthogonality(keras.regularizers.Regularizer):
    r"""Asks softly for orthonormal rows: adds $\gamma\,\|K \star K^T - \delta\|_F$ to the loss.

    The norm is not squared, so the pull does not fade near the goal. It is a wish and not a
    guarantee: ``dynzoo.certify`` measures what came of it. ``dynzoo.constraints.Orthonormal`` is
    the hard counterpart, for matrices.

    Args:
        gamma: weight beside the loss, at least 0.

    Raises:
        ValueError: if ``gamma`` is negative or not finite.

    Example:

    >>> import keras
    >>> from dynzoo.regularizers import Orthogonality
    >>> layer = keras.layers.Conv2D(32, 3, kernel_regularizer=Orthogonality(0.1))

    Reference: Wang et al., "Orthogonal convolutional neural networks", CVPR 2020; as used by
    E. Celledoni et al., "Dynamical systems' based neural networks", SISC 2023 (arXiv 2210.02373).
    """

    def __init__(self, gamma=0.1):
        self.gamma = number("gamma", gamma, closed="both")

    def __call__(self, x):
        return self.gamma * orthogonality_distance(x)

    def get_config(self):
        return {"gamma": self.gamma}
