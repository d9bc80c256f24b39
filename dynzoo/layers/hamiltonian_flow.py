"""Hamiltonian flow with a symplectic discretisation: invertible, with gradients kept in bounds."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from dynzoo.fields.contractive_hamiltonian import euler_factor
from dynzoo.fields.gradient import gradient_field, gradient_field_float64
from dynzoo.fields.hamiltonian import halves, join, rotate
from dynzoo.guarantee import Guarantee
from dynzoo.integrators import splitting
from dynzoo.integrators.implicit import ImplicitMidpoint
from dynzoo.layers.phase_space import INVERSE, Invertible, PhaseSpaceFlow
from dynzoo.utils.arguments import integer, one_of

__all__ = ["HamiltonianFlow"]

_CONSTRAINT_EXCESS = 1.0 + 1e-5
_RESIDUAL, _MOST_ITERATIONS = 1e-9, 50
_JOINT = ("implicit_midpoint", "euler")


@keras.saving.register_keras_serializable(package="dynzoo")
class HamiltonianFlow(Invertible, PhaseSpaceFlow):
    r"""Hamiltonian flow $y' = J\nabla H(y)$ on the halves $y = (q, p)$ of the last axis.

    $$H = 1^T\rho(Ap + a) + 1^T\rho(Bq + b): \qquad q \leftarrow q + h A^T\sigma(Ap + a), \quad
    p \leftarrow p - h B^T\sigma(Bq + b) \quad (symplectic\ Euler)$$
    $$H = 1^T\rho(Ky + b): \qquad y^+ = y + h J K^T\sigma(K\tfrac{y + y^+}2 + b)
    \quad (implicit\ midpoint)$$

    with $\rho' = \sigma$. The second (joint) field is that of H-DNN networks; their forward Euler
    step is symplectic only if $KJK^T = 0$, so it takes the implicit midpoint rule here. The
    block-structured $K = diag(B, A)$ is the first (separable) field, whose splittings are explicit.

    Guarantee (separable): for every step size and all weights the Jacobian obeys $M^TJM = J$, so
    det M = 1, and ``inverse`` undoes the flow, both in real numbers. The rounding of a step is
    relative to the largest number on its way and grows, on the way back, by the growth of the
    inverse steps (at most B). Guarantee (joint, implicit
    midpoint): the same up to the solver's residual, which falls by $\theta < 1$ an iteration.
    Guarantee (gradients): with the ``"spectral_norm"`` constraint and slopes in [0, 1], the norm of
    a gradient changes by a factor within [1/B, B] on its way through the flow; B is
    ``gradient_factor``, about $e^{Nhm^2/2}$ for N small steps h and m = ``max_norm``:
    100 steps of 0.01 with m = 1 give B < 1.67. As $\|M^{-1}\| = \|M\|$, gradients cannot vanish
    without exploding elsewhere. ``lipschitz_bound`` is the same for the present weights.

    Args:
        operator: linear operator, for example ``dynzoo.operators.Dense(units)``; on one half of
            the features (separable), or on all (joint).
        activation: name of a monotone activation with slopes in [0, 1].
        hamiltonian: ``"separable"`` or ``"joint"``.
        integrator: ``"symplectic_euler"``, ``"leapfrog"`` or ``"yoshida4"`` (separable);
            ``"implicit_midpoint"`` or ``"euler"`` (joint; ``"euler"`` is the published H-DNN step
            and neither symplectic nor inverted); ``"default"`` is leapfrog or implicit midpoint.
        step_size: positive float (in units of the field's time), or ``"learned"``.
        steps: number of time steps, each with its own weights unless ``shared``.
        max_norm: operator norm that the constraint allows.
        max_step: largest learned step.
        constraint: ``"spectral_norm"``, or ``None`` (not with implicit midpoint): no bound of
            gradients beforehand; ``lipschitz_bound`` tells it for the present weights. So it is
            with another Keras constraint; dynzoo's ``SpectralNorm`` is taken for its word.
        iterations: solver iterations of a step of implicit midpoint; ``None`` for as many as bring
            the residual below float32 rounding (at most 50).
        shared: use the same weights in all steps (an autonomous system).
        use_bias: add a and b.
        seed: integer seed of the kernel initialisers, or ``None``.
        **kwargs: ``kernel_initializer``, a Keras initializer of each kernel, brought within the
            constraint (``None``: the operator's own), and ``kernel_regularizer``; those of
            ``keras.layers.Layer``.

    Input and output shape: equal; (batch, features) or (batch, height, width, channels), with an
    even last axis, as the operator needs.

    Raises:
        ValueError: if an argument is out of its range, naming it and what is allowed.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from dynzoo import operators
    >>> from dynzoo.layers import HamiltonianFlow
    >>> layer = HamiltonianFlow(operators.Dense(16), step_size=0.1, steps=3)
    >>> x = np.ones((2, 32), "float32")
    >>> back = ops.convert_to_numpy(layer.inverse(layer(x)))
    >>> np.allclose(back, x, atol=1e-5)
    True

    Reference: E. Celledoni et al., "Dynamical systems' based neural networks", SISC 2023
    (arXiv 2210.02373); C. Galimberti et al., "Hamiltonian deep neural networks guaranteeing
    non-vanishing gradients by design", IEEE TAC 2023 (arXiv 2105.13205).
    """

    def __init__(
        self,
        operator,
        activation="tanh",
        hamiltonian="separable",
        integrator="default",
        step_size=0.1,
        steps=1,
        max_norm=1.0,
        max_step=1.0,
        constraint="spectral_norm",
        iterations=None,
        shared=False,
        use_bias=True,
        seed=None,
        **kwargs,
    ):
        super().__init__(
            operator, activation, steps, max_norm, max_step, constraint, shared, use_bias, seed,
            **kwargs,
        )  # fmt: skip
        self.hamiltonian = one_of("hamiltonian", hamiltonian, ("separable", "joint"))
        separable = self.hamiltonian == "separable"
        allowed = tuple(splitting.names()) if separable else _JOINT
        if integrator == "default":
            integrator = "leapfrog" if separable else "implicit_midpoint"
        self.integrator = one_of("integrator", integrator, allowed)
        if iterations is not None:
            integer("iterations", iterations)
        self.iterations = iterations
        if self.integrator == "implicit_midpoint" and self.constraint is None:
            raise ValueError(
                "`constraint` must be 'spectral_norm' with implicit midpoint, whose solver "
                f"converges only for a bounded operator. Received: constraint={constraint!r}"
            )
        self._maps = 2 if separable else 1
        self._on_halves = separable
        # only separable fields are split
        self._method: Any = splitting.get(self.integrator) if separable else None
        self.step_size = self._checked_step_size(step_size)
        self._midpoint = ImplicitMidpoint(self.solver_iterations)

    # The solver splits off the middle of the Hessian's interval [0, 2 * center].
    @property
    def _center(self) -> float:
        return 0.5 * self._activation.slope_max * (self.max_norm * _CONSTRAINT_EXCESS) ** 2

    def _field(self, x, kernel, bias):
        return gradient_field(self.operator, self._activation, x, kernel, bias)

    def _field_float64(self, x, kernel, bias):
        return gradient_field_float64(self.operator, self._activation, x, kernel, bias)

    def _split(self, step, x, fields, h, xp):
        q, p = halves(x, xp)
        q, p = step(fields[0], lambda z: -fields[1](z), q, p, h)
        return join(q, p, xp)

    def _advance(self, x, fields, h, xp):
        if self.hamiltonian == "separable":
            return self._split(self._method.step, x, fields, h, xp)
        if self.integrator == "euler":
            return x + h * rotate(fields[0](x), xp)
        return self._midpoint.step(fields[0], x, h, 0.0, self._center, xp)

    def _retreat(self, y, fields, h, xp):
        if self.hamiltonian == "separable":
            return self._split(self._method.inverse_step, y, fields, h, xp)
        if self.integrator == "euler":
            raise ValueError(
                "`inverse` needs a symplectic integrator. Received: integrator='euler'"
            )
        # The rule is symmetric: a step of -h undoes it.
        return self._midpoint.step(fields[0], y, -h, 0.0, self._center, xp)

    def field_float64(self, x, step=0):
        """Right-hand side of the ODE in time step number ``step``, in NumPy float64."""
        x, fields = np.asarray(x, dtype=np.float64), self._fields_float64(step)
        if self.hamiltonian == "joint":
            return rotate(fields[0](x), np)
        q, p = halves(x, np)
        return join(fields[0](p), -fields[1](q), np)

    def _growth(self, h, norms):
        stiffness = [h * self._activation.slope_max * n**2 for n in norms]
        if self.hamiltonian == "separable":
            return self._method.convex_growth_bound(*stiffness)
        if self.integrator == "euler":
            return euler_factor(h, 0.0, 0.0, stiffness[0] / h)
        center = self._center
        radius = max(center, stiffness[0] / h - center)
        return self._midpoint.growth_bound(h, 0.0, center, radius)

    @property
    def gradient_factor(self) -> float:
        """B: gradients keep their norm within [1/B, B] on their way while the constraint holds.

        Infinite with ``constraint=None``. For ``"euler"`` only the upper end holds.
        """
        if self.constraint is None:
            return math.inf
        norms = [self.max_norm * _CONSTRAINT_EXCESS] * self._maps
        if self.step_size == "learned":
            return self._growth(self._learned_limit, norms) ** self.steps
        return self._growth(self.step_size, norms) ** self.steps

    @property
    def solver_factor(self) -> float:
        """Factor by which an iteration of implicit midpoint lessens its error (largest step)."""
        h = self._learned_limit if self.step_size == "learned" else self.step_size
        return ImplicitMidpoint.solver_factor(h, 0.0, self._center, self._center)

    @property
    def solver_iterations(self) -> int:
        """Iterations that a step of implicit midpoint takes."""
        if self.iterations is not None:
            return self.iterations
        factor = self.solver_factor
        if factor <= 0:  # rounded to 0
            return 2
        if not factor < 1:  # rounded to 1, or not a number
            return _MOST_ITERATIONS
        needed = math.log(_RESIDUAL) / math.log(factor)
        return min(max(2, math.ceil(needed)), _MOST_ITERATIONS)

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant with its present weights (float64)."""
        norms = self._norms(input_shape)
        return math.prod(
            self._growth(h, n) for h, n in zip(self.step_sizes(), norms, strict=True) if h > 0
        )

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        source = "arXiv 2210.02373; arXiv 2105.13205"
        found = []
        if self.integrator == "implicit_midpoint":
            residual = self.solver_factor**self.solver_iterations
            found.append(
                Guarantee(
                    "symplectic",
                    "M^T J M = J and the inverse hold up to the solver's residual, this share of "
                    "its first error (in the Jacobian: times the number of iterations)",
                    residual,
                    "the norm constraint; smooth activation",
                    source,
                )
            )
        elif self.integrator != "euler":
            condition = "by construction, in real numbers, for every step size and all weights"
            found = [
                Guarantee("symplectic", "M^T J M = J, hence det M = 1", None, condition, source),
                Guarantee("invertible", INVERSE, None, condition, source),
            ]
        if math.isfinite(self.gradient_factor):
            low = {"euler": "", "implicit_midpoint": " and falls at most by it, up to the residual"}
            found.append(
                Guarantee(
                    "gradient norm",
                    f"grows at most by this factor through all {self.steps} steps"
                    + low.get(self.integrator, " and falls at most by it"),
                    self.gradient_factor,
                    f"operator norms at most {self.max_norm:g}, kept by the constraint",
                    source,
                )
            )
        return found

    def get_config(self):
        return {
            **super().get_config(),
            "hamiltonian": self.hamiltonian,
            "integrator": self.integrator,
            "constraint": self._constraint_config(),
            "iterations": self.iterations,
        }
