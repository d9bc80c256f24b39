"""Layers without trainable weights that move pixels and channels about and keep every distance."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from dynzoo.guarantee import Guarantee
from dynzoo.operators import torch_passes
from dynzoo.utils.arguments import array, integer, number

__all__ = ["BetaAbs", "ChannelPadding", "Isometry", "MaxMin", "MeanShift", "SpaceToDepth"]


class Isometry(keras.layers.Layer):
    """A layer with Lipschitz constant 1, whatever its (few) settings.

    Each class below states its bound anew beside its ``call``: ``certify`` believes no inherited
    one.
    """

    _kept = "every distance is kept"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant: 1."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """What holds for this layer as it is configured."""
        return [Guarantee("1-Lipschitz", self._kept, 1.0)]

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="dynzoo")
class MaxMin(Isometry):
    r"""Sorts pairs of channels: channel i against channel i + C/2.

    $$(a, b) \mapsto (\max(a, b), \min(a, b))$$

    Guarantee: 1-Lipschitz; the Jacobian is a permutation, so gradients keep their norm. Use it
    between gradient steps, never inside one.

    Input and output shape: equal, with an even last axis.

    Raises:
        ValueError: if the number of channels is odd.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from dynzoo.layers import MaxMin
    >>> y = MaxMin()(np.array([[1.0, 2.0, 3.0, 0.0]], "float32"))
    >>> ops.convert_to_numpy(y)
    array([[3., 2., 1., 0.]], dtype=float32)

    Reference: Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML 2019.
    """

    _kept = "the Jacobian is a permutation: gradients keep their norm"

    def build(self, input_shape):
        if input_shape[-1] is None or input_shape[-1] % 2:
            raise ValueError(
                f"`MaxMin` needs an even number of channels. Received: input_shape={input_shape}"
            )

    def _sorted(self, x):
        a, b = ops.split(x, 2, axis=-1)
        if isinstance(x, keras.KerasTensor):  # recorded for inference, where it is two passes less
            return ops.maximum(a, b), ops.minimum(a, b)
        # max = a + relu(b - a) and min = b - relu(b - a): cheaper to differentiate than max/min.
        excess = ops.relu(b - a)
        return a + excess, b - excess

    def call(self, x):
        if torch_passes.suits(x):
            return torch_passes.maxmin_shift(x, 0, ())
        return ops.concatenate(self._sorted(x), axis=-1)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        a, b = np.split(np.asarray(x, dtype=np.float64), 2, axis=-1)
        return np.concatenate([np.maximum(a, b), np.minimum(a, b)], axis=-1)

    lipschitz_bound = Isometry.lipschitz_bound


@keras.saving.register_keras_serializable(package="dynzoo")
class BetaAbs(Isometry):
    r"""Absolute value of the first share beta of the channels; the others pass.

    $$x_i \mapsto |x_i| \text{ for } i < \beta C, \qquad x_i \mapsto x_i \text{ otherwise}$$

    Guarantee: 1-Lipschitz; the Jacobian is diagonal with entries 1 and -1, so gradients keep their
    norm. With ``beta=0.5`` it is MaxMin between two rotations of channel pairs. Use it between
    gradient steps, never inside one.

    Args:
        beta: share of the channels, in (0, 1].

    Input and output shape: equal.

    Raises:
        ValueError: if ``beta`` is out of its range.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from dynzoo.layers import BetaAbs
    >>> y = BetaAbs(0.5)(np.array([[-1.0, 2.0, -3.0, 4.0]], "float32"))
    >>> ops.convert_to_numpy(y)
    array([[ 1.,  2., -3.,  4.]], dtype=float32)

    Reference: K. Hu, H. Hu and M. Fredrikson, "LipNeXt" (arXiv 2601.18513).
    """

    _kept = "the Jacobian is diagonal with entries of size one: gradients keep their norm"

    def __init__(self, beta=0.5, **kwargs):
        super().__init__(**kwargs)
        self.beta = number("beta", beta, high=1.0)

    def count(self, channels: int) -> int:
        """How many of the channels lose their sign."""
        return max(1, int(self.beta * channels))

    def call(self, x):
        k = self.count(x.shape[-1])
        return ops.concatenate([ops.abs(x[..., :k]), x[..., k:]], axis=-1)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.array(x, dtype=np.float64)
        k = self.count(x.shape[-1])
        x[..., :k] = np.abs(x[..., :k])
        return x

    lipschitz_bound = Isometry.lipschitz_bound

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


@keras.saving.register_keras_serializable(package="dynzoo")
class SpaceToDepth(Isometry):
    """Folds each block of pixels into channels: (H, W, C) to (H/b, W/b, b*b*C).

    Guarantee: a permutation of the entries, so an isometry.

    Args:
        block_size: side b of a block in pixels, a positive integer that divides H and W.

    Raises:
        ValueError: if the image cannot be cut into such blocks.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import SpaceToDepth
    >>> tuple(SpaceToDepth(2)(np.zeros((1, 32, 32, 3), "float32")).shape)
    (1, 16, 16, 12)
    """

    def __init__(self, block_size=2, **kwargs):
        super().__init__(**kwargs)
        self.block_size = integer("block_size", block_size)

    def build(self, input_shape):
        b = self.block_size
        if len(input_shape) != 4 or any(n is None or n % b for n in input_shape[1:3]):
            raise ValueError(
                "`SpaceToDepth` needs NHWC images with height and width divisible by "
                f"block_size={b}. Received: input_shape={tuple(input_shape)}"
            )

    def _fold(self, x, reshape, transpose):
        b = self.block_size
        height, width, channels = x.shape[1] // b, x.shape[2] // b, x.shape[3]
        x = reshape(x, (-1, height, b, width, b, channels))
        x = transpose(x, (0, 1, 3, 2, 4, 5))
        return reshape(x, (-1, height, width, b * b * channels))

    def call(self, x):
        return self._fold(x, ops.reshape, ops.transpose)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        return self._fold(np.asarray(x, dtype=np.float64), np.reshape, np.transpose)

    lipschitz_bound = Isometry.lipschitz_bound

    def compute_output_shape(self, input_shape):
        n, height, width, channels = input_shape
        b = self.block_size
        return (n, height // b, width // b, b * b * channels)

    def get_config(self):
        return {**super().get_config(), "block_size": self.block_size}


@keras.saving.register_keras_serializable(package="dynzoo")
class ChannelPadding(Isometry):
    """Appends zero channels up to a given width.

    Guarantee: an isometric embedding.

    Args:
        channels: number of channels after padding, not below that of the input.

    Raises:
        ValueError: if ``channels`` is not a positive integer or below the input's.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import ChannelPadding
    >>> tuple(ChannelPadding(64)(np.zeros((1, 16, 16, 12), "float32")).shape)
    (1, 16, 16, 64)
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = integer("channels", channels)

    def build(self, input_shape):
        if input_shape[-1] > self.channels:
            raise ValueError(
                f"`channels` must be at least {input_shape[-1]}, the channels of the input. "
                f"Received: channels={self.channels}"
            )

    def call(self, x):
        widths = [(0, 0)] * (len(x.shape) - 1) + [(0, self.channels - x.shape[-1])]
        return ops.pad(x, widths)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64)
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self.channels - x.shape[-1])])

    lipschitz_bound = Isometry.lipschitz_bound

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


