"""Gradient flow of a convex potential: the 1-Lipschitz building block."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from dynzoo import activations, constraints, integrators
from dynzoo.constraints import ORTHONORMAL_KEPT
from dynzoo.fields.gradient import contractive_factor, gradient_field, gradient_field_float64
from dynzoo.guarantee import Guarantee
from dynzoo.layers.kernel_objects import KernelObjects
from dynzoo.operators import base as operators
from dynzoo.operators import torch_passes
from dynzoo.operators.dense import Dense, Pointwise
from dynzoo.operators.shift import ShiftedPointwise
from dynzoo.utils.arguments import float64, integer, number, number_or_word, one_of, seed_or_none

__all__ = ["GradientFlow"]

# Runge-Kutta methods above one stage have no sharp bound beyond their radius, so their maximal
# step keeps a distance that covers the constraint's tolerance (1e-5 on the norm).
_RUNGE_KUTTA_MARGIN = 1.0 - 4e-5


@keras.saving.register_keras_serializable(package="dynzoo")
class GradientFlow(KernelObjects, keras.layers.Layer):
    r"""Gradient flow of a convex potential, discretised in time.

    $$x' = \mp A^T\sigma(Ax + b), \qquad x \leftarrow x \mp h A^T\sigma(Ax + b) \quad (Euler)$$

    Guarantee (contractive, ``-``): with $\|A\| \le$ ``max_norm`` (kept by the constraint), an
    activation with slopes in [0, 1] and $h \le 2r/\text{max\_norm}^2$, where r is the
    integrator's circle-contractivity radius (1 for all that ship), every step is 1-Lipschitz.
    With orthonormal rows, ReLU, Euler and h = 2 the Jacobian $I - 2A^TDA$ is exactly orthogonal:
    the step loses neither signal nor gradient. Guarantee (expansive, ``+``): an Euler step has
    a Lipschitz constant of at most $1 + h\|A\|^2$.

    Args:
        operator: linear operator A, for example ``dynzoo.operators.Dense(units)``.
        activation: name of a monotone activation with slopes in [0, 1].
        step_size: ``"maximal"`` (contractive only), a positive float (fixed; dimensionless), or
            ``"learned"`` (one trainable step a time step, kept inside the admissible interval).
        steps: number of time steps, each with its own kernel and bias unless ``shared``.
        integrator: ``"euler"``, ``"heun"``, ``"ssp3"`` or ``"rk4"``.
        direction: ``"contractive"`` or ``"expansive"``.
        constraint: ``"orthonormal"`` (matrix operators), ``"spectral_norm"``, or ``None``; with
            ``None`` nothing bounds A, a fixed step is needed, and ``lipschitz_bound`` tells. So it
            is with another Keras constraint; dynzoo's own are taken for their words.
        max_norm: norm that the ``"spectral_norm"`` constraint allows.
        max_step: largest learned step of an expansive flow.
        projection_steps: ``steps`` of the orthonormal constraint.
        shared: use one kernel and bias in all steps (an autonomous system).
        use_bias: add b.
        kernel_regularizer: Keras regularizer of each kernel, or ``None``.
        seed: integer seed of the kernel initialiser, or ``None``.
        kernel_initializer: Keras initializer of each kernel, brought within the constraint;
            ``None`` for the operator's own, which is orthonormal.

    Input and output shape: equal; (batch, features) or (batch, height, width, channels), as the
    operator needs.

    Raises:
        ValueError: if an argument is out of its range, naming it and what is allowed.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import GradientFlow
    >>> layer = GradientFlow(operators.Dense(16), step_size="maximal", steps=3)
    >>> tuple(layer(np.ones((2, 32), "float32")).shape)
    (2, 32)
    >>> layer.lipschitz_bound((None, 32)) < 1.0 + 1e-4
    True

    Reference: E. Celledoni et al., "Dynamical systems' based neural networks", SISC 2023
    (arXiv 2210.02373), section on 1-Lipschitz networks; Runge-Kutta: arXiv 2306.17332.
    """

    def __init__(
        self,
        operator,
        activation="relu",
        step_size="maximal",
        steps=1,
        integrator="euler",
        direction="contractive",
        constraint="default",
        max_norm=1.0,
        max_step=1.0,
        projection_steps=2,
        shared=False,
        use_bias=True,
        kernel_regularizer=None,
        seed=None,
        kernel_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.operator = operators.get(operator)
        self._activation = activations.get(activation)
        self._integrator = integrators.get(integrator)
        self.activation = self._activation.name
        self.integrator = self._integrator.name
        self.direction = one_of("direction", direction, ("contractive", "expansive"))
        if constraint == "default":
            matrix = isinstance(self.operator, operators.MatrixOperator)
            constraint = "orthonormal" if matrix else "spectral_norm"
        given = self._take_constraint(constraint, ("orthonormal", "spectral_norm"), None)
        if isinstance(given, constraints.Orthonormal):
            projection_steps = given.steps
        elif isinstance(given, constraints.SpectralNorm):
            max_norm = given.max_norm
        self.steps = integer("steps", steps)
        self.max_norm = number("max_norm", max_norm)
        self.max_step = number("max_step", max_step)
        self.projection_steps = integer("projection_steps", projection_steps)
        self.shared = bool(shared)
        self.use_bias = bool(use_bias)
        self._take_objects(kernel_initializer, kernel_regularizer)
        self.seed = seed_or_none(seed)
        self.step_size = self._checked_step_size(step_size)
        self.supports_masking = True

    @property
    def step_limit(self) -> float:
        """Largest step that the guarantee allows (infinite where nothing bounds the operator)."""
        if self.direction == "expansive":
            return math.inf
        if self.constraint is None:
            return math.inf
        norm = 1.0 if self.constraint == "orthonormal" else self.max_norm
        limit = 2.0 * self._integrator.circle_contractivity_radius / norm**2
        return limit if self.integrator == "euler" else limit * _RUNGE_KUTTA_MARGIN

    def _checked_step_size(self, step_size):
        limit = self.step_limit
        if step_size in ("maximal", "learned"):
            unbounded = self.constraint is None and self.direction == "contractive"
            if unbounded or (step_size == "maximal" and self.direction == "expansive"):
                raise ValueError(
                    "`step_size` must be a positive number when nothing bounds the step "
                    f"(direction={self.direction!r}, constraint={self.constraint!r}). "
                    f"Received: step_size={step_size!r}"
                )
            return step_size
        return number_or_word("step_size", step_size, ("maximal", "learned"), high=limit)

    def build(self, input_shape):
        shape = self.operator.kernel_shape(input_shape)
        if self.constraint == "orthonormal":
            constraint = self.operator.orthonormal_constraint(self.projection_steps)
        elif self.constraint == "spectral_norm":
            constraint = self.operator.spectral_norm_constraint(self.max_norm, input_shape)
        else:
            constraint = self.kernel_constraint
        self.kernels, self.biases, self.raw_steps = [], [], []
        for i in range(1 if self.shared else self.steps):
            seed = None if self.seed is None else self.seed + i
            own = self.operator.initializer(seed)
            # `max_norm` is that of the spectral norm constraint alone
            norm = 1.0 if self.constraint == "orthonormal" else min(1.0, self.max_norm)
            start = self._start(own, constraint, i, norm)
            self.kernels.append(
                self.add_weight(
                    shape=shape,
                    initializer=start,
                    constraint=constraint,
                    regularizer=self.kernel_regularizer,
                    name=f"kernel_{i}",
                )
            )
            if self.use_bias:
                self.biases.append(
                    self.add_weight(shape=shape[-1:], initializer="zeros", name=f"bias_{i}")
                )
        if self.step_size == "learned":
            for i in range(self.steps):
                self.raw_steps.append(
                    self.add_weight(shape=(), initializer="zeros", name=f"raw_step_{i}")
                )

    @property
    def _learned_limit(self) -> float:
        return min(self.step_limit, self.max_step if self.direction == "expansive" else math.inf)

    def _step(self, i):
        if self.step_size == "maximal":
            return self.step_limit
        if self.step_size == "learned":
            # A logistic map keeps the step strictly inside its admissible interval.
            return self._learned_limit * ops.sigmoid(self.raw_steps[i])
        return self.step_size

    def step_sizes(self) -> list[float]:
        """The present step sizes, one a time step, in float64."""
        if self.step_size != "learned":
            return [float(self._step(0))] * self.steps
        raw = [float(ops.convert_to_numpy(r.value)) for r in self.raw_steps]
        return [self._learned_limit * 0.5 * (1 + math.tanh(0.5 * r)) for r in raw]

    def call(self, x):
        sign = -1.0 if self.direction == "contractive" else 1.0
        shape = ops.shape(x)  # sizes that TensorFlow does not know yet are tensors
        x = self.operator.flatten(x)
        for i in range(self.steps):
            j = 0 if self.shared else i
            bias = self.biases[j] if self.use_bias else None
            kernel = ops.convert_to_tensor(self.kernels[j])

            scale = sign * self._step(i)
            if self._is_relu_step(x, kernel, scale):
                bias = None if bias is None else ops.convert_to_tensor(bias)
                x = torch_passes.relu_step(x, kernel, bias, scale)
                continue

            def field(y, kernel=kernel, bias=bias, scale=scale):
                return gradient_field(self.operator, self._activation, y, kernel, bias, scale)

            x = self._integrator.step(field, x, 1.0)
        return x if len(x.shape) == len(shape) else ops.reshape(x, (-1, *shape[1:]))

    def _is_relu_step(self, x, kernel, scale) -> bool:
        """Whether PyTorch trains it, and all axes but the channels may be one."""
        plain = self.integrator == "euler" and self.activation == "relu"
        matrix = type(self.operator) in (Dense, Pointwise)
        known = plain and matrix and len(x.shape) == 2 and isinstance(scale, float)
        return known and torch_passes.suits(x, kernel)

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64)
        sign = -1.0 if self.direction == "contractive" else 1.0
        for i, h in enumerate(self.step_sizes()):
            j = 0 if self.shared else i
            kernel = float64(self.kernels[j])
            bias = float64(self.biases[j]) if self.use_bias else 0.0

            def field(y, kernel=kernel, bias=bias):
                return gradient_field_float64(self.operator, self._activation, y, kernel, bias)

            x = self._integrator.step(field, x, sign * h)
        return x

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant with its present weights (float64)."""
        return gradient_bound(self, input_shape)

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        return gradient_guarantees(self)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "operator": keras.saving.serialize_keras_object(self.operator),
            "activation": self.activation,
            "step_size": self.step_size,
            "steps": self.steps,
            "integrator": self.integrator,
            "direction": self.direction,
            "constraint": self._constraint_config(),
            "max_norm": self.max_norm,
            "max_step": self.max_step,
            "projection_steps": self.projection_steps,
            "shared": self.shared,
            "use_bias": self.use_bias,
            **self._objects_config(),
            "seed": self.seed,
        }


