"""Convection with Feynman-Kac noise: residual steps whose mean over the noise diffuses a model."""

from __future__ import annotations

import math

import keras
from keras import ops

from dynzoo import activations
from dynzoo.fields.convection_diffusion import (
    brownian_std,
    diffused,
    fixed_noise,
    mean_path,
    mean_path_float64,
    velocity,
    velocity_float64,
)
from dynzoo.fields.gradient import contractive_factor
from dynzoo.guarantee import Guarantee
from dynzoo.layers.kernel_objects import KernelObjects
from dynzoo.operators import base as operators
from dynzoo.utils.arguments import float64, integer, number, one_of, seed_or_none

__all__ = ["ConvectionDiffusionFlow"]

_ARGUMENTS = (
    *("sigma", "step_size", "steps", "velocity", "activation", "max_norm", "noise_scaling"),
    *("inference", "samples", "shared", "use_bias", "seed"),
)


@keras.saving.register_keras_serializable(package="dynzoo")
class ConvectionDiffusionFlow(KernelObjects, keras.layers.Layer):
    r"""Convection along a velocity field, with the noise that diffuses what is behind the layer.

    $$dX = v(X)\,dt + \sqrt2\,\sigma\,dB, \qquad
    x \leftarrow x + h\,v(x) + \sigma\sqrt{2h}\,n, \quad n \sim N(0, I)$$

    with $v(x) = -A^T\sigma(Ax + b)$ (``velocity="gradient"``) or $B^T\sigma(Ax + b)$ (``"free"``).
    The mean over the noise of a function f behind the layer, $u(x) = E f(X_T)$, solves the
    convection-diffusion equation $u_t = v \cdot \nabla u + \sigma^2 \Delta u$ up to the error of
    the step. ``feynman_kac_mean`` computes that mean for a whole model.

    Which noise acts: in training, a fresh draw for each example and step, from a Keras
    ``SeedGenerator``. In inference, by ``inference``:

    * ``"mean"``: the mean of the state over ``samples`` fixed paths, drawn once from ``seed`` by
      NumPy and shared by all examples. Nothing is random between calls, no example sees another.
      The last noise has mean zero and is left out exactly: a single step costs no samples.
    * ``"random"``: a fresh draw in every call, as in training (``random_at_inference`` is true).
    * ``"deterministic"``: none, the residual network itself.

    Guarantee: one increment has variance $2\sigma^2h$ in each entry. u obeys the maximum principle
    $\inf f \le u \le \sup f$, as does every mean over samples. With the gradient velocity and
    $h \le 2/\text{max\_norm}^2$ paths with the same noise do not part, so that the layer in the
    modes ``"mean"`` and ``"deterministic"``, and u for a 1-Lipschitz f, are 1-Lipschitz; and for f
    in [0, 1], $\Phi^{-1}(u)$ is $1/(\sigma\sqrt{2h})$-Lipschitz. All of this is for
    ``noise_scaling="constant"``.

    Args:
        operator: linear operator A (and B), for example ``dynzoo.operators.Dense(units)``.
        sigma: noise level, at least 0, in units of x per square root of time.
        step_size: time step h, dimensionless; at most 2 / max_norm^2 for the gradient velocity.
        steps: number of time steps, each with its own kernels and bias unless ``shared``.
        velocity: ``"gradient"`` or ``"free"``.
        activation: name of a monotone activation with slopes in [0, 1].
        max_norm: bound of |A| and |B| that a constraint keeps, or ``None`` for none.
        noise_scaling: ``"constant"``, or ``"tensor_std"``: the noise also times the standard
            deviation of the whole tensor, as in EnResNet with its coefficient sigma * sqrt(2h).
            An example's output then depends on the others in its batch, and nothing above holds.
        inference: ``"mean"``, ``"random"`` or ``"deterministic"``.
        samples: number of paths of the mean; they come in pairs of opposite noise.
        shared: use one set of kernels and bias in all steps (an autonomous system).
        use_bias: add b.
        seed: integer seed of the initialisers and of the noise, or ``None`` (the noise of training
            then follows Keras' global seed, and the fixed paths are those of seed 0).
        kernel_initializer: Keras initializer of each kernel, brought within ``max_norm``; ``None``
            for the operator's own.
        kernel_regularizer: Keras regularizer of each kernel, or ``None``.

    Input and output shape: equal; (batch, features) or (batch, height, width, channels).

    Raises:
        ValueError: if an argument is out of its range, naming it and what is allowed.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import ConvectionDiffusionFlow
    >>> layer = ConvectionDiffusionFlow(operators.Dense(16), sigma=0.1, steps=3)
    >>> tuple(layer(np.ones((2, 32), "float32")).shape)
    (2, 32)

    Reference: T. Wang et al., "An axiomatized PDE model of deep neural networks" (arXiv
    2307.12333), the convection-diffusion theorem; B. Wang et al., "ResNets ensemble via the
    Feynman-Kac formalism" (NeurIPS 2019), the noise in residual steps.
    """

    def __init__(
        self,
        operator,
        sigma=0.1,
        step_size=1.0,
        steps=1,
        velocity="gradient",
        activation="relu",
        max_norm=1.0,
        noise_scaling="constant",
        inference="mean",
        samples=8,
        shared=False,
        use_bias=True,
        seed=None,
        kernel_initializer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.operator = operators.get(operator)
        self._activation = activations.get(activation)
        self.activation = self._activation.name
        self.sigma = number("sigma", sigma, closed="low")
        self.velocity = one_of("velocity", velocity, ("gradient", "free"))
        self.max_norm = None if max_norm is None else number("max_norm", max_norm)
        self.step_size = number("step_size", step_size, high=self.step_limit)
        self.steps = integer("steps", steps)
        self.noise_scaling = one_of("noise_scaling", noise_scaling, ("constant", "tensor_std"))
        self.inference = one_of("inference", inference, ("mean", "random", "deterministic"))
        self.samples = integer("samples", samples)
        self.shared = bool(shared)
        self.use_bias = bool(use_bias)
        self._take_objects(kernel_initializer, kernel_regularizer)
        self.seed = seed_or_none(seed)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    @property
    def step_limit(self) -> float:
        """Largest step that is admissible (infinite where no guarantee hangs on it)."""
        if self.velocity == "free" or self.max_norm is None:
            return math.inf
        return 2.0 / self.max_norm**2

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise of one step (its factor, if scaled by the tensor)."""
        return brownian_std(self.sigma, self.step_size)

    @property
    def random_at_inference(self) -> bool:
        """Whether two passes in inference mode over one input may differ."""
        return self.inference == "random" and self.sigma > 0

    @property
    def depends_on_batch(self) -> bool:
        """Whether an example's output in inference mode depends on the others in its batch."""
        if self.sigma == 0 or self.noise_scaling == "constant":
            return False
        return self.inference == "random" or self._paths > 0

    @property
    def _paths(self) -> int:
        """Paths that inference runs beside the noiseless one (0: there is nothing to average)."""
        averaged = self.inference == "mean" and self.sigma > 0 and self.steps > 1
        return self.samples if averaged else 0

    def build(self, input_shape):
        shape = self.operator.kernel_shape(input_shape)
        if self._paths and None in input_shape[1:]:
            raise ValueError(
                "`inference` must be 'random' or 'deterministic' for inputs of unknown size: the "
                f"fixed paths of 'mean' have a shape. Received: input_shape={tuple(input_shape)}"
            )
        constraint = None
        if self.max_norm is not None:
            constraint = self.operator.spectral_norm_constraint(self.max_norm, input_shape)
        names = ["kernel"] if self.velocity == "gradient" else ["kernel", "outer_kernel"]
        weights: dict[str, list] = {name: [] for name in names}
        self.biases = []
        for i in range(1 if self.shared else self.steps):
            for k, name in enumerate(names):
                seed = None if self.seed is None else self.seed + 2 * i + k
                own = self.operator.initializer(seed)
                weights[name].append(
                    self.add_weight(
                        shape,
                        self._start(own, constraint, 2 * i + k, min(1.0, self.max_norm or 1.0)),
                        constraint=constraint,
                        regularizer=self.kernel_regularizer,
                        name=f"{name}_{i}",
                    )
                )
            if self.use_bias:
                self.biases.append(self.add_weight(shape[-1:], "zeros", name=f"bias_{i}"))
        self.kernels = weights["kernel"]
        self.outer_kernels = weights.get("outer_kernel", [])
        self._drawn, self._noise_shape = None, tuple(input_shape[1:])

    @property
    def _noise(self):
        """The paths of 'mean', drawn when first needed: a model that is only built needs none."""
        if self._drawn is None and self._paths:
            self._drawn = fixed_noise(
                self.seed or 0, self.steps - 1, self._paths, self._noise_shape
            )
        return self._drawn

    def _step(self, i, convert):
        """Kernel of A, bias, kernel of B and factor of step i."""
        j = 0 if self.shared else i
        inner = convert(self.kernels[j])
        bias = convert(self.biases[j]) if self.use_bias else None
        if self.velocity == "free":
            return inner, bias, convert(self.outer_kernels[j]), self.step_size
        return inner, bias, inner, -self.step_size

    def _convect(self, x, i):
        weights = self._step(i, ops.convert_to_tensor)
        return x + velocity(self.operator, self._activation, x, *weights)

    def _convect_float64(self, x, i):
        return x + velocity_float64(self.operator, self._activation, x, *self._step(i, float64))

    def call(self, x, training=False):
        scaled = self.noise_scaling == "tensor_std"
        if self.sigma > 0 and (training or self.inference == "random"):
            for i in range(self.steps):
                x = self._convect(x, i)
                noise = keras.random.normal(ops.shape(x), dtype=x.dtype, seed=self.seed_generator)
                x = diffused(x, noise, self.noise_std, scaled)
            return x
        return mean_path(self._convect, x, self.steps, self._noise, self.noise_std, scaled)

    def _require_deterministic(self, name):
        if self.random_at_inference:
            raise ValueError(
                f"`{name}` needs an inference pass without randomness. Layer {self.name!r} has "
                "inference='random'; use 'mean' or 'deterministic', or randomised smoothing."
            )

    def call_float64(self, x):
        """The inference pass in NumPy float64; a ValueError where that pass is random."""
        self._require_deterministic("call_float64")
        scaled = self.noise_scaling == "tensor_std"
        return mean_path_float64(
            self._convect_float64, x, self.steps, self._noise, self.noise_std, scaled
        )

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the inference pass' Lipschitz constant with the present weights."""
        self._require_deterministic("lipschitz_bound")
        if self.depends_on_batch:
            raise ValueError(
                f"Layer {self.name!r} has no Lipschitz bound with noise_scaling='tensor_std': an "
                "output depends on the whole batch."
            )
        norms = [self.operator.norm_float64(float64(k), input_shape) for k in self.kernels]
        outer = [self.operator.norm_float64(float64(k), input_shape) for k in self.outer_kernels]
        slopes = (self._activation.slope_min, self._activation.slope_max)
        bound = 1.0
        for i in range(self.steps):
            j = 0 if self.shared else i
            if self.velocity == "free":
                bound *= 1.0 + self.step_size * slopes[1] * norms[j] * outer[j]
            else:
                bound *= contractive_factor(self.step_size, norms[j], 0.0, *slopes)
        return bound

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        pde = "arXiv 2307.12333, convection-diffusion theorem; Feynman-Kac formula"
        if self.noise_scaling == "tensor_std":
            return []
        found = [
            Guarantee(
                "noise variance",
                "each step adds Gaussian noise of variance 2 sigma^2 h to every entry, where "
                f"noise acts (training; inference={self.inference!r})",
                2.0 * self.sigma**2 * self.step_size,
                source=pde,
            ),
            Guarantee(
                "maximum principle",
                "inf f <= E f(X_T) <= sup f for every f, and for the mean over samples",
                condition="a mean over paths, by construction",
                source=pde,
            ),
        ]
        if self.velocity != "gradient" or self.max_norm is None:
            return found
        kept = f"|A| <= {self.max_norm:g}, up to 1e-5, by the constraint, "
        kept += f"step <= {self.step_limit:g}"
        found.append(
            Guarantee("1-Lipschitz", "paths with the same noise do not part", 1.0, kept, pde)
        )
        if self.sigma > 0:
            what = "for f in [0, 1] behind the layer, Phi^-1(E f(X_T)) has this Lipschitz bound"
            mean = kept + ", the mean over the noise itself"
            cohen = "Cohen, Rosenfeld and Kolter 2019 (last noise), with the non-expansive steps"
            found.append(Guarantee("smoothing", what, 1.0 / self.noise_std, mean, cohen))
        return found

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "operator": keras.saving.serialize_keras_object(self.operator),
            **{name: getattr(self, name) for name in _ARGUMENTS},
            **self._objects_config(),
        }
