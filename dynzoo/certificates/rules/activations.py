"""Keras' activation functions: their largest slope, and the function in NumPy float64.

For an elementwise activation the slope bounds the L2 Lipschitz constant. Functions that jump
(`hard_shrink`, `threshold`), grow without bound (`exponential`) or multiply their inputs (`glu`)
are not here. The functions of the same names in `keras.ops` are other objects and operations of
their own, some with other defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from scipy import special

__all__ = ["KERAS_ACTIVATIONS", "OPERATIONS", "Activation", "elu", "leaky_relu", "softmax"]

_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


class Activation(NamedTuple):
    """Upper bound of the L2 Lipschitz constant, and the float64 function.

    The slope of a function of rows, such as `log_softmax`, may depend on their length.
    """

    slope: float | Callable[[int], float]
    function: Callable[[np.ndarray], np.ndarray]

    def bound(self, shape: tuple[int | None, ...]) -> float:
        """The bound for inputs of a shape, whose last axis holds the rows."""
        return self.slope(int(shape[-1] or 1)) if callable(self.slope) else self.slope


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


def log_softmax_slope(classes: int) -> float:
    r"""$\sqrt K$, the supremum of the norm of the Jacobian $I - 1p^T$, p the softmax.

    The norm is a convex function of p, so on the simplex it is largest at a corner, p = e_k. There
    row k is 0 and the others are e_i - e_k, with Gram matrix I + 11^T of size K - 1: its largest
    eigenvalue is K. The corner is the limit of logits that move apart. One class leaves nothing.
    """
    return math.sqrt(classes) * (1 + 1e-15) if classes > 1 else 0.0


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


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
    "log_softmax": Activation(log_softmax_slope, lambda x: special.log_softmax(x, axis=-1)),
}

_GELU_TANH = Activation(1.12900, _gelu_tanh)
_ABSOLUTE = Activation(1.0, np.abs)
# 2 / sqrt(pi), rounded up.
_ERF = Activation(1.12838, special.erf)

# Keyed by the function objects themselves: a user's function of the same name is not in it.
KERAS_ACTIVATIONS: dict[Any, Activation] = {
    **{getattr(keras.activations, name): activation for name, activation in _BY_NAME.items()},
    **{
        getattr(keras.ops, name): activation
        for name, activation in _BY_NAME.items()
        if hasattr(keras.ops, name)
    },
    # Unlike the activation of this name it approximates by default.
    keras.ops.gelu: _GELU_TANH,
    keras.ops.abs: _ABSOLUTE,
    keras.ops.absolute: _ABSOLUTE,
    keras.ops.negative: Activation(1.0, np.negative),
    keras.ops.sin: Activation(1.0, np.sin),
    keras.ops.cos: Activation(1.0, np.cos),
    keras.ops.arctan: Activation(1.0, np.arctan),
    keras.ops.arcsinh: Activation(1.0, np.arcsinh),
    keras.ops.erf: _ERF,
}


def _celu(operation: Any) -> Activation | None:
    a = float(operation.alpha)
    return (
        Activation(1.0, lambda x: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0.0) / a)))
        if (a > 0)
        else None
    )


def _squareplus(operation: Any) -> Activation | None:
    b = float(operation.b)
    return Activation(1.0, lambda x: 0.5 * (x + np.sqrt(x**2 + b))) if b >= 0 else None


def _soft_shrink(operation: Any) -> Activation | None:
    t = float(operation.threshold)
    return Activation(1.0, lambda x: x - np.clip(x, -t, t)) if t >= 0 else None


def _elu(operation: Any) -> Activation:
    alpha = float(operation.alpha)
    return Activation(max(1.0, abs(alpha)), lambda x: elu(x, alpha))


def _leaky_relu(operation: Any) -> Activation:
    slope = float(operation.negative_slope)
    return Activation(max(1.0, abs(slope)), lambda x: leaky_relu(x, slope))


# Entrywise operations by the name of their class; where a setting matters, a function of the
# operation, which gives None if there is no bound.
OPERATIONS: dict[str, Activation | Callable[[Any], Activation | None]] = {
    "Relu": _BY_NAME["relu"],
    "Relu6": _BY_NAME["relu6"],
    "Sigmoid": _BY_NAME["sigmoid"],
    "SparseSigmoid": _BY_NAME["sparse_sigmoid"],
    "Softplus": _BY_NAME["softplus"],
    "Softsign": _BY_NAME["softsign"],
    "SparsePlus": _BY_NAME["sparse_plus"],
    "Silu": _BY_NAME["silu"],
    "LogSigmoid": _BY_NAME["log_sigmoid"],
    "HardSigmoid": _BY_NAME["hard_sigmoid"],
    "HardSilu": _BY_NAME["hard_silu"],
    "Selu": _BY_NAME["selu"],
    "TanhShrink": _BY_NAME["tanh_shrink"],
    "HardTanh": _BY_NAME["hard_tanh"],
    "Tanh": _BY_NAME["tanh"],
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Celu": _celu,
    "Squareplus": _squareplus,
    "SoftShrink": _soft_shrink,
    "Gelu": lambda operation: _GELU_TANH if operation.approximate else _BY_NAME["gelu"],
    "Absolute": _ABSOLUTE,
    "Negative": KERAS_ACTIVATIONS[keras.ops.negative],
    "Sin": KERAS_ACTIVATIONS[keras.ops.sin],
    "Cos": KERAS_ACTIVATIONS[keras.ops.cos],
    "Arctan": KERAS_ACTIVATIONS[keras.ops.arctan],
    "Arcsinh": KERAS_ACTIVATIONS[keras.ops.arcsinh],
    "Erf": _ERF,
}
