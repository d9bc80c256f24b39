"""1-Lipschitz layers around the flows: orthonormal maps, per-position offset, pooling."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from dynzoo import constraints, spectral
from dynzoo.constraints import ORTHONORMAL_KEPT
from dynzoo.guarantee import Guarantee
from dynzoo.layers.kernel_objects import check_weights_dtype
from dynzoo.operators.dense import matmul_channels
from dynzoo.utils.arguments import float64, integer, seed_or_none

__all__ = [
    "L2Pooling2D",
    "OrthonormalDense",
    "OrthonormalPointwise",
    "PositionOffset",
    "ScaledAveragePooling2D",
]


@keras.saving.register_keras_serializable(package="dynzoo")
class OrthonormalDense(keras.layers.Layer):
    r"""A dense map with an orthonormal matrix: $y = Wx + b$, $WW^T = I$ or $W^TW = I$.

    Guarantee: 1-Lipschitz, up to 1e-5, after every optimizer update. The kernel is orthonormal to
    1e-5 if no singular value of what the optimizer gave was below 1e-6 of the largest. With
    units >= inputs it then is an isometric embedding; with fewer units it is the projection on an
    orthonormal set, which keeps the norm of gradients on the way back.

    Args:
        units: number of outputs, a positive integer.
        use_bias: add a bias.
        projection_steps: least effort of the projection after each optimizer update, as the
            ``steps`` of ``dynzoo.constraints.Orthonormal``.
        seed: integer seed of the orthogonal initialiser, or ``None``.
        kernel_initializer: Keras initializer, whose kernel is projected; ``None`` for an orthogonal
            one.
        kernel_regularizer: Keras regularizer of the kernel, or ``None``.

    Input shape: (batch, ..., inputs). Output shape: (batch, ..., units).

    Raises:
        ValueError: if ``units`` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import OrthonormalDense
    >>> tuple(OrthonormalDense(16)(np.ones((2, 64), "float32")).shape)
    (2, 16)

    Reference: orthonormality by Newton-Schulz: Björck and Bowie (1971).
    """

    def __init__(
        self,
        units,
        use_bias=False,
        projection_steps=2,
        seed=None,
        kernel_initializer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_weights_dtype(self)
        self.units = integer("units", units)
        self.use_bias = bool(use_bias)
        self.projection_steps = integer("projection_steps", projection_steps)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.seed = seed_or_none(seed)

    def build(self, input_shape):
        constraint = constraints.Orthonormal(self.projection_steps)
        start = keras.initializers.Orthogonal(seed=self.seed)
        if self.kernel_initializer is not None:
            start = constraints.started(self.kernel_initializer, constraint)
        self.kernel = self.add_weight(
            shape=(int(input_shape[-1]), self.units),
            initializer=start,
            constraint=constraint,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, x):
        x = matmul_channels(x, ops.convert_to_tensor(self.kernel))
        return x + self.bias if self.use_bias else x

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64) @ float64(self.kernel)
        return x + float64(self.bias) if self.use_bias else x

    def lipschitz_bound(self, input_shape) -> float:
        """Spectral norm of the present kernel (float64 upper bound)."""
        return spectral.dense_norm_float64(float64(self.kernel))

    def guarantees(self) -> list[Guarantee]:
        """What holds for this layer as it is configured."""
        return [
            Guarantee(
                "1-Lipschitz",
                "the spectral norm is at most 1",
                1.0,
                "the 'orthonormal' constraint, up to 1e-5, from any finite kernel",
                "Björck and Bowie (1971)",
            ),
            Guarantee(
                "orthonormal",
                "rows or columns, whichever are fewer: singular values within this of 1",
                1e-5,
                ORTHONORMAL_KEPT,
                "Björck and Bowie (1971)",
            ),
        ]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "projection_steps": self.projection_steps,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="dynzoo")
class OrthonormalPointwise(OrthonormalDense):
    """The same orthonormal matrix on the channels of each pixel (a 1x1 convolution).

    Guarantee: as ``OrthonormalDense``, for every image size.

    Args:
        units: number of output channels, a positive integer.
        use_bias: add a bias.
        projection_steps: least effort of the projection after each optimizer update, as the
            ``steps`` of ``dynzoo.constraints.Orthonormal``.
        seed: integer seed of the orthogonal initialiser, or ``None``.
        kernel_initializer: Keras initializer, whose kernel is projected; ``None`` for an orthogonal
            one.
        kernel_regularizer: Keras regularizer of the kernel, or ``None``.

    Input shape: (batch, height, width, channels).

    Raises:
        ValueError: if ``units`` is not a positive integer or the inputs are not images.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import OrthonormalPointwise
    >>> tuple(OrthonormalPointwise(8)(np.ones((2, 4, 4, 32), "float32")).shape)
    (2, 4, 4, 8)
    """

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                f"`OrthonormalPointwise` needs NHWC images. Received: input_shape={input_shape}"
            )
        super().build(input_shape)


@keras.saving.register_keras_serializable(package="dynzoo")
class PositionOffset(keras.layers.Layer):
    """Adds a learned offset to each pixel and channel, so that a step can tell places apart.

    Guarantee: an isometry (a translation).

    Input and output shape: (batch, height, width, channels) with a known size.

    Raises:
        ValueError: if the image size is not known.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import PositionOffset
    >>> tuple(PositionOffset()(np.ones((2, 4, 4, 8), "float32")).shape)
    (2, 4, 4, 8)
    """

    def build(self, input_shape):
        if None in input_shape[1:]:
            raise ValueError(
                f"`PositionOffset` needs a known image size. Received: input_shape={input_shape}"
            )
        self.offset = self.add_weight(
            shape=tuple(input_shape[1:]), initializer="zeros", name="offset"
        )

    def call(self, x):
        return x + self.offset

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        return np.asarray(x, dtype=np.float64) + float64(self.offset)

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant: 1."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """What holds for this layer as it is configured."""
        return [Guarantee("1-Lipschitz", "a translation: every distance is kept", 1.0)]

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="dynzoo")
class ScaledAveragePooling2D(keras.layers.Layer):
    r"""Average over disjoint p x p blocks, times p: $y = \tfrac1p \sum_{block} x$.

    Guarantee: 1-Lipschitz, and norm-preserving on blockwise constant images. (The plain average
    has norm 1/p and would waste a factor p of certified radius.)

    Args:
        pool_size: side p of a block in pixels, a positive integer that divides the image size.

    Raises:
        ValueError: if the image cannot be cut into such blocks.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import ScaledAveragePooling2D
    >>> tuple(ScaledAveragePooling2D(2)(np.ones((1, 4, 4, 3), "float32")).shape)
    (1, 2, 2, 3)
    """

    def __init__(self, pool_size=2, **kwargs):
        super().__init__(**kwargs)
        self.pool_size = integer("pool_size", pool_size)

    def build(self, input_shape):
        p = self.pool_size
        if len(input_shape) != 4 or any(n is None or n % p for n in input_shape[1:3]):
            raise ValueError(
                "`ScaledAveragePooling2D` needs NHWC images with height and width divisible by "
                f"pool_size={p}. Received: input_shape={tuple(input_shape)}"
            )

    def _blocks(self, shape):
        p = self.pool_size
        return (-1, shape[1] // p, p, shape[2] // p, p, shape[3])

    def call(self, x):
        return ops.sum(ops.reshape(x, self._blocks(x.shape)), axis=(2, 4)) / self.pool_size

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64)
        return x.reshape(self._blocks(x.shape)).sum(axis=(2, 4)) / self.pool_size

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant: 1."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """What holds for this layer as it is configured."""
        return [Guarantee("1-Lipschitz", "disjoint means, each times the side of its block", 1.0)]

    def compute_output_shape(self, input_shape):
        p = self.pool_size
        return (input_shape[0], input_shape[1] // p, input_shape[2] // p, input_shape[3])

    def get_config(self):
        return {**super().get_config(), "pool_size": self.pool_size}


@keras.saving.register_keras_serializable(package="dynzoo")
class L2Pooling2D(keras.layers.Layer):
    r"""Norm of each channel over disjoint p x p blocks: $y = \sqrt{\epsilon^2 + \sum_{block} x^2}$.

    $\epsilon = 2^{-10}$ gives the root a derivative where a whole block is zero. What becomes of a
    feature no longer depends on where in the block it is, while its gradient is spread over the
    pixels in proportion to their values, and keeps its norm up to $\epsilon$.

    Guarantee: 1-Lipschitz: y is the norm of the vector $(x, \epsilon)$ of a block, and each pixel
    is in one block.

    Args:
        pool_size: side p of a block in pixels, a positive integer that divides the image size;
            ``None`` for the whole image.

    Input shape: (batch, height, width, channels) of known size. Output shape: (batch, height / p,
    width / p, channels).

    Raises:
        ValueError: if the image cannot be cut into such blocks.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import L2Pooling2D
    >>> tuple(L2Pooling2D()(np.ones((1, 4, 4, 3), "float32")).shape)
    (1, 1, 1, 3)
    """

    # A power of two, so that its square is exact in every type.
    epsilon = 2.0**-10

    def __init__(self, pool_size=None, **kwargs):
        super().__init__(**kwargs)
        self.pool_size = None if pool_size is None else integer("pool_size", pool_size)

    def build(self, input_shape):
        p = self.pool_size or 1
        if len(input_shape) != 4 or any(n is None or n % p for n in input_shape[1:3]):
            raise ValueError(
                "`L2Pooling2D` needs NHWC images of known size with height and width divisible by "
                f"pool_size={self.pool_size}. Received: input_shape={tuple(input_shape)}"
            )

    def block(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a block, for an image of this size."""
        return (height, width) if self.pool_size is None else (self.pool_size, self.pool_size)

    def _blocks(self, shape):
        down, across = self.block(shape[1], shape[2])
        return (-1, shape[1] // down, down, shape[2] // across, across, shape[3])

    def call(self, x):
        # The sum of many squares needs more digits than bfloat16 has.
        y = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        squares = ops.sum(ops.square(ops.reshape(y, self._blocks(x.shape))), axis=(2, 4))
        return ops.cast(ops.sqrt(squares + self.epsilon**2), x.dtype)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64)
        squares = np.square(x.reshape(self._blocks(x.shape))).sum(axis=(2, 4))
        return np.sqrt(squares + self.epsilon**2)

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant: 1."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """What holds for this layer as it is configured."""
        return [Guarantee("1-Lipschitz", "norms of disjoint parts", 1.0)]

    def compute_output_shape(self, input_shape):
        down, across = self.block(*input_shape[1:3])
        return (input_shape[0], input_shape[1] // down, input_shape[2] // across, input_shape[3])

    def get_config(self):
        return {**super().get_config(), "pool_size": self.pool_size}
