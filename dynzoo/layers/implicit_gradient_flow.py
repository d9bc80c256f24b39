"""Gradient flow by implicit steps: resolvents, 1-Lipschitz for every step size."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from dynzoo.fields.gradient import gradient_field, gradient_field_float64
from dynzoo.guarantee import Guarantee
from dynzoo.integrators import ImplicitEuler
from dynzoo.layers.gradient_flow import GradientFlow
from dynzoo.utils.arguments import float64, integer, number_or_word, one_of

__all__ = ["ImplicitGradientFlow", "implicit_step_bounds"]


@keras.saving.register_keras_serializable(package="dynzoo")
class ImplicitGradientFlow(GradientFlow):
    r"""Gradient flow of a convex potential by implicit Euler steps, of any size.

    $$x' = -\nabla V(x) = -A^T\sigma(Ax + b), \qquad x \leftarrow (I + h\nabla V)^{-1}x$$

    The resolvent of $\nabla V$, which is the proximal map of V, is found by a fixed number of
    iterations from $z_0 = x$, with $L = s\,\text{max\_norm}^2$ and s the largest slope:

    $$z_{k+1} = (1 - t)z_k + t(x - h\nabla V(z_k)), \qquad t = 2/(2 + hL)$$

    Guarantee: with $\|A\| \le$ ``max_norm`` (kept by the constraint) every step is 1-Lipschitz for
    every h > 0 and every number of iterations; if $hL \le 2$ it is firmly non-expansive. What the
    iterations leave open is at most $(1 - t)^k h|\nabla V(x)|$ (``residual_float64``); the exact
    resolvent is firmly non-expansive for every h. Proof: ``dynzoo.integrators.implicit``.

    With orthonormal rows of A the resolvent of ReLU has a closed form, the explicit step of size
    $h/(1+h)$: a ``GradientFlow`` does the same for a tenth of the products. The implicit step is
    worth its iterations for operators whose rows are not orthonormal.

    Args:
        operator: linear operator A, for example ``dynzoo.operators.Dense(units)``.
        activation: name of a monotone activation with slopes in [0, 1].
        step_size: a positive float (dimensionless), or ``"learned"`` (one trainable step a time
            step, in (0, ``max_step``)).
        steps: number of time steps, each with its own kernel and bias unless ``shared``.
        iterations: iterations k a step, a positive integer.
        constraint: ``"orthonormal"`` (matrix operators) or ``"spectral_norm"``.
        max_norm: norm that the ``"spectral_norm"`` constraint allows.
        max_step: largest learned step.
        projection_steps: ``steps`` of the orthonormal constraint.
        shared: use one kernel and bias in all steps (an autonomous system).
        use_bias: add b.
        kernel_regularizer: Keras regularizer of each kernel, or ``None``.
        seed: integer seed of the kernel initialiser, or ``None``.

    Input and output shape: equal; (batch, features) or (batch, height, width, channels), as the
    operator needs.

    Raises:
        ValueError: if an argument is out of its range, naming it and what is allowed.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import ImplicitGradientFlow
    >>> layer = ImplicitGradientFlow(operators.Dense(16), step_size=20.0)
    >>> tuple(layer(np.ones((2, 32), "float32")).shape)
    (2, 32)
    >>> layer.lipschitz_bound((None, 32)) < 1.0 + 1e-4
    True

    Reference: J.-J. Moreau, "Proximité et dualité dans un espace hilbertien" (1965); R. T.
    Rockafellar, "Monotone operators and the proximal point algorithm", SIAM J. Control Optim. 14
    (1976). The bound of the truncated iteration is ours.
    """

    def __init__(
        self,
        operator,
        activation="relu",
        step_size=1.0,
        steps=1,
        iterations=10,
        constraint="default",
        max_norm=1.0,
        max_step=10.0,
        projection_steps=2,
        shared=False,
        use_bias=True,
        kernel_regularizer=None,
        seed=None,
        **kwargs,
    ):
        constraints = ("default", "orthonormal", "spectral_norm")
        super().__init__(
            operator,
            activation,
            step_size,
            steps,
            # the iterations need a bound of A: no None
            constraint=one_of("constraint", constraint, constraints),
            max_norm=max_norm,
            max_step=max_step,
            projection_steps=projection_steps,
            shared=shared,
            use_bias=use_bias,
            kernel_regularizer=kernel_regularizer,
            seed=seed,
            **kwargs,
        )
        self.iterations = integer("iterations", iterations)
        self._method = ImplicitEuler(self.iterations)
        self.integrator = self._method.name

    @property
    def step_limit(self) -> float:
        """Largest step that the guarantee allows: there is none."""
        return math.inf

    def _checked_step_size(self, step_size):
        return number_or_word("step_size", step_size, ("learned",))

    @property
    def _learned_limit(self) -> float:
        return self.max_step

    @property
    def curvature(self) -> float:
        """L, the largest curvature of the potential that the constraint allows."""
        norm = 1.0 if self.constraint == "orthonormal" else self.max_norm
        return self._activation.slope_max * norm**2

    def call(self, x):
        shape = ops.shape(x)  # sizes that TensorFlow does not know yet are tensors
        x = self.operator.flatten(x)
        for i in range(self.steps):
            j = 0 if self.shared else i
            bias = self.biases[j] if self.use_bias else None
            kernel, h = ops.convert_to_tensor(self.kernels[j]), self._step(i)
            share = self._method.share(h, self.curvature)

            def slope(z, kernel=kernel, bias=bias, scale=share * h):
                return gradient_field(self.operator, self._activation, z, kernel, bias, scale)

            x = self._method.step(slope, x, share)
        return x if len(x.shape) == len(shape) else ops.reshape(x, (-1, *shape[1:]))

    def _gradients_float64(self):
        """The step size and the gradient of the potential of each time step, in NumPy."""
        for i, h in enumerate(self.step_sizes()):
            j = 0 if self.shared else i
            kernel = float64(self.kernels[j])
            bias = float64(self.biases[j]) if self.use_bias else 0.0

            def gradient(z, kernel=kernel, bias=bias):
                return gradient_field_float64(self.operator, self._activation, z, kernel, bias)

            yield h, gradient

    def _advance_float64(self, x, h, gradient):
        share = self._method.share(h, self.curvature)
        return self._method.step(lambda z: share * h * gradient(z), x, share)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64)
        for h, gradient in self._gradients_float64():
            x = self._advance_float64(x, h, gradient)
        return x

    def residual_float64(self, x):
        r"""$|z + h\nabla V(z) - x|$ and $h|\nabla V(x)|$ of each step, arrays (steps, batch).

        The first is at most the guaranteed factor times the second.
        """
        x, found = np.asarray(x, dtype=np.float64), []
        for h, gradient in self._gradients_float64():
            z = self._advance_float64(x, h, gradient)
            defects = (z + h * gradient(z) - x, h * gradient(x))
            found.append([np.linalg.norm(d.reshape(len(x), -1), axis=1) for d in defects])
            x = z
        return tuple(np.stack(part) for part in zip(*found, strict=True))

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound for the iterations as they run, with the present weights (float64)."""
        return math.prod(implicit_step_bounds(self, input_shape))

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        source = "Moreau 1965; Rockafellar 1976; the truncated iteration: dynzoo"
        norm = 1.0 if self.constraint == "orthonormal" else self.max_norm
        kept = f"|A| <= {norm:g}, up to 1e-5, by the {self.constraint!r} constraint"
        largest = self.max_step if self.step_size == "learned" else self.step_size
        left = (1.0 - self._method.share(largest, self.curvature)) ** self.iterations
        found = [
            Guarantee(
                "gradient field",
                "the right-hand side is the gradient of a convex potential with slopes in [0, 1]",
                condition=f"activation {self.activation!r}, the operator's exact adjoint",
                source="arXiv 2210.02373",
            ),
            Guarantee(
                "1-Lipschitz",
                "every step is non-expansive for every step size, wherever its iterations stop",
                1.0,
                kept,
                source,
            ),
            Guarantee(
                "resolvent residual",
                f"|z + h grad V(z) - x| <= this times h |grad V(x)| after {self.iterations} "
                "iterations; the distance to the exact resolvent is no larger",
                left,
                f"{kept}, step <= {largest:g}",
                source,
            ),
        ]
        if largest * self.curvature <= 2.0:
            firm = Guarantee(
                "firmly non-expansive",
                "|2 z - x| is a non-expansive function of x in every step, "
                "wherever its iterations stop",
                1.0,
                f"{kept}, step <= {2.0 / self.curvature:g}",
                source,
            )
            found.append(firm)
        return found

    def get_config(self):
        config = {**super().get_config(), "iterations": self.iterations}
        del config["integrator"], config["direction"]
        return config


def implicit_step_bounds(layer, input_shape, norms=None) -> list[float]:
    """A bound for each time step; ``norms`` are those of the kernels, where they are known."""
    slopes = (layer._activation.slope_min, layer._activation.slope_max)
    kernels = [float64(k) for k in layer.kernels]
    if norms is None:
        norms = [layer.operator.norm_float64(k, input_shape) for k in kernels]
    bounds = []
    for i, h in enumerate(layer.step_sizes()):
        j = 0 if layer.shared else i
        smallest = 0.0
        if slopes[0] > 0:
            smallest = layer.operator.min_singular_value_float64(kernels[j], input_shape)
        curvatures = (slopes[0] * smallest**2, slopes[1] * norms[j] ** 2)
        bounds.append(layer._method.growth_bound(h, layer.curvature, *curvatures))
    return bounds
