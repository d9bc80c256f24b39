"""Keras' activation functions: their largest slope, and the function in NumPy float64.

For an elementwise activation the slope bounds the L2 Lipschitz constant. Functions that jump
(`hard_shrink`, `threshold`), grow without bound (`exponential`) or multiply their inputs (`glu`)
are not here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from scipy import special

__all__ = ["ACTIVATIONS", "Activation", "elu", "leaky_relu", "softmax"]

_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


class Activation(NamedTuple):
    """Upper bound of the L2 Lipschitz constant, and the float64 function."""

    slope: float
    function: Callable[[np.ndarray], np.ndarray]


def leaky_relu(x: np.ndarray, slope: Any) -> np.ndarray:
    """x where positive, slope * x elsewhere."""
    return np.where(x > 0, x, slope * x)


def elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """x where positive, alpha * (exp(x) - 1) elsewhere."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def softmax(x: np.ndarray, axis: Any = -1) -> np.ndarray:
    """Softmax over one or more axes."""
    return special.softmax(x, axis=axis)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0.0)


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x / 6.0 + 0.5, 0.0, 1.0)


def _sparse_plus(x: np.ndarray) -> np.ndarray:
    return np.where(x <= -1, 0.0, np.where(x < 1, 0.25 * (x + 1) ** 2, x))


# Suprema of the derivative, rounded up: gelu' peaks at x = sqrt(2) with 1.128904...;
# silu' at x = 2.3994 with 1.099839...; mish' at x = 1.4906 with 1.088498...;
# hard_silu' at x -> 3 with 3/2. The Jacobian diag(p) - p p^T of softmax has norm at most 1/2.
_BY_NAME: dict[str, Activation] = {
    "linear": Activation(1.0, lambda x: x),
    "relu": Activation(1.0, lambda x: np.maximum(x, 0.0)),
    "relu6": Activation(1.0, lambda x: np.clip(x, 0.0, 6.0)),
    "leaky_relu": Activation(1.0, lambda x: leaky_relu(x, 0.2)),
    "elu": Activation(1.0, elu),
    "celu": Activation(1.0, elu),
    "selu": Activation(1.7581, lambda x: _SELU_SCALE * elu(x, _SELU_ALPHA)),
    "softplus": Activation(1.0, _softplus),
    "softsign": Activation(1.0, lambda x: x / (1.0 + np.abs(x))),
    "squareplus": Activation(1.0, lambda x: 0.5 * (x + np.sqrt(x**2 + 4.0))),
    "soft_shrink": Activation(1.0, lambda x: x - np.clip(x, -0.5, 0.5)),
    "sparse_plus": Activation(1.0, _sparse_plus),
    "sparse_sigmoid": Activation(0.5, lambda x: np.clip(0.5 * (x + 1.0), 0.0, 1.0)),
    "tanh": Activation(1.0, np.tanh),
    "tanh_shrink": Activation(1.0, lambda x: x - np.tanh(x)),
    "hard_tanh": Activation(1.0, lambda x: np.clip(x, -1.0, 1.0)),
    "sigmoid": Activation(0.25, special.expit),
    "log_sigmoid": Activation(1.0, lambda x: -_softplus(-x)),
    "hard_sigmoid": Activation(1.0 / 6.0, _hard_sigmoid),
    "silu": Activation(1.09984, lambda x: x * special.expit(x)),
    "hard_silu": Activation(1.5, lambda x: x * _hard_sigmoid(x)),
    "gelu": Activation(1.12891, lambda x: x * special.ndtr(x)),
    "mish": Activation(1.0885, lambda x: x * np.tanh(_softplus(x))),
    "softmax": Activation(0.5, softmax),
}

# Keyed by the function objects themselves: a user's function of the same name is not in it.
ACTIVATIONS: dict[Any, Activation] = {
    getattr(keras.activations, name): activation for name, activation in _BY_NAME.items()
}
