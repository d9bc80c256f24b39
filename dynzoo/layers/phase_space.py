"""What the flows on a state of two halves share: their weights, steps, passes and inverses."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo import activations
from dynzoo.layers.kernel_objects import KernelObjects
from dynzoo.operators import base as operators
from dynzoo.utils.arguments import float64, integer, number, number_or_word, seed_or_none

__all__ = ["INVERSE", "Invertible", "PhaseSpaceFlow"]

INVERSE = (
    "`inverse` undoes the flow, up to rounding that is relative to the largest number on the way "
    "and grows with the inverse steps"
)


class PhaseSpaceFlow(KernelObjects, keras.layers.Layer):
    """A flow on the two halves of the last axis; subclasses say what one step is.

    A step has ``_maps`` operators with one kernel and bias each, which act on the halves or on the
    whole state (``_on_halves``).
    """

    _maps = 1
    _on_halves = True
    _step_names: tuple[str, ...] = ("learned",)

    def __init__(
        self,
        operator,
        activation,
        steps,
        max_norm,
        max_step,
        constraint,
        shared,
        use_bias,
        seed,
        kernel_initializer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.operator = operators.get(operator)
        self._activation = activations.get(activation)
        self.activation = self._activation.name
        self.steps = integer("steps", steps)
        given = self._take_constraint(constraint, ("spectral_norm",), None)
        self.max_norm = number("max_norm", max_norm if given is None else given.max_norm)
        self.max_step = number("max_step", max_step)
        self._take_objects(kernel_initializer, kernel_regularizer)
        self.shared = bool(shared)
        self.use_bias = bool(use_bias)
        self.seed = seed_or_none(seed)
        self.supports_masking = True

    # --- what a subclass defines -----------------------------------------------------------

    @property
    def step_limit(self) -> float:
        """Largest step that the guarantee allows (infinite where every step is allowed)."""
        return math.inf

    def _step_value(self) -> float:
        """The fixed step that ``step_size`` names."""
        return self.step_size

    def _advance(self, x, fields, step_size, xp):
        raise NotImplementedError

    def _field(self, x, kernel, bias):
        raise NotImplementedError

    def _field_float64(self, x, kernel, bias):
        raise NotImplementedError

    # --- steps -----------------------------------------------------------------------------

    def _checked_step_size(self, step_size):
        return number_or_word("step_size", step_size, self._step_names, high=self.step_limit)

    @property
    def _learned_limit(self) -> float:
        return min(self.step_limit, self.max_step)

    def _step(self, i):
        if self.step_size == "learned":
            # A logistic map keeps the step inside its admissible interval.
            return self._learned_limit * ops.sigmoid(
                ops.cast(self.raw_steps[i], self.compute_dtype)
            )
        return self._step_value()

    def step_sizes(self) -> list[float]:
        """The present step sizes, one a time step, in float64."""
        if self.step_size != "learned":
            return [float(self._step_value())] * self.steps
        raw = [float(float64(r)) for r in self.raw_steps]
        return [self._learned_limit * 0.5 * (1 + math.tanh(0.5 * r)) for r in raw]

    # --- weights ---------------------------------------------------------------------------

    def _map_shape(self, input_shape):
        features = input_shape[-1] // 2 if self._on_halves else input_shape[-1]
        return (*input_shape[:-1], features)

    def build(self, input_shape):
        if len(input_shape) < 2 or input_shape[-1] is None or input_shape[-1] % 2:
            raise ValueError(
                f"`{type(self).__name__}` needs an even number of features on the last axis. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        map_shape = self._map_shape(input_shape)
        shape = self.operator.kernel_shape(map_shape)
        constraint = self.kernel_constraint
        if self.constraint is not None:
            constraint = self.operator.spectral_norm_constraint(self.max_norm, map_shape)
        self.kernels, self.biases, self.raw_steps = [], [], []
        for i in range(self._maps * (1 if self.shared else self.steps)):
            own = self.operator.initializer(None if self.seed is None else self.seed + i)
            self.kernels.append(
                self.add_weight(
                    shape=shape,
                    initializer=self._start(own, constraint, i, min(1.0, self.max_norm)),
                    constraint=constraint,
                    regularizer=self.kernel_regularizer,
                    name=f"kernel_{i}",
                )
            )
            if self.use_bias:
                self.biases.append(
                    self.add_weight(shape=shape[-1:], initializer="zeros", name=f"bias_{i}")
                )
        if self.step_size == "learned":
            for i in range(self.steps):
                self.raw_steps.append(
                    self.add_weight(shape=(), initializer="zeros", name=f"raw_step_{i}")
                )

    def _indices(self, i):
        return range(self._maps) if self.shared else range(i * self._maps, (i + 1) * self._maps)

    def _fields(self, i):
        """The fields of time step i as functions of tensors, one a map."""

        def make(j):
            kernel = ops.cast(self.kernels[j], self.compute_dtype)
            bias = ops.cast(self.biases[j], self.compute_dtype) if self.use_bias else None
            return lambda z: self._field(z, kernel, bias)

        return [make(j) for j in self._indices(i)]

    def _fields_float64(self, i):
        def make(j):
            kernel = float64(self.kernels[j])
            bias = float64(self.biases[j]) if self.use_bias else 0.0
            return lambda z: self._field_float64(z, kernel, bias)

        return [make(j) for j in self._indices(i)]

    def _norms(self, input_shape):
        """Float64 bounds of the operator norms, one list a time step."""
        shape = self._map_shape(input_shape)
        norms = [self.operator.norm_float64(float64(k), shape) for k in self.kernels]
        return [[norms[j] for j in self._indices(i)] for i in range(self.steps)]

    # --- passes ----------------------------------------------------------------------------

    def call(self, x):
        for i in range(self.steps):
            x = self._advance(x, self._fields(i), self._step(i), ops)
        return x

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64)
        for i, h in enumerate(self.step_sizes()):
            x = self._advance(x, self._fields_float64(i), h, np)
        return x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "operator": keras.saving.serialize_keras_object(self.operator),
            "activation": self.activation,
            "step_size": self.step_size,
            "steps": self.steps,
            "max_norm": self.max_norm,
            "max_step": self.max_step,
            "shared": self.shared,
            "use_bias": self.use_bias,
            "seed": self.seed,
            **self._objects_config(),
        }


class Invertible:
    """Adds the inverse pass to a `PhaseSpaceFlow` whose steps can be undone (``_retreat``)."""

    built: bool
    build: Any
    compute_dtype: str
    steps: int
    step_sizes: Any
    _fields: Any
    _fields_float64: Any
    _step: Any
    _retreat: Any

    def inverse(self, y):
        """The input that the flow maps to y, on the backend."""
        if not self.built:
            self.build(tuple(y.shape))
        y = ops.cast(ops.convert_to_tensor(y), self.compute_dtype)
        for i in reversed(range(self.steps)):
            y = self._retreat(y, self._fields(i), self._step(i), ops)
        return y

    def inverse_float64(self, y):
        """The same in NumPy float64."""
        y = np.asarray(y, dtype=np.float64)
        for i, h in reversed(list(enumerate(self.step_sizes()))):
            y = self._retreat(y, self._fields_float64(i), h, np)
        return y