def gradient_bound(layer, input_shape) -> float:
    """Upper bound of the Lipschitz constant with the present weights (float64)."""
    return math.prod(step_bounds(layer, input_shape))


def step_bounds(layer, input_shape, norms=None) -> list[float]:
    """The same for each time step; ``norms`` are those of the kernels, where they are known."""
    slopes = (layer._activation.slope_min, layer._activation.slope_max)
    kernels = [float64(k) for k in layer.kernels]
    if norms is None:
        norms = [layer.operator.norm_float64(k, input_shape) for k in kernels]
    bounds = []
    for i, h in enumerate(layer.step_sizes()):
        j = 0 if layer.shared else i
        stiffness = h * slopes[1] * norms[j] ** 2
        if layer.direction == "expansive":
            bounds.append(layer._integrator.growth_bound(stiffness))
        elif layer.integrator == "euler":
            smallest = 0.0
            if slopes[0] > 0:
                smallest = layer.operator.min_singular_value_float64(kernels[j], input_shape)
            bounds.append(contractive_factor(h, norms[j], smallest, *slopes))
        elif stiffness <= 2.0 * layer._integrator.circle_contractivity_radius:
            bounds.append(1.0)
        else:
            bounds.append(layer._integrator.growth_bound(stiffness))
    return bounds


