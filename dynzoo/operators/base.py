"""What a linear operator A is to a layer: its action, its exact adjoint, and its spectrum."""

from __future__ import annotations

import abc

import keras
import numpy as np

from dynzoo import constraints, spectral
from dynzoo.utils.arguments import integer

__all__ = ["Operator", "get"]


class Operator(abc.ABC):
    """A linear map ``A`` with a kernel, applied to batches; the kernel is owned by the layer.

    Subclasses are small serialisable descriptions without state. ``input_shape`` is a Keras shape
    with the batch axis first.

    Example:

    >>> from dynzoo import operators
    >>> operators.Conv(8, kernel_size=3).kernel_shape((None, 32, 32, 4))
    (3, 3, 4, 8)
    """

    @abc.abstractmethod
    def kernel_shape(self, input_shape) -> tuple[int, ...]:
        """Shape of the kernel; its last axis is the number of outputs."""

    @abc.abstractmethod
    def apply(self, x, kernel):
        """``A x`` over ``keras.ops``."""

    @abc.abstractmethod
    def adjoint(self, y, kernel):
        """``A^T y`` over ``keras.ops``: <Ax, y> = <x, A^T y>."""

    def flatten(self, x):
        """``x`` without the axes that A does not couple: fewer, longer rows for the same A."""
        return x

    @abc.abstractmethod
    def apply_float64(self, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        """``A x`` in NumPy."""

    @abc.abstractmethod
    def adjoint_float64(self, y: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        """``A^T y`` in NumPy."""

    @abc.abstractmethod
    def norm_float64(self, kernel: np.ndarray, input_shape) -> float:
        """Upper bound of the operator norm of A on inputs of this shape."""

    def min_singular_value_float64(self, kernel: np.ndarray, input_shape) -> float:
        """Lower bound of inf |Ax| / |x| (0 where A is not injective, or nothing is known)."""
        return 0.0

    @abc.abstractmethod
    def spectral_norm_constraint(self, max_norm: float, input_shape):
        """Constraint that keeps |A| at most ``max_norm``."""

    def orthonormal_constraint(self, steps: int):
        """Constraint that keeps the shorter side of A orthonormal."""
        raise ValueError(
            f'`constraint` must be "spectral_norm" or None for {type(self).__name__}. '
            "Received: constraint='orthonormal'"
        )

    def initializer(self, seed=None):
        """Orthonormal start, so that the constraint holds before the first update."""
        return keras.initializers.Orthogonal(gain=1.0, seed=seed)

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class MatrixOperator(Operator):
    """Shared by the operators whose kernel is one matrix (inputs, outputs) on the last axis.

    Args:
        units: number of outputs, a positive integer.

    Example:

    >>> from dynzoo import operators
    >>> operators.Dense(8).kernel_shape((None, 4))
    (4, 8)
    """

    def __init__(self, units):
        self.units = integer("units", units)

    def kernel_shape(self, input_shape):
        return (int(input_shape[-1]), self.units)

    def norm_float64(self, kernel, input_shape):
        return spectral.dense_norm_float64(kernel)

    def min_singular_value_float64(self, kernel, input_shape):
        if kernel.shape[0] > kernel.shape[1]:
            return 0.0
        return spectral.dense_min_singular_value_float64(kernel)

    def spectral_norm_constraint(self, max_norm, input_shape):
        return constraints.SpectralNorm(max_norm)

    def orthonormal_constraint(self, steps):
        return constraints.Orthonormal(steps)

    def get_config(self):
        return {"units": self.units}


def get(identifier) -> Operator:
    """An operator from itself or from its serialised form.

    Args:
        identifier: an ``Operator``, or what ``keras.saving.serialize_keras_object`` made of one.

    Raises:
        ValueError: for anything else.

    Example:

    >>> from dynzoo import operators
    >>> operator = operators.Dense(8)
    >>> operators.get(operator) is operator
    True
    """
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if not isinstance(identifier, Operator):
        raise ValueError(
            "`operator` must be a dynzoo operator such as dynzoo.operators.Dense(units). "
            f"Received: operator={identifier!r}"
        )
    return identifier
