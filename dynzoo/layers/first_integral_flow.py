"""Flow that keeps a nonlinear first integral, given or learned."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from dynzoo.fields.first_integral import Integral
from dynzoo.guarantee import Guarantee
from dynzoo.integrators.discrete_gradient import DiscreteGradient
from dynzoo.integrators.projected import INTEGRAL_TOLERANCE, PROJECTED
from dynzoo.layers.skew_flow import SkewFlow
from dynzoo.utils.arguments import array, integer, number, one_of

__all__ = ["FirstIntegralFlow"]


def _positive_definite(matrix):
    if matrix is None:
        return None
    a = array("matrix", matrix)
    square = a.ndim == 2 and a.shape[0] == a.shape[1] and bool(np.isfinite(a).all())
    if not (square and np.array_equal(a, a.T) and np.linalg.eigvalsh(a)[0] > 0):
        raise ValueError(
            f"`matrix` must be a symmetric positive definite matrix. Received: matrix={a.tolist()}"
        )
    return a.tolist()


@keras.saving.register_keras_serializable(package="dynzoo")
class FirstIntegralFlow(SkewFlow):
    r"""Flow along the level sets of a convex function I, kept by every step.

    $$x' = S(x)\nabla I(x), \quad S(x)^T = -S(x), \qquad
    x_+ = x + hS(\hat x)\bar\nabla I(x, x_+) \quad (discrete\ gradient)$$
    $$I(x) = \tfrac12x^TQx + b^Tx \;(quadratic), \qquad
    \text{plus } \sum_k a_k\sqrt{1 + (c_k^Tx + e_k)^2},\; a_k > 0 \;(convex)$$

    $\hat x$ is a half step of Euler. The discrete gradient is exact:
    $\bar\nabla I(x, y)^T(y - x) = I(y) - I(x)$ as an identity of formulas, so $I(x_+) = I(x)$.

    Guarantee: I is kept along the last axis by every step, for any finite weights and step
    size, to 2e-6 in float32, relative to the sum of the sizes of its terms,
    $\tfrac12\sum|x_iQ_{ij}x_j| + \sum|b_ix_i| + \sum a_k(1 + \sum|c_{ik}x_i| + |e_k|)$, at the end
    of the step where it is larger (not relative to I, whose terms may cancel). Where a step leaves
    more, because it overflows or its static number of iterations has not converged, x stays. The
    steps of a quadratic I with ``"discrete_gradient"`` are linear systems that need no iterations;
    the others converge for moderate steps. ``integral_drift`` measures what is left. I is strongly
    convex: orbits stay in a bounded set at any depth.

    Args:
        operator: linear operator A of the hidden layer of S, $V\sigma(Ax + v) + w$, for example
            ``dynzoo.operators.Dense(64)``; for images A may look at the neighbours of a pixel,
            and I is kept in each pixel.
        integral: ``"quadratic"`` or ``"convex"``.
        matrix: Q, symmetric positive definite (nested lists); ``None`` to learn
            $Q = I + LL^T$ (quadratic), or for the identity (convex).
        vector: b, a list of numbers; ``None`` to learn it.
        integral_units: columns of L, or number of ridges $c_k$.
        integrator: ``"discrete_gradient"`` (order 2), ``"relaxed_heun"`` (2 for a
            quadratic integral, else 1),
            ``"projected_heun"`` (2) or ``"projected_rk4"`` (4).
        iterations: static number of iterations of a step whose equations are not linear.
        activation: name of a monotone activation of the hidden layer.
        planes: ``None`` for a full S(x), or a number of planes (see ``SphericalFlow``).
        step_size: a positive float (dimensionless), or ``"learned"`` (inside (0, max_step)).
        steps: number of time steps, each with its own S unless ``shared``; I is one for all.
        max_step: upper end of a learned step.
        shared: use one S in all steps.
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
    >>> from dynzoo.layers import FirstIntegralFlow
    >>> layer = FirstIntegralFlow(operators.Dense(16), step_size=0.1, steps=5)
    >>> x = np.ones((2, 4), "float32")
    >>> change = layer.integral_float64(layer(x)) - layer.integral_float64(x)
    >>> bool(np.all(abs(change) < 1e-4))
    True

    Reference: R. McLachlan, G. Quispel and N. Robidoux, "Geometric integration using discrete
    gradients" (1999); in networks: E. Celledoni et al., arXiv 2210.02373. The family of integrals
    with an algebraic discrete gradient is ours.
    """

    def __init__(
        self,
        operator,
        integral="quadratic",
        matrix=None,
        vector=None,
        integral_units=4,
        integrator="discrete_gradient",
        iterations=6,
        **kwargs,
    ):
        super().__init__(operator, **kwargs)
        self.integral = one_of("integral", integral, ("quadratic", "convex"))
        self.matrix = _positive_definite(matrix)
        if vector is not None:
            vector = [
                number("vector", v, -math.inf) for v in array("vector", vector).ravel().tolist()
            ]
        self.vector = vector
        self.integral_units = integer("integral_units", integral_units)
        self.integrator = one_of("integrator", integrator, ("discrete_gradient", *PROJECTED))
        self.iterations = integer("iterations", iterations)

    def build(self, input_shape):
        super().build(input_shape)
        n, k = int(input_shape[-1]), self.integral_units
        for name in ("matrix", "vector"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(
                    f"`{name}` must have {n} rows, one a feature of the last axis. "
                    f"Received: {name} with {len(value)} rows"
                )

        def normal(place):
            return keras.initializers.RandomNormal(0.0, 1.0 / math.sqrt(n), self._seed(place))

        self.integral_weights = {}
        if self.vector is None:
            self.integral_weights["vector"] = self._weight("vector", (n,), "zeros")
        if self.integral == "convex":
            self.integral_weights["ridges"] = self._weight("ridges", (n, k), normal(6))
            self.integral_weights["offsets"] = self._weight("offsets", (k,), "zeros")
            self.integral_weights["raw_heights"] = self._weight("raw_heights", (k,), "zeros")
        elif self.matrix is None:
            self.integral_weights["factor"] = self._weight("factor", (n, k), normal(6))

    def _integral(self, n, xp) -> Integral:
        def array(values):
            values = np.asarray(values, dtype=np.float64)
            return values if xp is np else ops.convert_to_tensor(values, self._work_dtype)

        learned = {name: self._value(w, xp) for name, w in self.integral_weights.items()}
        matrix = array(np.eye(n) if self.matrix is None else self.matrix)
        if "factor" in learned:
            factor = learned["factor"]
            matrix = matrix + xp.matmul(factor, xp.transpose(factor))
        vector = learned["vector"] if self.vector is None else array(self.vector)
        if self.integral == "quadratic":
            return Integral(matrix, vector, xp)
        softplus = (lambda a: np.logaddexp(0.0, a)) if xp is np else ops.softplus
        heights = softplus(learned["raw_heights"])
        return Integral(matrix, vector, xp, learned["ridges"], learned["offsets"], heights)

    @property
    def _method(self):
        if self.integrator == "discrete_gradient":
            return DiscreteGradient(self.iterations)
        return PROJECTED[self.integrator].with_iterations(self.iterations)

    def _advance(self, i, x, step_size, xp):
        integral = self._integral(x.shape[-1], xp)
        return self._method.integral_step(self._network(i, xp), integral, x, step_size)

    def integral_float64(self, x) -> np.ndarray:
        """I(x) with the present weights, in NumPy float64, without the last axis."""
        x = np.asarray(ops.convert_to_numpy(x), dtype=np.float64)
        return self._integral(x.shape[-1], np).value(x)

    def integral_magnitude(self, x) -> np.ndarray:
        """The sum of the sizes of the terms of I(x), the unit of its rounding, in NumPy float64."""
        x = np.asarray(ops.convert_to_numpy(x), dtype=np.float64)
        return self._integral(x.shape[-1], np).magnitude(x)

    def integral_drift(self, x) -> float:
        """Largest |I(y) - I(x)| / (1 + |I(x)|) of the float64 pass over a batch."""
        before = self.integral_float64(x)
        after = self.integral_float64(self.call_float64(x))
        return float(np.max(np.abs(after - before) / (1.0 + np.abs(before))))

    def step_residual(self, x) -> float:
        """Largest |d - h S grad I(x, x + d)| over steps and batch: what the iterations leave.

        For ``"discrete_gradient"`` only, in float64; the integral itself is closed afterwards.
        """
        if self.integrator != "discrete_gradient":
            raise ValueError(
                "`step_residual` needs integrator='discrete_gradient'. "
                f"Received: integrator={self.integrator!r}"
            )
        x, worst = np.asarray(x, dtype=np.float64), 0.0
        integral = self._integral(x.shape[-1], np)
        for i, h in enumerate(self.step_sizes()):
            residual = self._method.residual(self._network(i, np), integral, x, h)
            worst = max(worst, float(residual.max()))
            x = self._advance(i, x, h, np)
        return worst

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        exact = self.integral == "quadratic" and self.integrator == "discrete_gradient"
        condition = "by construction, for any finite weights and step size; x stays where "
        condition += "a step overflows" if exact else f"{self.iterations} iterations leave more"
        condition += " or the terms of I are below 1e-30"
        return [
            Guarantee(
                "first integral kept",
                f"every step keeps the {self.integral} function I along the last axis (of every "
                "pixel); the value is the largest change in a float32 step, relative to the sum "
                "of the sizes of the terms of I at the larger end",
                value=INTEGRAL_TOLERANCE,
                condition=condition,
                source="McLachlan, Quispel and Robidoux 1999; Hairer, Lubich and Wanner, IV.4",
            )
        ]

    def get_config(self):
        return {
            **super().get_config(),
            "integral": self.integral,
            "matrix": self.matrix,
            "vector": self.vector,
            "integral_units": self.integral_units,
            "integrator": self.integrator,
            "iterations": self.iterations,
        }
