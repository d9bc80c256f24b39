"""Gradient flow of a log-sum-exp over learned keys: attention with a convex potential."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from dynzoo import constraints
from dynzoo.fields.log_sum_exp import (
    curvature_float64,
    softmax_gradient,
    softmax_gradient_float64,
)
from dynzoo.guarantee import Guarantee
from dynzoo.layers.kernel_objects import KernelObjects
from dynzoo.utils.arguments import float64, integer, number, number_or_word, seed_or_none

__all__ = ["SoftmaxGradientFlow", "softmax_step_bounds"]


@keras.saving.register_keras_serializable(package="dynzoo")
class SoftmaxGradientFlow(KernelObjects, keras.layers.Layer):
    r"""Gradient flow whose potential is a log-sum-exp over learned keys: attention to them.

    $$x' = -K softmax(\beta K^Tx + b) = -\nabla\tfrac1\beta\log\sum_i\exp(\beta k_i^Tx + b_i)$$
    $$x \leftarrow x - hK softmax(\beta K^Tx + b)$$

    Each token (or pixel, or vector) attends to the columns of K and moves away from those it
    is most like. With -K for K it moves towards the keys it is least like.

    Guarantee: with $\|K\| \le$ ``max_norm`` (kept by the constraint) and
    $h \le 4/(\beta\,\text{max\_norm}^2)$ every step is 1-Lipschitz: the Hessian
    $\beta K(diag(p) - pp^T)K^T$ lies between 0 and $\tfrac\beta2\|K\|^2$. ``lipschitz_bound`` also
    knows the largest distance D of two keys: the Hessian is at most $\tfrac\beta4D^2$. Proof:
    ``dynzoo.fields.log_sum_exp``.

    Args:
        keys: number of keys, a positive integer.
        beta: inverse temperature of the softmax, a positive float.
        step_size: ``"maximal"``, a positive float (fixed; dimensionless), or ``"learned"`` (one
            trainable step a time step, kept inside the admissible interval).
        steps: number of time steps, each with its own keys and bias unless ``shared``.
        max_norm: norm of K that the constraint allows.
        shared: use one set of keys and one bias in all steps (an autonomous system).
        use_bias: add b.
        kernel_regularizer: Keras regularizer of each kernel K, or ``None``.
        seed: integer seed of the kernel initialiser, or ``None``.
        kernel_initializer: Keras initializer of each K, brought within ``max_norm``; ``None`` for
            an orthogonal one.

    Input and output shape: equal; (batch, features), tokens (batch, number, features), or images
    (batch, height, width, channels). Every vector along the last axis moves by itself.

    Raises:
        ValueError: if an argument is out of its range, naming it and what is allowed.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import SoftmaxGradientFlow
    >>> layer = SoftmaxGradientFlow(keys=16, beta=2.0)
    >>> tuple(layer(np.ones((2, 5, 32), "float32")).shape)
    (2, 5, 32)
    >>> layer.lipschitz_bound((None, 5, 32)) < 1.0 + 1e-4
    True

    Reference: H. Ramsauer et al., "Hopfield networks is all you need", ICLR 2021 (arXiv
    2008.02217), for attention as the gradient of a log-sum-exp; M. E. Sander et al., "Sinkformers:
    transformers with doubly stochastic attention", AISTATS 2022 (arXiv 2110.11773), for attention
    as a gradient flow. The step and its bound are ours.
    """

    def __init__(
        self,
        keys,
        beta=1.0,
        step_size="maximal",
        steps=1,
        max_norm=1.0,
        shared=False,
        use_bias=True,
        kernel_regularizer=None,
        seed=None,
        kernel_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.keys = integer("keys", keys)
        self.beta = number("beta", beta)
        self.steps = integer("steps", steps)
        self.max_norm = number("max_norm", max_norm)
        self.shared = bool(shared)
        self.use_bias = bool(use_bias)
        self._take_objects(kernel_initializer, kernel_regularizer)
        self.seed = seed_or_none(seed)
        self.step_size = number_or_word(
            "step_size", step_size, ("maximal", "learned"), high=self.step_limit
        )
        self.supports_masking = True

    @property
    def step_limit(self) -> float:
        """Largest step that the guarantee allows."""
        return 4.0 / (self.beta * self.max_norm**2)

    def build(self, input_shape):
        features = int(input_shape[-1])
        self.kernels, self.biases, self.raw_steps = [], [], []
        for i in range(1 if self.shared else self.steps):
            seed = None if self.seed is None else self.seed + i
            own = keras.initializers.Orthogonal(min(1.0, self.max_norm), seed)
            constraint = constraints.SpectralNorm(self.max_norm)
            self.kernels.append(
                self.add_weight(
                    shape=(features, self.keys),
                    initializer=self._start(own, constraint, i),
                    constraint=constraint,
                    regularizer=self.kernel_regularizer,
                    name=f"kernel_{i}",
                )
            )
            if self.use_bias:
                self.biases.append(
                    self.add_weight(shape=(self.keys,), initializer="zeros", name=f"bias_{i}")
                )
        if self.step_size == "learned":
            for i in range(self.steps):
                self.raw_steps.append(
                    self.add_weight(shape=(), initializer="zeros", name=f"raw_step_{i}")
                )

    def _step(self, i):
        if self.step_size == "learned":
            return self.step_limit * ops.sigmoid(self.raw_steps[i])
        return self.step_limit if self.step_size == "maximal" else self.step_size

    def step_sizes(self) -> list[float]:
        """The present step sizes, one a time step, in float64."""
        if self.step_size != "learned":
            return [float(self._step(0))] * self.steps
        raw = [float(ops.convert_to_numpy(r.value)) for r in self.raw_steps]
        return [self.step_limit * 0.5 * (1 + math.tanh(0.5 * r)) for r in raw]

    def call(self, x):
        shape = x.shape
        # Rows, so that every backend runs plain matrix products; not where a size is unknown.
        flat = len(shape) > 2 and None not in shape[1:]
        if flat:
            x = ops.reshape(x, (-1, shape[-1]))
        for i in range(self.steps):
            j = 0 if self.shared else i
            bias = self.biases[j] if self.use_bias else None
            kernel = ops.convert_to_tensor(self.kernels[j])
            x = x - softmax_gradient(x, kernel, bias, self.beta, self._step(i))
        return ops.reshape(x, (-1, *shape[1:])) if flat else x

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64)
        for i, h in enumerate(self.step_sizes()):
            j = 0 if self.shared else i
            bias = float64(self.biases[j]) if self.use_bias else 0.0
            x = x - h * softmax_gradient_float64(x, float64(self.kernels[j]), bias, self.beta)
        return x

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant with its present weights (float64)."""
        return math.prod(softmax_step_bounds(self))

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        source = "arXiv 1704.00805; Popoviciu 1935; the step: dynzoo"
        kept = f"|K| <= {self.max_norm:g}, up to 1e-5, by the 'spectral_norm' constraint"
        return [
            Guarantee(
                "gradient field",
                "the right-hand side is the gradient of a convex potential with curvature at "
                "most beta |K|^2 / 2",
                0.5 * self.beta * self.max_norm**2,
                kept,
                source,
            ),
            Guarantee(
                "1-Lipschitz",
                "every step is non-expansive",
                1.0,
                f"{kept}, step <= {self.step_limit:g}",
                source,
            ),
        ]

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "keys": self.keys,
            "beta": self.beta,
            "step_size": self.step_size,
            "steps": self.steps,
            "max_norm": self.max_norm,
            "shared": self.shared,
            "use_bias": self.use_bias,
            **self._objects_config(),
            "seed": self.seed,
        }


def softmax_step_bounds(layer) -> list[float]:
    """Upper bound of the Lipschitz constant of each time step with the present weights."""
    curvatures = [curvature_float64(float64(kernel), layer.beta) for kernel in layer.kernels]
    # the Jacobian is symmetric, with spectrum in [1 - h c, 1]
    return [
        max(1.0, h * curvatures[0 if layer.shared else i] - 1.0)
        for i, h in enumerate(layer.step_sizes())
    ]