@keras.saving.register_keras_serializable(package="dynzoo")
class MeanShift(Isometry):
    """Subtracts a constant per channel; no division, which would scale the Lipschitz constant.

    Guarantee: an isometry (a translation).

    Args:
        mean: one number a channel, in the unit of the input.

    Raises:
        ValueError: if the number of channels differs from that of the input.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from dynzoo.layers import MeanShift
    >>> y = MeanShift([0.5, 0.25])(np.ones((1, 1, 1, 2), "float32"))
    >>> ops.convert_to_numpy(y)
    array([[[[0.5 , 0.75]]]], dtype=float32)
    """

    def __init__(self, mean, **kwargs):
        super().__init__(**kwargs)
        self.mean = array("mean", mean).ravel().tolist()

    def build(self, input_shape):
        if input_shape[-1] != len(self.mean):
            raise ValueError(
                f"`mean` must have {input_shape[-1]} entries, the channels of the input. "
                f"Received: mean={self.mean}"
            )

    def call(self, x):
        return x - ops.cast(np.array(self.mean, dtype="float32"), x.dtype)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        return np.asarray(x, dtype=np.float64) - np.array(self.mean, dtype="float32")

    lipschitz_bound = Isometry.lipschitz_bound

    def get_config(self):
        return {**super().get_config(), "mean": self.mean}
