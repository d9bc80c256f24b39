"""What the flows with a state-dependent skew matrix share: weights, step sizes, the time loop."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from dynzoo import activations
from dynzoo.fields.skew import SkewNetwork
from dynzoo.layers.kernel_objects import KernelObjects
from dynzoo.operators import base as operators
from dynzoo.utils.arguments import float64, integer, number, seed_or_none

__all__ = ["SkewFlow"]


class SkewFlow(KernelObjects, keras.layers.Layer):
    """Base of the flows of $x' = S(x)v(x)$ with S(x) skew on the last axis of x.

    A subclass gives `_advance`, one step over an array namespace (``keras.ops`` or NumPy), so
    that `call` and `call_float64` are the same formulas. Everything runs in float32 (or float64)
    whatever the policy: invariants do not survive sums in bfloat16.
    """

    def __init__(
        self,
        operator,
        activation="tanh",
        planes=None,
        step_size=1.0,
        steps=1,
        max_step=1.0,
        shared=False,
        seed=None,
        kernel_initializer=None,
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.operator = operators.get(operator)
        self._activation = activations.get(activation)
        self.activation = self._activation.name
        self.planes = None if planes is None else integer("planes", planes)
        self.step_size = step_size if step_size == "learned" else number("step_size", step_size)
        self.steps = integer("steps", steps)
        self.max_step = number("max_step", max_step)
        self.shared = bool(shared)
        self.seed = seed_or_none(seed)
        # What the flow keeps it keeps for any weights: these objects promise and break nothing.
        self._take_objects(kernel_initializer, kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)

    def _seed(self, place):
        return None if self.seed is None else self.seed + place

    def _weight(self, name, shape, initializer):
        # Without autocast: the computation is in float32 under every policy.
        return self.add_weight(shape=shape, initializer=initializer, name=name, autocast=False)

    def _kernel_weight(self, name, shape, initializer, place):
        """A kernel of the operator, with the user's objects."""
        return self.add_weight(
            shape=shape,
            initializer=self._start(initializer, self.kernel_constraint, place),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name=name,
            autocast=False,
        )

    def build(self, input_shape):
        if input_shape[-1] is None or input_shape[-1] < 2:
            raise ValueError(
                f"`{type(self).__name__}` needs at least 2 features on the last axis. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        n = int(input_shape[-1])
        self.skew_weights = []
        for i in range(1 if self.shared else self.steps):
            self.skew_weights.append(self._network_weights(i, n, input_shape))
        self.raw_steps = []
        if self.step_size == "learned":
            for i in range(self.steps):
                self.raw_steps.append(self._weight(f"raw_step_{i}", (), "zeros"))

    def _network_weights(self, i, n, input_shape):
        shape = self.operator.kernel_shape(input_shape)
        units = int(shape[-1])
        entries = n * n if self.planes is None else self.planes
        # Deviations that give S a norm of order 1 for hidden units of order 1.
        spread = 1.0 / math.sqrt(units * n) if self.planes is None else 1.0 / math.sqrt(units)
        normal = keras.initializers.RandomNormal
        weights = {
            "kernel": self._kernel_weight(
                f"kernel_{i}", shape, self.operator.initializer(self._seed(10 * i)), 10 * i
            ),
            "bias": self._weight(f"bias_{i}", (units,), "zeros"),
            "out_kernel": self._weight(
                f"out_kernel_{i}",
                (units, entries),
                normal(stddev=spread, seed=self._seed(10 * i + 1)),
            ),
            "out_bias": self._weight(
                f"out_bias_{i}",
                (entries,),
                normal(stddev=0.5 * spread, seed=self._seed(10 * i + 2)),
            ),
        }
        if self.planes is not None:
            weights["directions"] = self._weight(
                f"directions_{i}",
                (n, 2 * self.planes),
                normal(stddev=1.0 / math.sqrt(n), seed=self._seed(10 * i + 3)),
            )
        return weights

    @property
    def _work_dtype(self) -> str:
        return "float64" if self.compute_dtype == "float64" else "float32"

    def _value(self, variable, xp):
        if xp is np:
            return float64(variable)
        return ops.cast(ops.convert_to_tensor(variable), self._work_dtype)

    def _apply(self, xp):
        return self.operator.apply_float64 if xp is np else self.operator.apply

    def _sigma(self, xp):
        return self._activation.reference if xp is np else self._activation

    def _network(self, i, xp) -> SkewNetwork:
        """The map x -> S(x) of step i."""
        weights = self.skew_weights[0 if self.shared else i]
        values = {name: self._value(w, xp) for name, w in weights.items()}
        values.setdefault("directions", None)
        return SkewNetwork(apply=self._apply(xp), activation=self._sigma(xp), xp=xp, **values)

    def _step(self, i, xp):
        if self.step_size != "learned":
            return self.step_size
        raw = self._value(self.raw_steps[i], xp)
        # A logistic map keeps the step strictly inside (0, max_step).
        return self.max_step * (0.5 + 0.5 * xp.tanh(0.5 * raw))

    def step_sizes(self) -> list[float]:
        """The present step sizes, one a time step, in float64."""
        return [float(self._step(i, np)) for i in range(self.steps)]

    def _advance(self, i, x, step_size, xp):
        raise NotImplementedError

    def _finish(self, start, x, xp):
        """What a subclass has to do after the last step."""
        return x

    def _run(self, start, xp):
        x = start
        for i in range(self.steps):
            x = self._advance(i, x, self._step(i, xp), xp)
        return self._finish(start, x, xp)

    def call(self, x):
        return ops.cast(self._run(ops.cast(x, self._work_dtype), ops), self.compute_dtype)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        return self._run(np.asarray(x, dtype=np.float64), np)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "operator": keras.saving.serialize_keras_object(self.operator),
            "activation": self.activation,
            "planes": self.planes,
            "step_size": self.step_size,
            "steps": self.steps,
            "max_step": self.max_step,
            "shared": self.shared,
            "seed": self.seed,
            **self._objects_config(),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
        }
