"""Volume-preserving flow: shears in turn, with determinant one and an explicit inverse."""

from __future__ import annotations

import math

import keras
import numpy as np

from dynzoo.fields.hamiltonian import halves, join
from dynzoo.fields.volume import shear_field, shear_field_float64
from dynzoo.guarantee import Guarantee
from dynzoo.integrators import splitting
from dynzoo.layers.phase_space import INVERSE, Invertible, PhaseSpaceFlow

__all__ = ["VolumePreservingFlow"]

_CONSTRAINT_EXCESS = 1.0 + 1e-5


@keras.saving.register_keras_serializable(package="dynzoo")
class VolumePreservingFlow(Invertible, PhaseSpaceFlow):
    r"""Flow of a field without divergence on the halves (x, v) of the last axis.

    $$x' = \sigma(Av + a), \quad v' = \sigma(Bx + b): \qquad
    x \leftarrow x + h\sigma(Av + a), \quad v \leftarrow v + h\sigma(Bx + b)$$

    or, with ``second_order``, $x'' = \sigma(Bx + b)$ as $x' = v$, $v' = \sigma(Bx + b)$.

    Guarantee: for every step size and all weights the Jacobian has det M = 1, and ``inverse``
    undoes the flow, both in real numbers (every stage is a shear). The rounding of a step is
    relative to the largest number on its way and grows, on the way back, by the growth of the
    inverse steps (at most B). Guarantee (gradients): with the
    ``"spectral_norm"`` constraint and slopes in [0, 1], the norm of a gradient changes by a factor
    within [1/B, B] on its way through the flow; B is ``gradient_factor``, at most $e^{Nhm}$ for N
    steps h and m = ``max_norm`` (with ``second_order``: $e^{Nh(1 + m)/2}$): 100 steps of 0.01 with
    m = 1 give B < 2.72. ``lipschitz_bound`` is the same for the present weights.

    Args:
        operator: linear operator from one half to a space of its size, for example
            ``dynzoo.operators.Dense(features // 2)``.
        activation: name of a monotone activation with slopes in [0, 1].
        integrator: ``"symplectic_euler"`` (the published step), ``"leapfrog"`` or ``"yoshida4"``.
        second_order: x moves with v itself, so that a step has one operator.
        step_size: positive float (in units of the field's time), or ``"learned"``.
        steps: number of time steps, each with its own weights unless ``shared``.
        max_norm: operator norm that the constraint allows.
        max_step: largest learned step.
        constraint: ``"spectral_norm"`` or a ``SpectralNorm``, another Keras constraint, or
            ``None``: with the last two no bound of gradients beforehand;
            ``lipschitz_bound`` tells it for the present weights.
        shared: use the same weights in all steps (an autonomous system).
        use_bias: add a and b.
        seed: integer seed of the kernel initialisers, or ``None``.
        **kwargs: ``kernel_initializer``, a Keras initializer of each kernel, brought within the
            constraint (``None``: the operator's own), and ``kernel_regularizer``; those of
            ``keras.layers.Layer``.

    Input and output shape: equal; (batch, features) or (batch, height, width, channels), with an
    even last axis, as the operator needs.

    Raises:
        ValueError: if an argument is out of its range, or the operator changes the number of
            features, naming it and what is allowed.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from dynzoo import operators
    >>> from dynzoo.layers import VolumePreservingFlow
    >>> layer = VolumePreservingFlow(operators.Dense(16), step_size=0.1, steps=3)
    >>> x = np.ones((2, 32), "float32")
    >>> back = ops.convert_to_numpy(layer.inverse(layer(x)))
    >>> np.allclose(back, x, atol=1e-5)
    True

    Reference: E. Celledoni et al., "Dynamical systems' based neural networks", SISC 2023
    (arXiv 2210.02373), section on volume-preserving networks.
    """

    def __init__(
        self,
        operator,
        activation="tanh",
        integrator="symplectic_euler",
        second_order=False,
        step_size=0.1,
        steps=1,
        max_norm=1.0,
        max_step=1.0,
        constraint="spectral_norm",
        shared=False,
        use_bias=True,
        seed=None,
        **kwargs,
    ):
        super().__init__(
            operator, activation, steps, max_norm, max_step, constraint, shared, use_bias, seed,
            **kwargs,
        )  # fmt: skip
        self._method = splitting.get(integrator)
        self.integrator = self._method.name
        self.second_order = bool(second_order)
        self._maps = 1 if self.second_order else 2
        self.step_size = self._checked_step_size(step_size)

    def build(self, input_shape):
        super().build(input_shape)
        outputs = int(self.kernels[0].shape[-1])
        if outputs != input_shape[-1] // 2:
            raise ValueError(
                f"`operator` must have {input_shape[-1] // 2} outputs, half of the features. "
                f"Received: an operator with {outputs} outputs"
            )

    def _field(self, x, kernel, bias):
        return shear_field(self.operator, self._activation, x, kernel, bias)

    def _field_float64(self, x, kernel, bias):
        return shear_field_float64(self.operator, self._activation, x, kernel, bias)

    def _split(self, step, x, fields, h, xp):
        drift = (lambda v: v) if self.second_order else fields[0]
        x, v = step(drift, fields[-1], *halves(x, xp), h)
        return join(x, v, xp)

    def _advance(self, x, fields, h, xp):
        return self._split(self._method.step, x, fields, h, xp)

    def _retreat(self, y, fields, h, xp):
        return self._split(self._method.inverse_step, y, fields, h, xp)

    def field_float64(self, x, step=0):
        """Right-hand side of the ODE in time step number ``step``, in NumPy float64."""
        fields = self._fields_float64(step)
        x, v = halves(np.asarray(x, dtype=np.float64), np)
        return join(v if self.second_order else fields[0](v), fields[-1](x), np)

    def _growth(self, h, norms):
        sizes = [h * self._activation.slope_max * n for n in norms]
        return self._method.growth_bound(h if self.second_order else sizes[0], sizes[-1])

    @property
    def gradient_factor(self) -> float:
        """B: gradients keep their norm within [1/B, B] on their way while the constraint holds.

        Infinite with ``constraint=None``.
        """
        if self.constraint is None:
            return math.inf
        h = self._learned_limit if self.step_size == "learned" else self.step_size
        return self._growth(h, [self.max_norm * _CONSTRAINT_EXCESS] * self._maps) ** self.steps

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant with its present weights (float64)."""
        norms = self._norms(input_shape)
        return math.prod(self._growth(h, n) for h, n in zip(self.step_sizes(), norms, strict=True))

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        source = "arXiv 2210.02373"
        condition = "by construction, in real numbers, for every step size and all weights"
        found = [
            Guarantee("volume kept", "det M = 1 for the Jacobian M", 1.0, condition, source),
            Guarantee("invertible", INVERSE, None, condition, source),
        ]
        if math.isfinite(self.gradient_factor):
            found.append(
                Guarantee(
                    "gradient norm",
                    f"changes at most by this factor, up or down, through all {self.steps} steps",
                    self.gradient_factor,
                    f"operator norms at most {self.max_norm:g}, kept by the constraint",
                    source,
                )
            )
        return found

    def get_config(self):
        return {
            **super().get_config(),
            "integrator": self.integrator,
            "second_order": self.second_order,
            "constraint": self._constraint_config(),
        }
