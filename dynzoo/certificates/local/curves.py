"""Keras' activations as curves: range of slopes, kinks, and curvature between the kinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dynzoo.certificates.local.ops import Curve
from dynzoo.certificates.rules.activations import KERAS_ACTIVATIONS, OPERATIONS, Activation, elu

__all__ = [
    "CURVES",
    "capped_relu",
    "clipped",
    "curve_of",
    "curve_of_operation",
    "elu_curve",
    "named_curve",
]

# Smallest and largest slope, kinks, Lipschitz constant of the derivative between them: suprema,
# rounded away from 0. `tests/certificates/test_local_methods.py` compares them with differences.
CURVES: dict[str, tuple[float, float, tuple[float, ...], float]] = {
    "relu6": (0.0, 1.0, (0.0, 6.0), 0.0),
    "elu": (0.0, 1.0, (0.0,), 1.0),
    "celu": (0.0, 1.0, (0.0,), 1.0),
    "selu": (0.0, 1.7581, (0.0,), 1.7581),
    "softplus": (0.0, 1.0, (), 0.25),
    "softsign": (0.0, 1.0, (0.0,), 2.0),
    "squareplus": (0.0, 1.0, (), 0.25),
    "soft_shrink": (0.0, 1.0, (-0.5, 0.5), 0.0),
    "sparse_plus": (0.0, 1.0, (-1.0, 1.0), 0.5),
    "sparse_sigmoid": (0.0, 0.5, (-1.0, 1.0), 0.0),
    "tanh": (0.0, 1.0, (), 0.7699),
    "tanh_shrink": (0.0, 1.0, (), 0.7699),
    "hard_tanh": (0.0, 1.0, (-1.0, 1.0), 0.0),
    "sigmoid": (0.0, 0.25, (), 0.09623),
    "log_sigmoid": (0.0, 1.0, (), 0.25),
    "hard_sigmoid": (0.0, 1.0 / 6.0 + 1e-12, (-3.0, 3.0), 0.0),
    "silu": (-0.09984, 1.09984, (), 0.5),
    "hard_silu": (-0.5, 1.5, (-3.0, 3.0), 1.0 / 3.0 + 1e-12),
    "gelu": (-0.12891, 1.12891, (), 0.79789),
    "mish": (-0.1132, 1.0885, (), 0.6443),
    # no activations of Keras, but bare operations
    "gelu_tanh": (-0.12900, 1.12900, (), 0.7979),
    "abs": (-1.0, 1.0, (0.0,), 0.0),
    "negative": (-1.0, -1.0, (), 0.0),
    "sin": (-1.0, 1.0, (), 1.0),
    "cos": (-1.0, 1.0, (), 1.0),
    "arctan": (0.0, 1.0, (), 0.6496),
    "arcsinh": (0.0, 1.0, (), 0.3850),
    "erf": (0.0, 1.12838, (), 0.9680),
}

_OTHERS = {keras.ops.gelu: "gelu_tanh", keras.ops.absolute: "abs"}
_NAMES: dict[Any, str] = {
    **{
        getattr(module, name): name
        for module in (keras.ops, keras.activations)
        for name in CURVES
        if hasattr(module, name)
    },
    **_OTHERS,
}


def named_curve(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Curve | None:
    """The curve of a name in ``CURVES``, or None."""
    return Curve(function, *CURVES[name]) if name in CURVES else None


def curve_of(function: Any) -> Curve | None:
    """The curve of a Keras activation, or None where it is none or not known."""
    known: Activation | None = KERAS_ACTIVATIONS.get(function) if callable(function) else None
    if known is None or function not in _NAMES:
        return None
    return named_curve(_NAMES[function], known.function)


def curve_of_operation(operation: Any) -> Curve | None:
    """The curve of an entrywise operation of Keras, or None where it is not known."""
    name = type(operation).__name__
    if name == "Elu":
        return elu_curve(float(operation.alpha))
    known = OPERATIONS.get(name)
    if callable(known):
        known = known(operation)
    for function, own in _NAMES.items():
        # Settings of the operation may make it another function than that of the activation.
        if known is not None and KERAS_ACTIVATIONS[function] is known:
            return named_curve(own, known.function)
    return None


def capped_relu(slope: float, most: float) -> Curve:
    """min(max(x, slope * x), most)."""
    return Curve(
        lambda x: np.minimum(np.where(x > 0, x, slope * x), most),
        min(slope, 0.0),
        max(slope, 1.0),
        (0.0, most),
        0.0,
    )


def clipped(low: float, high: float) -> Curve:
    """x between two limits."""
    return Curve(lambda x: np.minimum(np.maximum(x, low), high), 0.0, 1.0, (low, high), 0.0)


def elu_curve(alpha: float) -> Curve:
    """x where positive, alpha * (exp(x) - 1) elsewhere."""
    bent = abs(alpha)
    return Curve(lambda x: elu(x, alpha), min(0.0, alpha), max(1.0, alpha), (0.0,), bent)
