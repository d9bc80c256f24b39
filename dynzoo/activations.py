"""Activations that may stand inside a gradient flow, with the range of their slopes.

A gradient flow needs an elementwise, nondecreasing function with slope at most 1: then
A^T sigma(Ax + b) is the gradient of a convex function with a Lipschitz constant of |A|^2. MaxMin
and GroupSort do not qualify (their Jacobian is not symmetric positive semi-definite); they belong
between steps. GELU, SiLU and Mish have negative slopes and slopes above 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = ["ACTIVATIONS", "MonotoneActivation", "get", "names"]


@dataclass(frozen=True)
class MonotoneActivation:
    """An elementwise function with ``0 <= slope_min <= slope <= slope_max <= 1``.

    Args:
        name: identifier, as used in configs.
        slope_min: infimum of the slope.
        slope_max: supremum of the slope.
        function: tensor -> tensor, over ``keras.ops``.
        reference: the same in NumPy, for float64 reference passes.
    """

    name: str
    slope_min: float
    slope_max: float
    function: Callable
    reference: Callable

    def __call__(self, x):
        return self.function(x)


def _leaky(slope: float, name: str) -> MonotoneActivation:
    return MonotoneActivation(
        name,
        slope,
        1.0,
        lambda x: ops.leaky_relu(x, negative_slope=slope),
        lambda x: np.where(x > 0, x, slope * x),
    )


ACTIVATIONS = {
    a.name: a
    for a in (
        MonotoneActivation("relu", 0.0, 1.0, ops.relu, lambda x: np.maximum(x, 0)),
        _leaky(0.2, "leaky_relu"),
        # The founding paper's max(x, x/2).
        _leaky(0.5, "half_leaky_relu"),
        MonotoneActivation("linear", 1.0, 1.0, lambda x: x, lambda x: x),
        MonotoneActivation("tanh", 0.0, 1.0, ops.tanh, np.tanh),
        MonotoneActivation(
            "hard_tanh", 0.0, 1.0, lambda x: ops.clip(x, -1, 1), lambda x: np.clip(x, -1, 1)
        ),
        MonotoneActivation(
            "sigmoid", 0.0, 0.25, ops.sigmoid, lambda x: 0.5 * (1 + np.tanh(0.5 * x))
        ),
        MonotoneActivation("softplus", 0.0, 1.0, ops.softplus, lambda x: np.logaddexp(0, x)),
        MonotoneActivation("softsign", 0.0, 1.0, ops.softsign, lambda x: x / (1 + np.abs(x))),
        MonotoneActivation(
            "elu", 0.0, 1.0, ops.elu, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        ),
    )
}


def names() -> list[str]:
    """Names of the activations that a gradient flow accepts."""
    return sorted(ACTIVATIONS)


def get(identifier: Any, argument: str = "activation") -> MonotoneActivation:
    """Looks an activation up by name, by Keras function, or passes a ``MonotoneActivation`` on.

    Args:
        identifier: the name, the function or the activation.
        argument: name of the argument, for the error.

    Raises:
        ValueError: for anything whose slopes are not known to lie in [0, 1], and for another
            function under one of the table's names.
    """
    if isinstance(identifier, MonotoneActivation):
        if not 0 <= identifier.slope_min <= identifier.slope_max <= 1:
            raise ValueError(
                f"`{argument}` must have slopes in [0, 1]. Received: "
                f"slopes in [{identifier.slope_min}, {identifier.slope_max}]"
            )
        if ACTIVATIONS.get(identifier.name, identifier) is not identifier:
            raise ValueError(
                f"`{argument}` must have a name of its own: configs and certificates know another "
                f"function by that name. Received: {argument}.name={identifier.name!r}"
            )
        return identifier
    if identifier is None:
        identifier = "linear"
    if callable(identifier):
        known = {keras.activations.get(n): n for n in names() if hasattr(keras.activations, n)}
        identifier = known.get(identifier, identifier)
    if not isinstance(identifier, str) or identifier not in ACTIVATIONS:
        raise ValueError(
            f"`{argument}` must have slopes known to lie in [0, 1]: one of "
            f"{', '.join(names())}. Received: {argument}={identifier!r}"
        )
    return ACTIVATIONS[identifier]
