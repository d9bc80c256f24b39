"""Activation functions of PyTorch and ONNX as Keras layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dynzoo.convert.network import Network, Tensor

__all__ = ["PLAIN", "celu", "clip", "elu", "gelu", "leaky_relu", "prelu", "softmax", "softplus"]

kl = keras.layers

# Functions without settings, by the name that Keras gives them.
_NONNEGATIVE = {"relu", "relu6", "sigmoid", "hard_sigmoid"}


def _named(name: str) -> Callable[[Network, Tensor], Tensor]:
    def apply(net: Network, x: Tensor) -> Tensor:
        if name == "relu":
            return net.entrywise(x, kl.ReLU, True)
        return net.entrywise(x, kl.Activation, name in _NONNEGATIVE, activation=name)

    return apply


PLAIN: dict[str, Callable[[Network, Tensor], Tensor]] = {
    name: _named(name)
    for name in (
        "relu relu6 sigmoid tanh silu mish selu softsign log_sigmoid hard_sigmoid hard_silu "
        "tanh_shrink"
    ).split()
}


def leaky_relu(net: Network, x: Tensor, slope: float) -> Tensor:
    """x where positive, slope * x elsewhere."""
    if not slope >= 0:  # Keras' layer takes no other
        return prelu(net, x, np.array([slope]))
    return net.entrywise(x, kl.LeakyReLU, negative_slope=float(slope))


def elu(net: Network, x: Tensor, alpha: float) -> Tensor:
    """x where positive, alpha * (exp(x) - 1) elsewhere."""
    return net.entrywise(x, kl.ELU, alpha=float(alpha))


def celu(net: Network, x: Tensor, alpha: float) -> Tensor:
    """x where positive, alpha * (exp(x / alpha) - 1) elsewhere."""
    if alpha != 1:
        raise net.refuse(f"only alpha=1 is known; it is {alpha}.")
    return net.entrywise(x, kl.Activation, activation="celu")


def softplus(net: Network, x: Tensor, beta: float = 1.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta."""
    if beta == 1:
        return net.entrywise(x, kl.Activation, True, activation="softplus")
    inner = net.scale_and_shift(x, beta, 0.0)
    return net.scale_and_shift(softplus(net, inner), 1 / beta, 0.0)


def gelu(net: Network, x: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution function, or its approximation by tanh."""
    if approximate == "none":
        return net.entrywise(x, kl.Activation, activation="gelu")
    y = keras.ops.gelu(x.keras, approximate=True)
    return Tensor(y, x.axes, x.order)


def clip(net: Network, x: Tensor, low: float, high: float) -> Tensor:
    """Between two numbers."""
    if not low <= high:
        raise net.refuse(f"its limits are in the wrong order: {low} and {high}.")
    if low == 0 and high == np.inf:
        return PLAIN["relu"](net, x)
    if low == 0:
        return net.entrywise(x, kl.ReLU, True, max_value=float(high))
    return Tensor(keras.ops.clip(x.keras, float(low), float(high)), x.axes, x.order, low >= 0)


def prelu(net: Network, x: Tensor, slopes: np.ndarray) -> Tensor:
    """x where positive, elsewhere x times one slope or one for each channel."""
    slopes = np.asarray(slopes, np.float64).ravel()
    if x.rank > 2:
        x = net.image(x)
    channels = int(x.keras.shape[-1])
    if len(slopes) not in (1, channels):
        raise net.refuse(f"it has {len(slopes)} slopes for {channels} channels.")
    slopes = np.broadcast_to(slopes, channels)
    if x.order is not None:
        slopes = slopes[np.argsort(x.order)]
    shared = list(range(1, x.rank - 1))
    alpha = slopes.reshape((1,) * len(shared) + (channels,))
    y = net.layer(kl.PReLU, x.keras, [alpha], shared_axes=shared or None)
    return Tensor(y, x.axes, x.order)


def softmax(net: Network, x: Tensor, axis: Any, logarithm: bool = False) -> Tensor:
    """Softmax, or its logarithm, along one of their axes."""
    if axis is None:
        axis = 1
    place = x.axes[net.axis(x, axis) - 1]
    if not logarithm:
        return net.entrywise(x, kl.Softmax, True, axis=place)
    if place != len(x.keras.shape) - 1:
        raise net.refuse("only the logarithm of a softmax over the channels is known.")
    return net.entrywise(x, kl.Activation, activation="log_softmax")
