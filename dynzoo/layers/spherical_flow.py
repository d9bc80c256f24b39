"""Flow on spheres: the norm of every feature vector is kept."""

from __future__ import annotations

from typing import Any

import keras

from dynzoo.guarantee import Guarantee
from dynzoo.integrators.cayley import CAYLEY
from dynzoo.integrators.projected import PROJECTED, renormalized
from dynzoo.layers.skew_flow import SkewFlow
from dynzoo.utils.arguments import one_of

__all__ = ["SPHERE_INTEGRATORS", "SphericalFlow"]

SPHERE_INTEGRATORS: dict[str, Any] = {**PROJECTED, **CAYLEY}


def norm_guarantee(what: str, name: str = "norm kept") -> Guarantee:
    """The statement that the layers with a sphere step share."""
    return Guarantee(
        name,
        f"{what} keeps |x| of every vector along the last axis (of every pixel, hence of the "
        "whole image); the value is the rounding in float32, relative to |x|",
        value=1e-6,
        condition="by construction, for any finite weights and step size and 1e-30 <= |x| <= "
        "1e30; where an update overflows or its end has no direction, x stays",
        source="arXiv 2210.02373, sphere-preserving fields and norm-preserving steps",
    )


@keras.saving.register_keras_serializable(package="dynzoo")
class SphericalFlow(SkewFlow):
    r"""Flow of a field that is tangent to spheres, with steps that stay on them.

    $$x' = S(x)x, \quad S(x)^T = -S(x), \qquad
    x \leftarrow (I - \tfrac h2S)^{-1}(I + \tfrac h2S)x \quad (Cayley)$$

    or a Runge-Kutta step $\phi = x + d$ brought back to the sphere: by projection,
    $x \leftarrow \phi|x|/|\phi|$, or by relaxation, $x \leftarrow x + \gamma d$ with
    $\gamma = -2x^Td/|d|^2$. S(x) is a network with one hidden layer, $V\sigma(Ax + b) + c$,
    made skew; for images A may look at the neighbours of a pixel, S acts on its channels.

    Guarantee: $|x|$ along the last axis is kept by the layer, however many its steps, for any
    finite weights and step size and $10^{-30} \le |x| \le 10^{30}$, up to rounding (in float32
    1e-6, relative to |x|). Where an update overflows, or ends within a hundredth of |x| from 0 and
    so has no direction, x stays; a Cayley step stops short of a half turn by 0.03 degrees. Nothing
    is promised about distances between points: S depends on x.

    Args:
        operator: linear operator A of the hidden layer, for example ``dynzoo.operators.Dense(64)``.
        activation: name of a monotone activation of the hidden layer.
        planes: ``None`` for a full S(x) with n(n - 1)/2 free entries (n the size of the last
            axis), or a number r of rotation planes: $\sum_k\alpha_k(x)(p_kq_k^T - q_kp_k^T)$,
            with work in O(nr).
        step_size: a positive float (dimensionless), or ``"learned"`` (one trainable step a time
            step, inside (0, max_step)).
        steps: number of time steps, each with its own weights unless ``shared``.
        integrator: ``"cayley"`` (order 1), ``"cayley_midpoint"`` (2), ``"relaxed_heun"`` (2, the
            founding paper's step), ``"projected_heun"`` (2) or ``"projected_rk4"`` (4).
        max_step: upper end of a learned step.
        shared: use one set of weights in all steps (an autonomous system).
        seed: integer seed of the initialisers, or ``None``.
        kernel_initializer: Keras initializer of each kernel of the operator, or ``None`` for the
            operator's own.
        kernel_regularizer: Keras regularizer of each such kernel, or ``None``.
        kernel_constraint: Keras constraint of each such kernel, or ``None``; the guarantee is the
            same with any.

    Input and output shape: equal; (batch, features) or (batch, height, width, channels), with at
    least two features or channels.

    Raises:
        ValueError: if an argument is out of its range, naming it and what is allowed.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import SphericalFlow
    >>> layer = SphericalFlow(operators.Dense(16), integrator="cayley", steps=3)
    >>> tuple(layer(np.ones((2, 8), "float32")).shape)
    (2, 8)

    Reference: E. Celledoni et al., "Dynamical systems' based neural networks", SISC 2023
    (arXiv 2210.02373), sphere-preserving fields; the Cayley steps are standard Lie-group methods.
    """

    def __init__(self, operator, integrator="projected_heun", **kwargs):
        super().__init__(operator, **kwargs)
        self.integrator = one_of("integrator", integrator, SPHERE_INTEGRATORS)

    def _advance(self, i, x, step_size, xp):
        method = SPHERE_INTEGRATORS[self.integrator]
        return method.sphere_step(self._network(i, xp), x, step_size, xp)

    def _finish(self, start, x, xp):
        return renormalized(start, x, xp) if self.steps > 1 else x

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        return [norm_guarantee("the layer, however many its steps,")]

    def get_config(self):
        return {**super().get_config(), "integrator": self.integrator}
