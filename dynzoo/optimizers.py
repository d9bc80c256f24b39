"""Muon on the manifold of orthonormal matrices."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

import keras
from keras import ops

from dynzoo import backend, constraints, spectral
from dynzoo.utils.arguments import number
from dynzoo.utils.tensorflow_import import serialized

__all__ = ["RiemannianMuon", "tangent"]


def tangent(matrix, gradient):
    r"""Part of a gradient that is tangent to the orthonormal matrices at ``matrix``.

    For rows: $G - \tfrac12 (GX^T + XG^T) X$; for a tall matrix the same with columns. What is cut
    off points away from the manifold and would be undone by the projection.

    Args:
        matrix: with orthonormal rows (wide) or columns (tall), or a stack (..., rows, columns).
        gradient: of the same shape.

    Returns:
        The tangent part, of the same shape.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from dynzoo.optimizers import tangent
    >>> x = np.eye(2, 4, dtype="float32")
    >>> part = ops.convert_to_numpy(tangent(x, ops.ones((2, 4))))
    >>> np.allclose(x @ part.T + part @ x.T, 0.0)  # orthonormal rows stay so, to first order
    True
    """
    # TensorFlow's own variables can be transposed, but have no axes to be swapped.
    x = ops.transpose(matrix) if len(matrix.shape) == 2 else ops.swapaxes(matrix, -1, -2)
    if matrix.shape[-2] > matrix.shape[-1]:
        s = ops.matmul(x, gradient)
        return gradient - ops.matmul(matrix, 0.5 * (s + ops.swapaxes(s, -1, -2)))
    s = ops.matmul(gradient, x)
    return gradient - ops.matmul(0.5 * (s + ops.swapaxes(s, -1, -2)), matrix)


@keras.saving.register_keras_serializable(package="dynzoo")
class RiemannianMuon(keras.optimizers.Muon):
    r"""Keras' Muon with gradients made tangent for kernels under an ``Orthonormal`` constraint.

    $$M \leftarrow \mu M + P_X(G), \quad X \leftarrow \Pi(X - \eta\,\mathrm{msign}(P_X(G)+\mu M))$$

    $P_X$ is the tangent projection, msign the polar factor, and $\Pi$ the constraint. Every
    singular direction of a kernel moves equally fast, which suits kernels whose singular values
    are all one; without $P_X$ the polar factor spends part of each step on directions that the
    constraint takes back. Other variables: as in ``keras.optimizers.Muon``, whose arguments these
    are.

    Args:
        learning_rate: as in Keras' Muon.
        stacked: update kernels of one shape and constraint together, as one stack: fewer and larger
            operations, on JAX a third of the compilation. On JAX and PyTorch, for optimizers
            without clipping, averages or accumulation; otherwise, and on TensorFlow, each by
            itself. The same step up to rounding.
        bias_lr_ratio: by what the rate of Adam is multiplied for biases, the variables with one
            axis; positive.
        **kwargs: those of Keras' Muon.

    Example:

    >>> import keras
    >>> from dynzoo.constraints import Orthonormal
    >>> from dynzoo.optimizers import RiemannianMuon
    >>> layer = keras.layers.Dense(4, kernel_constraint=Orthonormal())
    >>> model = keras.Sequential([keras.Input((8,)), layer])
    >>> model.compile(RiemannianMuon(0.05, rms_rate=None, weight_decay=None), "mse")

    Reference: K. Jordan et al., "Muon" (2024); retraction by Newton-Schulz as in ``Orthonormal``.
    """

    def __init__(self, learning_rate=0.001, stacked=False, bias_lr_ratio=1.0, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.stacked = bool(stacked)
        self.bias_lr_ratio = number("bias_lr_ratio", bias_lr_ratio)

    def build(self, var_list):
        super().build(var_list)
        # Noted here: TensorFlow hands `update_step` its own variables, without their constraint.
        self._on_manifold = [
            isinstance(v.constraint, constraints.Orthonormal) and len(v.shape) == 2
            for v in var_list
        ]

    def update_step(self, gradient, variable, learning_rate):
        if self._on_manifold[self._get_variable_index(variable)]:
            gradient = tangent(ops.convert_to_tensor(variable), gradient)
        if len(variable.shape) == 1:
            learning_rate = learning_rate * self.bias_lr_ratio
        super().update_step(gradient, variable, learning_rate)

    def zeropower_via_newtonschulz5(self, x, steps):
        """Keras' iteration, run on the Gram matrix: for long matrices many times cheaper."""
        x = x / (ops.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
        return spectral.polar_iteration(x, [(self.muon_a, self.muon_b, self.muon_c)] * steps)

    def lr_adjust(self, x):
        """Keras' factor of a step, for each matrix of a stack."""
        if self.rms_rate is None:
            return x
        return x * (math.sqrt(max(x.shape[-2:])) * self.rms_rate)

    def apply(self, grads, trainable_variables=None):
        """As in Keras, on PyTorch with kernels of one shape in a stack if ``stacked``."""
        if backend.name() == "torch" and self.built:
            given = trainable_variables
            variables = self._trainable_variables if given is None else list(given)
            self._check_variables_are_known(variables)
            stacks = self._stacks(grads, variables) if len(grads) == len(variables) else []
            if stacks:
                self._apply_in_stacks(stacks, grads, variables)
                return
        super().apply(grads, trainable_variables)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        """As in Keras, with kernels of one shape in a stack if ``stacked``."""
        variables = self._trainable_variables
        stacks = self._stacks(grads, variables) if backend.name() == "jax" else []
        if not stacks:
            return super().stateless_apply(optimizer_variables, grads, trainable_variables)
        mapping = list(zip(variables, trainable_variables, strict=True))
        mapping += list(zip(self.variables, optimizer_variables, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self._apply_in_stacks(stacks, grads, variables)
        return (
            [scope.get_current_value(v) for v in variables],
            [scope.get_current_value(v) for v in self.variables],
        )

    @property
    def separable(self) -> bool:
        """Whether a variable's step depends on its own gradient alone, and is made at once."""
        special = (self.clipnorm, self.clipvalue, self.global_clipnorm, self.loss_scale_factor)
        return not (self.use_ema or self.gradient_accumulation_steps or any(special))

    def orthogonalises(self, variable) -> bool:
        """Whether the step of a variable, when built, is a polar factor, not Adam's."""
        place = self._get_variable_index(variable)
        return self.momentums[place] is not None and self.adam_velocities[place] is None

    def slots_of(self, variable) -> list:
        """The momentum that belongs to a variable, when built, and the velocity if it has one."""
        place = self._get_variable_index(variable)
        slots = (self.momentums[place], self.adam_velocities[place])
        return [slot for slot in slots if slot is not None]

    def _stacks(self, grads, variables) -> list[list[int]]:
        """Places of the kernels that are updated together, a list for each kind of kernel."""
        if not self.stacked or backend.name() == "tensorflow" or not self.separable:
            return []
        kinds: dict[Any, list[int]] = defaultdict(list)
        for k, (variable, gradient) in enumerate(zip(variables, grads, strict=True)):
            if gradient is None or not self.orthogonalises(variable):
                continue
            constraint = serialized(variable.constraint)
            kinds[tuple(variable.shape), str(variable.dtype), json.dumps(constraint)].append(k)
        return [stack for stack in kinds.values() if len(stack) > 1]

    def _apply_in_stacks(self, stacks, grads, variables) -> None:
        together = {k for stack in stacks for k in stack}
        rate = self.learning_rate
        if self.weight_decay is not None:
            self._apply_weight_decay([variables[k] for k in sorted(together)])
        for stack in stacks:
            self._update_stack([variables[k] for k in stack], [grads[k] for k in stack], rate)
        rest = [k for k in range(len(variables)) if k not in together]
        if any(grads[k] is not None for k in rest):
            super().apply([grads[k] for k in rest], [variables[k] for k in rest])
        else:
            self.iterations.assign_add(1)

    def _update_stack(self, variables, gradients, rate) -> None:
        momenta = [self.slots_of(v)[0] for v in variables]
        constraint = variables[0].constraint
        on_manifold = self._on_manifold[self._get_variable_index(variables[0])]

        def step(kernel_momentum_gradient, constrain):
            x, m, g = kernel_momentum_gradient
            g = tangent(x, g) if on_manifold else g
            m = self.momentum * m + g
            update = g + self.momentum * m if self.nesterov else m
            update = self.zeropower_via_newtonschulz5(update, self.ns_steps)
            x = x - ops.cast(self.lr_adjust(rate * update), x.dtype)
            return x if constrain is None else constrain(x), m

        arrays = tuple(ops.stack(list(a)) for a in (variables, momenta, gradients))
        if backend.name() == "jax":
            x, m = ops.vectorized_map(lambda kernel: step(kernel, constraint), arrays)
        else:
            x, m = step(arrays, _of_each(constraint))
        for place, (variable, momentum) in enumerate(zip(variables, momenta, strict=True)):
            variable.assign(x[place])
            momentum.assign(m[place])

    def get_config(self):
        return {
            **super().get_config(),
            "stacked": self.stacked,
            "bias_lr_ratio": self.bias_lr_ratio,
        }


def _of_each(constraint):
    """A constraint, or ``None``, as a function of a stack of kernels."""
    if constraint is None:
        return None
    if type(constraint) in (constraints.Orthonormal, constraints.SpectralNorm):
        return constraint.stacked
    return lambda kernels: ops.stack([constraint(kernel) for kernel in kernels])
