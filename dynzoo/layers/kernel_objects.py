"""Keras' own initializer, regularizer and constraint objects for the kernels of a flow.

A constraint of dynzoo's is taken for its word, for the layer makes one for its operator's shape. Of
another one nothing is promised beforehand: ``constraint`` is then ``None``, as without any, and
what is stated and bounded is what holds for any weights.
"""

from __future__ import annotations

from typing import Any

import keras

from dynzoo import constraints

__all__ = ["KernelObjects", "Scaled", "check_weights_dtype"]

_WORDS = {constraints.Orthonormal: "orthonormal", constraints.SpectralNorm: "spectral_norm"}


def check_weights_dtype(layer: keras.layers.Layer) -> None:
    """A ValueError for weights in half precision.

    A norm that is bounded, or rows that are orthonormal, would be off by 1e-3 after each rounding,
    where 1e-5 is stated; and numbers that the step sizes come from would overflow.
    """
    if layer.variable_dtype in ("float16", "bfloat16"):
        raise ValueError(
            f"`dtype` of `{type(layer).__name__}` must keep weights in float32 or float64, for "
            f"which its guarantees hold: 'mixed_{layer.variable_dtype}' does, and computes in half "
            f"precision. Received: dtype={layer.variable_dtype!r}"
        )


class KernelObjects:
    """Mixed into a flow whose kernels take Keras' own objects."""

    kernel_constraint: Any = None
    kernel_initializer: Any = None
    kernel_regularizer: Any = None
    constraint: str | None

    def _take_objects(self: Any, initializer: Any, regularizer: Any) -> None:
        check_weights_dtype(self)
        self.kernel_initializer = keras.initializers.get(initializer)
        self.kernel_regularizer = keras.regularizers.get(regularizer)

    def _take_constraint(self, constraint: Any, words: tuple[str, ...], norm: float | None) -> Any:
        """Sets ``constraint``, the word that says what is bounded, and ``kernel_constraint``.

        Args:
            constraint: a word, a Keras constraint, its config, or ``None``.
            words: those that the layer knows.
            norm: the one norm that the layer's spectral constraint may allow, or ``None`` where it
                takes that of the object.

        Returns:
            The object of dynzoo's that was given for a word, whose settings count; else ``None``.

        Raises:
            ValueError: for anything else.
        """
        self.kernel_constraint = None
        if constraint is None or (isinstance(constraint, str) and constraint in words):
            self.constraint = constraint
            return None
        if isinstance(constraint, dict):
            constraint = keras.constraints.deserialize(constraint)
        if not isinstance(constraint, keras.constraints.Constraint):
            allowed = ", ".join(repr(word) for word in words)
            raise ValueError(
                f"`constraint` must be {allowed}, a Keras constraint or None. "
                f"Received: constraint={constraint!r}"
            )
        word = _WORDS.get(type(constraint))
        other = norm is not None and getattr(constraint, "max_norm", norm) != norm
        self.constraint = word if word in words and not other else None
        if self.constraint is not None:
            return constraint
        self.kernel_constraint = constraint
        return None

    def _start(self, own: Any, constraint: Any, place: int, scale: float = 1.0) -> Any:
        """The initializer of a kernel: the user's, brought within the constraint, or the layer's.

        Args:
            own: the layer's initializer, within the constraint after scaling.
            constraint: of the kernel, or ``None``.
            place: which of the layer's kernels it is; each has a seed of its own.
            scale: what the layer's initializer is multiplied by.
        """
        if self.kernel_initializer is None:
            return own if scale == 1.0 else Scaled(own, scale)
        return constraints.started(_reseeded(self.kernel_initializer, place), constraint)

    def _objects_config(self) -> dict[str, Any]:
        return {
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }

    def _constraint_config(self) -> Any:
        """The word, or the config of the object."""
        return self.constraint or keras.constraints.serialize(self.kernel_constraint)


class Scaled(keras.initializers.Initializer):
    """An initializer times a constant, so that a kernel starts inside its constraint."""

    def __init__(self, initializer: Any, scale: float):
        self.initializer = initializer
        self.scale = scale

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return self.initializer(shape, dtype=dtype) * self.scale


def _reseeded(initializer: Any, place: int) -> Any:
    """A copy for another kernel: Keras' own give the same numbers in every call."""
    if place == 0 or not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    try:
        config = initializer.get_config()
    except NotImplementedError:
        return initializer
    seed = config.get("seed")
    if "seed" not in config or not (seed is None or isinstance(seed, int)):
        return initializer
    moved = {} if seed is None else {"seed": seed + place}
    return type(initializer).from_config({**config, **moved})
