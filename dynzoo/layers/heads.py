"""The last layer of a classifier, with weight vectors of length one."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from dynzoo import spectral
from dynzoo.guarantee import Guarantee
from dynzoo.layers.kernel_objects import check_weights_dtype
from dynzoo.operators.dense import matmul_channels
from dynzoo.utils.arguments import float64, integer, seed_or_none

__all__ = ["UnitRowDense"]


def _unit_columns(kernel, xp):
    """The kernel, with columns outside this range divided by their largest entry, for squares."""
    size = xp.max(xp.abs(kernel), axis=0)
    wide = size if xp is np else ops.cast(size, "float32")  # float16 has neither number
    usual = ((wide > 1e-12) & (wide < 1e15)) | (wide == 0)
    return kernel / xp.where(usual, xp.ones_like(size), size)


@keras.saving.register_keras_serializable(package="dynzoo")
class UnitRowDense(keras.layers.Layer):
    r"""Classification head whose weight vectors have length one: $z_i = w_i^Tx/\|w_i\| + b_i$.

    Guarantee: for any finite weights each logit is 1-Lipschitz; the difference of logits i and j
    is Lipschitz with the distance of their normalised vectors, which ``certify`` uses exactly. Both
    hold up to rounding. (The map to all logits at once is not 1-Lipschitz.)

    Args:
        units: number of classes, a positive integer.
        use_bias: add a bias.
        seed: integer seed of the orthogonal initialiser, or ``None``.
        kernel_initializer: Keras initializer; ``None`` for an orthogonal one.
        kernel_regularizer: Keras regularizer of the kernel before its rows are normalised, or
            ``None``.

    Input shape: (batch, features). Output shape: (batch, units).

    Raises:
        ValueError: if ``units`` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import UnitRowDense
    >>> tuple(UnitRowDense(10)(np.ones((2, 64), "float32")).shape)
    (2, 10)

    Reference: Singla, Singla and Feizi, "Improved deterministic l2 robustness on CIFAR-10 and
    CIFAR-100", ICLR 2022 (last-layer normalisation).
    """

    def __init__(
        self,
        units,
        use_bias=True,
        seed=None,
        kernel_initializer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_weights_dtype(self)
        self.units = integer("units", units)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.seed = seed_or_none(seed)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(int(input_shape[-1]), self.units),
            initializer=self.kernel_initializer or keras.initializers.Orthogonal(seed=self.seed),
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, x):
        kernel = _unit_columns(ops.convert_to_tensor(self.kernel), ops)
        squares = ops.sum(ops.square(ops.cast(kernel, "float32")), axis=0)
        kernel = kernel * ops.cast(ops.rsqrt(ops.maximum(squares, 1e-30)), kernel.dtype)
        z = matmul_channels(x, kernel)
        return z + self.bias if self.use_bias else z

    def effective_kernel(self) -> np.ndarray:
        """The normalised kernel (features, units) in float64."""
        kernel = _unit_columns(float64(self.kernel), np)
        return kernel / np.sqrt(np.maximum(np.sum(kernel**2, axis=0), 1e-30))

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        z = np.asarray(x, dtype=np.float64) @ self.effective_kernel()
        return z + float64(self.bias) if self.use_bias else z

    def lipschitz_bound(self, input_shape) -> float:
        """Spectral norm of the normalised kernel (float64 upper bound)."""
        return spectral.dense_norm_float64(self.effective_kernel())

    def guarantees(self) -> list[Guarantee]:
        """What holds for this layer as it is configured."""
        source = "Singla, Singla and Feizi, ICLR 2022"
        return [
            Guarantee(
                "1-Lipschitz logits",
                "each weight vector is of length 1 (or zero, if all its weights are)",
                1.0,
                source=source,
            )
        ]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "seed": self.seed,
        }
