"""Flow with a linear invariant (total mass), and linear maps that lift and project without loss."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from dynzoo import integrators
from dynzoo.fields.mass import SUM_TOLERANCE, mass_field, sum_lift, sum_projection, tangent_step
from dynzoo.guarantee import Guarantee
from dynzoo.layers.skew_flow import SkewFlow
from dynzoo.utils.arguments import integer, number, one_of

__all__ = ["MassPreservingFlow", "SumLift", "SumProjection"]

_SOURCE = "arXiv 2210.02373, mass-preserving networks"


def _checked_weights(weights):
    if weights is None:
        return None
    weights = [number("weights", w, -math.inf) for w in np.ravel(weights).tolist()]
    if not any(weights):
        raise ValueError(f"`weights` must not all be zero. Received: weights={weights}")
    return weights


def _sized_weights(weights, size) -> np.ndarray:
    """The weights as float64 numbers, ones if there are none given."""
    if weights is None:
        return np.ones(size)
    if len(weights) != size:
        raise ValueError(
            f"`weights` must have {size} entries, one a feature of the last axis. "
            f"Received: weights with {len(weights)} entries"
        )
    return np.asarray(weights, dtype=np.float64)


@keras.saving.register_keras_serializable(package="dynzoo")
class MassPreservingFlow(SkewFlow):
    r"""Flow that keeps a weighted sum of the features.

    $$x' = S(x)c, \quad S(x) = M(x) - M(x)^T, \qquad x \leftarrow x + hS(x)c \quad (Euler)$$

    Guarantee: $c^Tx$ along the last axis is kept, for any weights and step size, because
    $c^TSc = 0$ and every Runge-Kutta method keeps linear invariants; up to rounding, which in
    float32 is below 1e-6 a step, relative to $\sum_i|c_ix_i|$ before or after the step, whichever
    is larger (a step far beyond x loses digits of x, one of nothing but rounding is not
    taken). Signs of the features are not kept.

    Args:
        operator: linear operator A of the hidden layer of M, $V\sigma(Ax + b) + v$, for example
            ``dynzoo.operators.Dense(64)``; for images A may look at the neighbours of a pixel,
            and the mass is kept in each pixel.
        weights: the c, numbers that are not all zero, one a feature; ``None`` for ones.
        integrator: ``"euler"``, ``"heun"``, ``"ssp3"`` or ``"rk4"``.
        activation: name of a monotone activation of the hidden layer.
        planes: ``None`` for a full M(x), or a number of planes (see ``SphericalFlow``).
        step_size: a positive float (dimensionless), or ``"learned"`` (inside (0, max_step)).
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
    least two features or channels.

    Raises:
        ValueError: if an argument is out of its range, naming it and what is allowed.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from dynzoo import operators
    >>> from dynzoo.layers import MassPreservingFlow
    >>> x = np.array([[0.9, 0.1, 0.0]], "float32")
    >>> y = MassPreservingFlow(operators.Dense(16), steps=3)(x)
    >>> round(float(ops.convert_to_numpy(y).sum()), 5)
    1.0

    Reference: E. Celledoni et al., "Dynamical systems' based neural networks", SISC 2023
    (arXiv 2210.02373), mass-preserving networks; general weights are ours.
    """

    def __init__(self, operator, weights=None, integrator="euler", **kwargs):
        super().__init__(operator, **kwargs)
        self.invariant_weights = _checked_weights(weights)
        self.integrator = one_of("integrator", integrator, integrators.names())

    def build(self, input_shape):
        super().build(input_shape)
        self._invariant = _sized_weights(self.invariant_weights, int(input_shape[-1]))

    def _advance(self, i, x, step_size, xp):
        c = self._invariant if xp is np else ops.convert_to_tensor(self._invariant, x.dtype)
        field = mass_field(self._network(i, xp), c, xp)
        # the increment alone, free of the rounding of (x + d) - x, and once more made tangent
        d = integrators.get(self.integrator).step(lambda d: field(x + d), 0.0 * x, step_size)
        return tangent_step(x, d, c, xp)

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        what = "the sum" if self.invariant_weights is None else "the weighted sum c^T x"
        return [
            Guarantee(
                "linear invariant kept",
                f"every step keeps {what} along the last axis (of every pixel, hence of the "
                "whole image); the value is the rounding of a float32 step, relative to "
                "sum |c_i x_i| before or after the step, whichever is larger",
                value=SUM_TOLERANCE,
                condition="by construction, for any weights and step size that do not overflow",
                source=_SOURCE,
            )
        ]

    def get_config(self):
        return {
            **super().get_config(),
            "weights": self.invariant_weights,
            "integrator": self.integrator,
        }


@keras.saving.register_keras_serializable(package="dynzoo")
class SumLift(keras.layers.Layer):
    r"""Zeros behind the last axis, $x \mapsto (x, 0)$: more features, the same sum.

    Guarantee: $c'^Ty = c^Tx$ for every c' that begins with c, exactly; an isometry.

    Args:
        units: number of output features, at least the number of input features.

    Input shape: (..., features). Output shape: (..., units).

    Raises:
        ValueError: if ``units`` is not a positive integer or below the number of features.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import SumLift
    >>> tuple(SumLift(10)(np.ones((2, 3), "float32")).shape)
    (2, 10)

    Reference: E. Celledoni et al., arXiv 2210.02373, mass-preserving networks.
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = integer("units", units)

    def build(self, input_shape):
        if input_shape[-1] is None or input_shape[-1] > self.units:
            raise ValueError(
                f"`units` must be at least the number of input features, {input_shape[-1]}. "
                f"Received: units={self.units}"
            )

    def call(self, x):
        return x if x.shape[-1] == self.units else sum_lift(x, self.units, ops)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        return sum_lift(np.asarray(x, dtype=np.float64), self.units, np)

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant: 1."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """What holds for this map."""
        return [
            Guarantee("linear invariant kept", "the sum is kept exactly", source=_SOURCE),
            Guarantee("1-Lipschitz", "zero padding keeps every distance", 1.0),
        ]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="dynzoo")
class SumProjection(keras.layers.Layer):
    r"""Fewer features, the same weighted sum: what is dropped is shared among what is kept.

    $$y = x_K + c_K\,\frac{c_D^Tx_D}{c_K^Tc_K}$$

    K the first ``units`` features and D the rest; for ones, each gets the same share.

    Guarantee: $c_K^Ty = c^Tx$ up to rounding; linear, with Lipschitz constant
    $\sqrt{1 + |c_D|^2/|c_K|^2}$.

    Args:
        units: number of output features, at most the number of input features.
        weights: the c, one number an input feature; ``None`` for ones.

    Input shape: (..., features). Output shape: (..., units).

    Raises:
        ValueError: if ``units`` is above the number of features, or the weights of the kept
            features are all zero.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from dynzoo.layers import SumProjection
    >>> y = SumProjection(2)(np.array([[1.0, 2.0, 4.0]], "float32"))
    >>> ops.convert_to_numpy(y)
    array([[3., 4.]], dtype=float32)

    Reference: E. Celledoni et al., arXiv 2210.02373, mass-preserving networks.
    """

    def __init__(self, units, weights=None, **kwargs):
        super().__init__(**kwargs)
        self.units = integer("units", units)
        self.invariant_weights = _checked_weights(weights)

    def build(self, input_shape):
        features = input_shape[-1]
        if features is None or features < self.units:
            raise ValueError(
                f"`units` must be at most the number of input features, {features}. "
                f"Received: units={self.units}"
            )
        self._invariant = _sized_weights(self.invariant_weights, int(features))
        if not self._invariant[: self.units].any():
            raise ValueError(
                "`weights` must not be zero on all kept features, which have to carry the sum. "
                f"Received: weights={self.invariant_weights}, units={self.units}"
            )

    def call(self, x):
        # Sums in bfloat16 would lose what this layer promises to keep.
        work = "float64" if self.compute_dtype == "float64" else "float32"
        c = ops.convert_to_tensor(self._invariant, work)
        return ops.cast(sum_projection(ops.cast(x, work), self.units, c, ops), self.compute_dtype)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        return sum_projection(np.asarray(x, dtype=np.float64), self.units, self._invariant, np)

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant (the matrix norm, in float64)."""
        squares = self._invariant**2
        ratio = squares[self.units :].sum() / squares[: self.units].sum()
        return float(math.sqrt(1.0 + ratio) * (1.0 + 1e-12))

    def guarantees(self) -> list[Guarantee]:
        """What holds for this map."""
        return [
            Guarantee(
                "linear invariant kept",
                "the weighted sum is kept; the value is the rounding in float32, relative to "
                "sum |c_i x_i| before or after, whichever is larger",
                value=1e-6,
                source=_SOURCE,
            )
        ]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "weights": self.invariant_weights}
