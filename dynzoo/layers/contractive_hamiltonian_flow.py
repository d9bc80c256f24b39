"""Damped Hamiltonian flow that contracts at a known rate."""

from __future__ import annotations

import math

import keras
import numpy as np

from dynzoo.fields import contractive_hamiltonian as theory
from dynzoo.fields.gradient import gradient_field, gradient_field_float64
from dynzoo.fields.hamiltonian import complex_multiply
from dynzoo.guarantee import Guarantee
from dynzoo.integrators.implicit import ImplicitMidpoint
from dynzoo.layers.phase_space import PhaseSpaceFlow
from dynzoo.utils.arguments import integer, number, one_of

__all__ = ["ContractiveHamiltonianFlow"]

_CONSTRAINT_EXCESS = 1.0 + 1e-5
# Keeps the largest step clear of the edge, where the bound is 1 but for rounding.
_STEP_MARGIN = 1.0 - 1e-9


@keras.saving.register_keras_serializable(package="dynzoo")
class ContractiveHamiltonianFlow(PhaseSpaceFlow):
    r"""Damped Hamiltonian flow on the halves $y = (q, p)$ of the last axis.

    $$y' = (J - \gamma I)\,[K^T\sigma(Ky + b) + \kappa^2y], \qquad
    y^+ = y + h\,(J - \gamma I)\,[K^T\sigma(Ky + b) + \kappa^2y] \quad (Euler)$$

    and the same with $(y + y^+)/2$ on the right for implicit midpoint. The Hessian of the energy
    lies in $[c_1, c_2]$, $c_1 = \kappa^2$, $c_2 = \|K\|^2 + \kappa^2$.

    Guarantee (rate): with $\|K\| \le$ ``max_norm`` (kept by the constraint) and
    $\gamma = (1 + \text{margin})\,\gamma^*$, $\gamma^* = (c_2 - c_1)/(2\sqrt{c_1c_2})$, two
    solutions approach at least as $e^{-\rho t}$,
    $\rho = \gamma\frac{c_1 + c_2}2 - \sqrt{1 + \gamma^2}\frac{c_2 - c_1}2 > 0$ (``rate``).
    Guarantee (layer): every step is 1-Lipschitz, with the factor in ``step_factors``; for Euler
    when $h \le 2\rho/((1 + \gamma^2)c_1c_2)$, a sharp bound; for implicit midpoint, as computed
    with its finite number of iterations, for every h if $\frac{c_2 + c_1}{c_2 - c_1} \ge 1 +
    \sqrt{1 + \gamma^2}/\gamma$ (as with the defaults) and below ``step_limit`` otherwise. Gradients
    cannot explode; nothing keeps them from vanishing, and strong contraction makes them.

    Args:
        operator: linear operator K on all features, for example ``dynzoo.operators.Dense(units)``.
        activation: name of a monotone activation with slopes in [0, 1].
        kappa: square root of the quadratic part of the energy, positive. A small one asks for much
            damping: $\gamma^* \approx$ ``max_norm / (2 kappa)``.
        bound: how the damping follows from $c_1, c_2$: ``"sharp"`` (as above), or as in the
            published scripts, ``"paper"`` (on the boundary $\gamma^*$ less an epsilon: contracts
            nothing) or ``"paper_mnist"`` ($1/\sqrt{1 - \alpha^2}$, above it). The scripts use the
            present norms of K in place of ``max_norm`` and any step size; so do these two accept
            any step, and only ``rate`` and ``lipschitz_bound`` tell what results.
        margin: relative distance of the damping from $\gamma^*$, positive (``"sharp"`` only).
        step_size: ``"optimal"`` (the smallest factor), ``"maximal"`` (factor 1, where a largest
            step exists), a positive float up to ``step_limit`` (in units of the field's time), or
            ``"learned"``.
        steps: number of time steps, each with its own weights unless ``shared``.
        integrator: ``"euler"`` or ``"implicit_midpoint"``.
        iterations: solver iterations of a step of implicit midpoint.
        max_norm: operator norm of K that the constraint allows.
        max_step: largest learned step.
        shared: use the same weights in all steps (an autonomous system).
        use_bias: add b.
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
    >>> from dynzoo import operators
    >>> from dynzoo.layers import ContractiveHamiltonianFlow
    >>> layer = ContractiveHamiltonianFlow(operators.Dense(32), steps=3)
    >>> tuple(layer(np.ones((2, 32), "float32")).shape)
    (2, 32)
    >>> layer.rate > 0
    True

    Reference: M. Zakwan, L. Xu and G. Ferrari-Trecate, "Robust classification using contractive
    Hamiltonian neural ODEs", IEEE L-CSS 7 (2023), arXiv 2203.11805. The rate and the bounds of
    the discrete steps are derived in ``dynzoo.fields.contractive_hamiltonian``.
    """

    _on_halves = False
    _step_names = ("optimal", "maximal", "learned")

    def __init__(
        self,
        operator,
        activation="tanh",
        kappa=1.0,
        bound="sharp",
        margin=1.0,
        step_size="optimal",
        steps=1,
        integrator="euler",
        iterations=12,
        max_norm=1.0,
        max_step=1.0,
        shared=False,
        use_bias=True,
        seed=None,
        **kwargs,
    ):
        super().__init__(
            operator, activation, steps, max_norm, max_step, "spectral_norm", shared, use_bias,
            seed, **kwargs,
        )  # fmt: skip
        self.kappa = number("kappa", kappa)
        self.bound = one_of("bound", bound, ("sharp", "paper", "paper_mnist"))
        self.margin = number("margin", margin)
        self.integrator = one_of("integrator", integrator, ("euler", "implicit_midpoint"))
        self.iterations = integer("iterations", iterations)
        self._midpoint = ImplicitMidpoint(self.iterations)
        # Hessian bounds that hold for every kernel inside the constraint
        self._c1, self._c2 = self._hessian_bounds(self.max_norm * _CONSTRAINT_EXCESS)
        if self.bound == "sharp":
            self.gamma = (1.0 + self.margin) * theory.critical_damping(self._c1, self._c2)
        else:
            self.gamma = theory.published_damping(self.bound, self._c1, self._c2)
        self.step_size = self._checked_step_size(step_size)
        if self.step_size in ("optimal", "maximal") and not 0 < self._step_value() < math.inf:
            raise ValueError(
                f"`step_size` must be a positive number with bound={self.bound!r} and "
                f"integrator={self.integrator!r}, for which there is no {self.step_size} one. "
                f"Received: step_size={self.step_size!r}"
            )

    def _hessian_bounds(self, norm):
        c1 = self.kappa**2
        return c1, self._activation.slope_max * norm**2 + c1

    @property
    def _center(self) -> float:
        return 0.5 * (self._c1 + self._c2)

    @property
    def step_limit(self) -> float:
        """Largest step that the guarantee allows (infinite where every step is allowed)."""
        if self.bound != "sharp":
            return math.inf
        return self._contractive_limit

    @property
    def _contractive_limit(self) -> float:
        if self.integrator == "euler":
            limit = theory.euler_step_limit(self.gamma, self._c1, self._c2)
        else:
            radius = self._center - self._c1
            limit = self._midpoint.step_limit(self.gamma, self._center, radius)
        return limit * _STEP_MARGIN

    def _step_value(self):
        if self.step_size == "maximal":
            return self._contractive_limit
        if self.step_size != "optimal":
            return self.step_size
        best = theory.best_euler_step(self.gamma, self._c1, self._c2)
        if self.integrator == "euler" or best == 0:
            return best
        # The bound of the midpoint step has no simple minimum: the best of a fine grid.
        grid = [best * 1.02**k for k in range(-50, 200)]
        allowed = [h for h in grid if h <= self._contractive_limit]
        return min(allowed or [0.0], key=lambda h: self._factor(h, self._c1, self._c2))

    def _factor(self, h, c1, c2):
        if self.integrator == "euler":
            return theory.euler_factor(h, self.gamma, c1, c2)
        # The solver's centre stays where it is, whatever the present weights.
        radius = max(c2 - self._center, self._center - c1)
        return self._midpoint.growth_bound(h, self.gamma, self._center, radius)

    def _field(self, x, kernel, bias):
        return gradient_field(self.operator, self._activation, x, kernel, bias) + self._c1 * x

    def _field_float64(self, x, kernel, bias):
        gradient = gradient_field_float64(self.operator, self._activation, x, kernel, bias)
        return gradient + self._c1 * x

    def _advance(self, x, fields, h, xp):
        if self.integrator == "euler":
            return x + complex_multiply(fields[0](x), -h * self.gamma, h, xp)
        return self._midpoint.step(fields[0], x, h, self.gamma, self._center, xp)

    def field_float64(self, x, step=0):
        """Right-hand side of the ODE in time step number ``step``, in NumPy float64."""
        gradient = self._fields_float64(step)[0](np.asarray(x, dtype=np.float64))
        return complex_multiply(gradient, -self.gamma, 1.0, np)

    @property
    def rate(self) -> float:
        r"""$\rho$: solutions approach at least as $e^{-\rho t}$.

        With the norms of the present kernels (float64) once the layer is built, and for the
        largest norm that the constraint allows before.
        """
        c2 = self._c2
        if self.built:
            norms = self._norms(self._built_for)
            c2 = self._hessian_bounds(max(n for step in norms for n in step))[1]
        return theory.contraction_rate(self.gamma, self._c1, c2)

    def build(self, input_shape):
        super().build(input_shape)
        self._built_for = tuple(input_shape)

    def step_factors(self, input_shape) -> list[float]:
        """Lipschitz bounds of the single time steps with their present weights (float64)."""
        return [
            self._factor(h, *self._hessian_bounds(n))
            for h, (n,) in zip(self.step_sizes(), self._norms(input_shape), strict=True)
        ]

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant with its present weights (float64)."""
        # the factors are a few float64 operations each
        return math.prod(self.step_factors(input_shape)) * (1.0 + 1e-13 * self.steps)

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        constrained = f"|K| at most {self.max_norm:g}, kept by the constraint"
        found = []
        rate = theory.contraction_rate(self.gamma, self._c1, self._c2)
        if rate > 0:
            found.append(
                Guarantee(
                    "contracting field",
                    "solutions of the ODE approach at least at this rate: |x - y| <= "
                    "exp(-rate t) |x0 - y0|",
                    rate,
                    f"damping {self.gamma:.6g} above its critical value; {constrained}",
                    "arXiv 2203.11805; sharp rate of dynzoo.fields.contractive_hamiltonian",
                )
            )
        h = self._learned_limit if self.step_size == "learned" else self._step_value()
        if h <= self._contractive_limit:
            factor = 1.0 if self.step_size == "learned" else self._factor(h, self._c1, self._c2)
            limit, solver = self._contractive_limit, ""
            steps = f"step size at most {limit:.6g}" if limit < math.inf else "every step size"
            if self.integrator != "euler":
                solver = f"; holds for the {self.iterations} iterations as computed"
            found.append(
                Guarantee(
                    "1-Lipschitz",
                    "every step has at most this Lipschitz constant",
                    min(factor, 1.0),
                    f"{steps}; {constrained}{solver}",
                    "dynzoo.fields.contractive_hamiltonian",
                )
            )
        return found

    def get_config(self):
        return {
            **super().get_config(),
            "kappa": self.kappa,
            "bound": self.bound,
            "margin": self.margin,
            "integrator": self.integrator,
            "iterations": self.iterations,
        }
