"""Flow of a gradient field and a sphere-preserving field in turn: a universal approximator."""

from __future__ import annotations

import keras
import numpy as np

from dynzoo import integrators
from dynzoo.fields.sphere import signed_gradient_field
from dynzoo.guarantee import Guarantee
from dynzoo.layers.skew_flow import SkewFlow
from dynzoo.layers.spherical_flow import SPHERE_INTEGRATORS, norm_guarantee
from dynzoo.utils.arguments import one_of

__all__ = ["PresnovFlow"]

# What a splitting composes: (part, share of the step).
_SPLITTINGS = {
    "lie": (("sphere", 1.0), ("gradient", 1.0)),
    "strang": (("gradient", 0.5), ("sphere", 1.0), ("gradient", 0.5)),
}


@keras.saving.register_keras_serializable(package="dynzoo")
class PresnovFlow(SkewFlow):
    r"""Flow of Presnov's decomposition, a gradient part plus a sphere-preserving part, split.

    $$x' = A^T diag(\alpha)\sigma(Ax + b) + S(x)x, \qquad S(x)^T = -S(x)$$
    $$\Phi_h = \Phi^{grad}_h \circ \Phi^{sphere}_h \;(Lie), \qquad
    \Phi_h = \Phi^{grad}_{h/2} \circ \Phi^{sphere}_h \circ \Phi^{grad}_{h/2} \;(Strang)$$

    Every smooth field is the sum of a gradient and a field tangent to spheres, and compositions
    of flows of the two kinds are dense among continuous maps on compact sets.

    Guarantee: the sphere part keeps $|x|$ for any finite weights and step size (as
    ``SphericalFlow``), so the norm changes
    by the gradient part alone: $||\Phi_h(x)| - |x|| \le h\,\max|\nabla U|$ over the stages of
    the gradient substeps. No Lipschitz bound: the signs of $\alpha$ are free.

    Args:
        operator: linear operator, for example ``dynzoo.operators.Dense(64)``; the hidden layer of
            S(x) and the potential use it with kernels of their own.
        integrator: step of the sphere part, as in ``SphericalFlow``.
        gradient_integrator: ``"euler"``, ``"heun"``, ``"ssp3"`` or ``"rk4"``.
        splitting: ``"lie"`` (order 1) or ``"strang"`` (order 2 if both integrators have it).
        activation: name of a monotone activation.
        planes: rotation planes of S(x), or ``None`` for a full matrix.
        step_size: a positive float (dimensionless), or ``"learned"``.
        steps: number of time steps, each with its own weights unless ``shared``.
        max_step: upper end of a learned step.
        shared: use one set of weights in all steps.
        seed: integer seed of the initialisers, or ``None``.
        kernel_initializer: Keras initializer of each kernel of the operator, or ``None`` for the
            operator's own.
        kernel_regularizer: Keras regularizer of each such kernel, or ``None``.
        kernel_constraint: Keras constraint of each such kernel, or ``None``; the guarantee is the
            same with any.

    Input and output shape: equal; (batch, features) or (batch, height, width, channels), with at
    least two features or channels. The norm is that of each vector along the last axis.

    Raises:
        ValueError: if an argument is out of its range, naming it and what is allowed.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import PresnovFlow
    >>> layer = PresnovFlow(operators.Dense(16), splitting="strang")
    >>> tuple(layer(np.ones((2, 8), "float32")).shape)
    (2, 8)

    Reference: E. Celledoni et al., "Dynamical systems' based neural networks", SISC 2023
    (arXiv 2210.02373), section on universal approximation; Strang splitting is ours.
    """

    def __init__(
        self,
        operator,
        integrator="projected_heun",
        gradient_integrator="euler",
        splitting="lie",
        **kwargs,
    ):
        super().__init__(operator, **kwargs)
        self.integrator = one_of("integrator", integrator, SPHERE_INTEGRATORS)
        self.gradient_integrator = one_of(
            "gradient_integrator", gradient_integrator, integrators.names()
        )
        self.splitting = one_of("splitting", splitting, _SPLITTINGS)

    def build(self, input_shape):
        super().build(input_shape)
        shape = self.operator.kernel_shape(input_shape)
        units = int(shape[-1])
        self.gradient_weights = []
        for i in range(1 if self.shared else self.steps):
            self.gradient_weights.append(
                {
                    "kernel": self._kernel_weight(
                        f"gradient_kernel_{i}",
                        shape,
                        self.operator.initializer(self._seed(10 * i + 4)),
                        10 * i + 4,
                    ),
                    "bias": self._weight(f"gradient_bias_{i}", (units,), "zeros"),
                    # both signs at the start, so that the potential has valleys and ridges
                    "scales": self._weight(
                        f"scales_{i}",
                        (units,),
                        keras.initializers.RandomNormal(0.0, 0.5, self._seed(10 * i + 5)),
                    ),
                }
            )

    def _gradient_field(self, i, xp):
        weights = self.gradient_weights[0 if self.shared else i]
        values = {name: self._value(w, xp) for name, w in weights.items()}
        adjoint = self.operator.adjoint_float64 if xp is np else self.operator.adjoint
        return signed_gradient_field(self._apply(xp), adjoint, self._sigma(xp), **values)

    def _advance(self, i, x, step_size, xp):
        sphere, gradient = SPHERE_INTEGRATORS[self.integrator], self._gradient_field(i, xp)
        for part, share in _SPLITTINGS[self.splitting]:
            if part == "sphere":
                x = sphere.sphere_step(self._network(i, xp), x, share * step_size, xp)
            else:
                x = integrators.get(self.gradient_integrator).step(gradient, x, share * step_size)
        return x

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        return [
            norm_guarantee("the sphere part of every step", "norm kept by the sphere part"),
            Guarantee(
                "norm change bounded",
                "| |x(t + h)| - |x(t)| | <= h max |grad U| over the stages of the gradient "
                "substeps, along the last axis, up to the rounding of the larger |x|",
                source="arXiv 2210.02373, decomposition in a gradient and a sphere-preserving part",
            ),
        ]

    def get_config(self):
        return {
            **super().get_config(),
            "integrator": self.integrator,
            "gradient_integrator": self.gradient_integrator,
            "splitting": self.splitting,
        }