def gradient_guarantees(layer) -> list[Guarantee]:
    """What holds for a ``GradientFlow`` as it is configured."""
    source = "arXiv 2210.02373; circle contractivity: arXiv 2306.17332"
    smooth = Guarantee(
        "gradient field",
        "the right-hand side is the gradient of a convex potential with slopes in [0, 1]",
        condition=f"activation {layer.activation!r}, the operator's exact adjoint",
        source=source,
    )
    if layer.constraint is None:
        return [smooth]
    norm = 1.0 if layer.constraint == "orthonormal" else layer.max_norm
    kept = f"|A| <= {norm:g}, up to 1e-5, by the {layer.constraint!r} constraint"
    if layer.direction == "expansive":
        largest = layer._learned_limit if layer.step_size == "learned" else layer.step_size
        growth = layer._integrator.growth_bound(largest * norm**2)
        return [smooth, Guarantee("Lipschitz", "of every step", growth, kept, source)]
    found = [
        smooth,
        Guarantee(
            "1-Lipschitz",
            f"every {layer.integrator} step is non-expansive",
            1.0,
            f"{kept}, step <= {layer.step_limit:g}",
            source,
        ),
    ]
    rows = layer.constraint == "orthonormal" and _rows_can_be_orthonormal(layer)
    reflection = layer.activation == "relu" and layer.integrator == "euler"
    if rows and reflection and layer.step_size == "maximal":
        found.append(
            Guarantee(
                "orthogonal Jacobian",
                "I - 2 A^T D A keeps the norm of signals and gradients",
                1.0,
                f"orthonormal rows ({ORTHONORMAL_KEPT}; no more of them than channels), "
                "ReLU, Euler, step 2",
                source,
            )
        )
    return found


def _rows_can_be_orthonormal(layer) -> bool:
    """Whether A A^T = I can hold: not behind shifts that drop pixels, nor for too many rows."""
    if isinstance(layer.operator, ShiftedPointwise) and layer.operator.padding != "circular":
        return False
    return not layer.built or layer.kernels[0].shape[-1] <= layer.kernels[0].shape[-2]
