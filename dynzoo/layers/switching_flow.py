"""Contraction and expansion in turn: 1-Lipschitz as a whole, though single steps are not."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo import activations, constraints, spectral
from dynzoo.fields import switching
from dynzoo.fields.gradient import contractive_factor, gradient_field, gradient_field_float64
from dynzoo.fields.switching import limited
from dynzoo.guarantee import Guarantee
from dynzoo.layers.kernel_objects import KernelObjects
from dynzoo.operators import MatrixOperator, ShiftedPointwise
from dynzoo.operators import base as operators
from dynzoo.utils.arguments import array, float64, integer, number, one_of, seed_or_none

__all__ = ["SwitchingFlow"]

# Expansion, its activation (None: that of the contraction) and the bound of each mode.
_DEFAULTS = {
    "prescribed": ("generic", None, "paper"),
    "flexible": ("tied", "relu", "paper"),
    "sharp": ("gradient", None, "sharp"),
}


@keras.saving.register_keras_serializable(package="dynzoo")
class SwitchingFlow(KernelObjects, keras.layers.Layer):
    r"""Flow that switches between a contractive and an expansive field, discretised by Euler.

    $$x' = -A^T\sigma(Ax + b) \ \text{ or } \ x' = +Y(x), \qquad
      x \leftarrow x - \tfrac{h_c}{S} A^T\sigma(Ax + b), \quad x \leftarrow x + e\,Y(x)$$

    with $Y(x) = \sigma_e(Wx + v)$ (``"generic"``), $W^T\sigma_e(Wx + v)$ (``"gradient"``) or
    $A^T\sigma_e(Ax + b)$ (``"tied"``). A time step of ``"prescribed"`` and ``"sharp"`` is S times
    (expand, contract); one of ``"flexible"`` is S contractions and then one expansion.

    Guarantee: 1-Lipschitz for all finite values of its weights, in real numbers; the rounding of a
    float32 pass is relative to $|x| + |b|/\|A\|$. A kernel with entries above 1e6 acts as scaled
    back to that, where its fourth powers still fit. The singular values of A and W are
    bounded anew in each call (``spectrum="measured"``), steps are divided by $\|A\|^2$, and e has
    at most the size that the contraction has made room for: $(1 + e)\,F \le 1$, with F the
    paper's $\sqrt{1 - 2a\kappa\tau + \tau^2}$ or the sharp
    $\max(|1 - a\kappa\tau|, |1 - \tau|)$ for $\tau = h_c\|A\|^2/S$, least slope a and
    $\kappa = s_{min}^2/s_{max}^2$. A kernel far from orthonormal makes $\kappa$ small, and
    leaves no room: then e = 0 and the contraction alone remains. (For a 3x3 convolution the bound
    of $\kappa$ is cautious; matrix operators, kept orthonormal, lose nothing.) With
    ``spectrum="assumed"`` (the published variant) singular values are taken to be 1, and the
    guarantee is only as true as that is; ``lipschitz_bound`` states the true bound either way.

    Args:
        operator: linear operator A, for example ``dynzoo.operators.Dense(units)``. A must be
            injective (at least as many units as channels) unless the expansion is ``"tied"``.
        activation: name of an activation with slopes in [a, 1], a > 0.
        mode: ``"prescribed"``: e is the largest admissible one times a learned factor in [0, 1].
            ``"flexible"``: e is learned with its sign; a negative one contracts, down to
            $-2/\|A\|^2$. ``"sharp"``: as flexible, but alternating and with the sharp bound.
        bound: ``"paper"``, ``"sharp"``, or ``None`` for that of the mode.
        expansion: ``"generic"`` (needs as many units as channels), ``"gradient"``, ``"tied"``, or
            ``None`` for that of the mode.
        expansion_activation: name of an activation with slopes in [0, 1], or ``None`` for that
            of the mode: ReLU in ``"flexible"``, else ``activation``.
        steps: number of time steps, each with its own weights unless ``shared``.
        substeps: S, a positive integer.
        step_size: ``"learned"``, or a fixed contractive time step $h_c$ in (0, 2S]
            (dimensionless; in units of $1/\|A\|^2$).
        step_range: interval of the learned $h_c$ inside (0, 2S), or ``None`` for that of the
            mode (in the paper's setting, a = 1/2 and S = 2: [0.3, 1] and [0.11, 1.89]).
        max_expansion: largest expansive substep, positive.
        constraint: ``"orthonormal"`` (matrix operators), ``"spectral_norm"``, ``None``, or a Keras
            constraint: an ``Orthonormal`` or a ``SpectralNorm(1.0)`` is taken for its word.
        spectrum: ``"measured"`` or ``"assumed"``.
        projection_steps: ``steps`` of the orthonormal constraint.
        shared: use the weights of one time step in all (step sizes stay apart).
        use_bias: add b and v.
        kernel_regularizer: Keras regularizer of each kernel, or ``None``.
        seed: integer seed of the kernel initialiser, or ``None``.
        kernel_initializer: Keras initializer of each kernel, brought within the constraint;
            ``None`` for the operator's own.
        expansion_start: what a fresh layer expands by, as a share of the largest admissible
            expansion, in (0, 1); ``None``: 0.5 in ``"prescribed"``, else tanh(0.5). Many steps in
            a row want it close to 1, or little of the signal is left at the start.

    Input and output shape: equal; (batch, features) or (batch, height, width, channels), as the
    operator needs.

    Raises:
        ValueError: if an argument is out of its range, or the operator's shape leaves no room.

    Example:

    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import SwitchingFlow
    >>> layer = SwitchingFlow(operators.Dense(8), mode="flexible", steps=2)
    >>> tuple(layer(np.ones((2, 8), "float32")).shape)
    (2, 8)

    Reference: E. Celledoni et al., "Dynamical systems' based neural networks", SISC 2023
    (arXiv 2210.02373), section on 1-Lipschitz networks. The sharp bound is ours.
    """

    def __init__(
        self,
        operator,
        activation="half_leaky_relu",
        mode="prescribed",
        bound=None,
        expansion=None,
        expansion_activation=None,
        steps=1,
        substeps=2,
        step_size="learned",
        step_range=None,
        max_expansion=8.0,
        constraint="default",
        spectrum="measured",
        projection_steps=2,
        shared=False,
        use_bias=True,
        kernel_regularizer=None,
        seed=None,
        kernel_initializer=None,
        expansion_start=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.operator = operators.get(operator)
        self._activation = activations.get(activation)
        self.activation = self._activation.name
        self.slope = self._activation.slope_min
        if self.slope <= 0:
            raise ValueError(
                "`activation` must have slopes above 0, such as 'half_leaky_relu': where it is "
                f"flat nothing contracts. Received: activation={self.activation!r}"
            )
        self.mode = one_of("mode", mode, _DEFAULTS)
        expansion_default, activation_default, bound_default = _DEFAULTS[mode]
        self.bound = one_of("bound", bound or bound_default, ("paper", "sharp"))
        if mode == "sharp" and self.bound == "paper":
            raise ValueError("`bound` must be 'sharp' with mode='sharp'. Received: bound='paper'")
        kinds = ("generic", "gradient", "tied")
        self.expansion = one_of("expansion", expansion or expansion_default, kinds)
        self._expansion_activation = activations.get(
            expansion_activation or activation_default or activation, "expansion_activation"
        )
        self.expansion_activation = self._expansion_activation.name
        matrix = isinstance(self.operator, operators.MatrixOperator)
        if constraint == "default":
            constraint = "orthonormal" if matrix else "spectral_norm"
        given = self._take_constraint(constraint, ("orthonormal", "spectral_norm"), 1.0)
        if isinstance(given, constraints.Orthonormal):
            projection_steps = given.steps
        self.spectrum = one_of("spectrum", spectrum, ("measured", "assumed"))
        self.steps = integer("steps", steps)
        self.substeps = integer("substeps", substeps)
        self.max_expansion = number("max_expansion", max_expansion)
        if expansion_start is not None:
            expansion_start = number("expansion_start", expansion_start, 0.0, 1.0, closed="none")
        self.expansion_start = expansion_start
        self.projection_steps = integer("projection_steps", projection_steps)
        self.shared = bool(shared)
        self.use_bias = bool(use_bias)
        self._take_objects(kernel_initializer, kernel_regularizer)
        self.seed = seed_or_none(seed)
        if step_size != "learned":
            step_size = number("step_size", step_size, 0.0, 2.0 * self.substeps)
        self.step_size = step_size
        self.step_range = checked_range(self, step_range)
        self.supports_masking = True

    def build(self, input_shape):
        shape = self.operator.kernel_shape(input_shape)
        check_shape(self, shape)
        if self.constraint == "orthonormal":
            constraint = self.operator.orthonormal_constraint(self.projection_steps)
        elif self.constraint == "spectral_norm":
            constraint = self.operator.spectral_norm_constraint(1.0, input_shape)
        else:
            constraint = self.kernel_constraint
        self.kernels, self.biases = [], []
        self.expansion_kernels, self.expansion_biases = [], []
        for i in range(1 if self.shared else self.steps):
            for j, prefix in enumerate(("", "expansion_")):
                if prefix and self.expansion == "tied":
                    continue
                seed = None if self.seed is None else self.seed + 2 * i + j
                kernel = self.add_weight(
                    shape=shape,
                    initializer=self._start(self.operator.initializer(seed), constraint, 2 * i + j),
                    constraint=constraint,
                    regularizer=self.kernel_regularizer,
                    name=f"{prefix}kernel_{i}",
                    # The spectrum must be measured in float32 whatever the layer computes in.
                    autocast=False,
                )
                getattr(self, f"{prefix}kernels").append(kernel)
                if self.use_bias:
                    name = f"{prefix}bias_{i}"
                    bias = self.add_weight(shape=shape[-1:], initializer="zeros", name=name)
                    getattr(self, f"{prefix}biases").append(bias)
        self.raw_contractions, self.raw_expansions = [], []
        start = self._raw_start()
        for i in range(self.steps):
            scalar: dict[str, Any] = {"shape": (), "autocast": False}
            if self.step_size == "learned":
                raw = self.add_weight(initializer="zeros", name=f"raw_contraction_{i}", **scalar)
                self.raw_contractions.append(raw)
            initializer = keras.initializers.Constant(start)
            raw = self.add_weight(initializer=initializer, name=f"raw_expansion_{i}", **scalar)
            self.raw_expansions.append(raw)

    def _raw_start(self) -> float:
        """The raw weight of the expansion in a fresh layer."""
        prescribed = self.mode == "prescribed"
        if self.expansion_start is None:
            return 0.0 if prescribed else 0.5
        if prescribed:
            return 2.0 * _inverse_tanh(2.0 * self.expansion_start - 1.0)
        return _inverse_tanh(self.expansion_start)

    # --- step sizes ---

    def _raws(self, i, read):
        chosen = [self.raw_expansions[i]]
        if self.step_size == "learned":
            chosen.insert(0, self.raw_contractions[i])
        return [read(raw) for raw in chosen]

    def _kernels(self, i, read) -> tuple[Any, Any]:
        j = 0 if self.shared else i
        kernel = read(self.kernels[j])
        xp = np if isinstance(kernel, np.ndarray) else ops
        kernel = limited(kernel, xp)
        if self.expansion == "tied":
            return kernel, kernel
        return kernel, limited(read(self.expansion_kernels[j]), xp)

    def _biases(self, i, read, none):
        if not self.use_bias:
            return none, none
        j = 0 if self.shared else i
        bias = read(self.biases[j])
        return bias, bias if self.expansion == "tied" else read(self.expansion_biases[j])

    def _substeps_float64(self):
        for i in range(self.steps):
            yield substep_sizes(self, *self._kernels(i, float64), self._raws(i, float64), np)

    def step_sizes(self) -> list[tuple[float, float]]:
        """The present times (contraction, expansion) of each time step, in float64, signed."""
        expansions = 1 if self.mode == "flexible" else self.substeps
        return [
            (float(self.substeps * h), float(expansions * e)) for h, e in self._substeps_float64()
        ]

    def assign_step_sizes(self, sizes):
        """Sets learned times (contraction, expansion), a pair a step, in ``step_sizes`` units.

        What is not admissible is clamped, with its sign; a fixed contraction stays.
        """
        for i, (contraction, expansion) in enumerate(sizes):
            kernels = self._kernels(i, float64)
            raws = inverse_sizes(self, *kernels, self._raws(i, float64), contraction, expansion)
            if self.step_size == "learned":
                self.raw_contractions[i].assign(raws[0])
            self.raw_expansions[i].assign(raws[-1])

    # --- forward ---

    def call(self, x):
        for i in range(self.steps):
            kernel, wide = self._kernels(i, ops.convert_to_tensor)
            biases = self._biases(i, ops.convert_to_tensor, None)
            # The room is a property of the weights, not a path for their gradients: these would
            # be the noise of a number that the constraint keeps near 0.
            frozen, frozen_wide = ops.stop_gradient(kernel), ops.stop_gradient(wide)
            raws = self._raws(i, ops.convert_to_tensor)
            sizes = substep_sizes(self, frozen, frozen_wide, raws, ops)
            h, e = (ops.cast(size, x.dtype) for size in sizes)
            kernels = [ops.cast(k, x.dtype) for k in (kernel, wide)]
            x = time_step(self, x, h, e, kernels, biases)
        return x

    def call_float64(self, x):
        """The inference pass in NumPy float64."""
        x = np.asarray(x, dtype=np.float64)
        for i, (h, e) in enumerate(self._substeps_float64()):
            kernels, biases = self._kernels(i, float64), self._biases(i, float64, 0.0)
            x = time_step_float64(self, x, h, e, kernels, biases)
        return x

    # --- what is known ---

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the layer's Lipschitz constant with its present weights (float64)."""
        bound = 1.0
        for i, (h, e) in enumerate(self._substeps_float64()):
            bound *= switching_bound(self, input_shape, h, e, *self._kernels(i, float64))
        return bound

    def guarantees(self) -> list[Guarantee]:
        """What holds for this flow as it is configured."""
        return switching_guarantees(self)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "operator": keras.saving.serialize_keras_object(self.operator),
            "activation": self.activation,
            "mode": self.mode,
            "bound": self.bound,
            "expansion": self.expansion,
            "expansion_activation": self.expansion_activation,
            "steps": self.steps,
            "substeps": self.substeps,
            "step_size": self.step_size,
            "step_range": list(self.step_range),
            "max_expansion": self.max_expansion,
            "expansion_start": self.expansion_start,
            "constraint": self._constraint_config(),
            "spectrum": self.spectrum,
            "projection_steps": self.projection_steps,
            "shared": self.shared,
            "use_bias": self.use_bias,
            "seed": self.seed,
            **self._objects_config(),
        }


def checked_range(layer, step_range) -> tuple[float, float]:
    """The interval of the learned contraction as floats, that of the mode for ``None``.

    Raises:
        ValueError: if it is not an interval in (0, 2S].
    """
    limit = 2.0 * layer.substeps
    if step_range is None:
        step_range = switching.default_range(layer.mode, layer.bound, layer.substeps, layer.slope)
    ends = array("step_range", step_range).ravel().tolist()
    if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= limit:
        raise ValueError(
            f"`step_range` must be (low, high) with 0 < low <= high <= {limit:g}. "
            f"Received: step_range={step_range!r}"
        )
    return ends[0], ends[1]


def _spectrum(layer, kernel, xp):
    """(1 / upper bound of s_max^2, lower bound of the ratio s_min^2 / s_max^2)."""
    if layer.spectrum == "assumed":
        return 1.0, 1.0
    lower, upper = switching.singular_values_squared(layer.operator, kernel, xp)
    return 1.0 / upper, lower / upper


def substep_sizes(layer, kernel, expansion_kernel, raws, xp):
    """Contractive and (signed) expansive substep of one time step.

    Args:
        layer: a ``SwitchingFlow``, for its configuration.
        kernel: kernel of A.
        expansion_kernel: kernel of W, or that of A.
        raws: raw contraction (if learned) and raw expansion, real numbers.
        xp: ``keras.ops`` or ``numpy``.
    """
    unit, ratio = _spectrum(layer, kernel, xp)
    if layer.step_size == "learned":
        low, high = layer.step_range
        step = switching.interval(raws[0], low, high, xp) / layer.substeps
    else:
        step = layer.step_size / layer.substeps
    count = layer.substeps if layer.mode == "flexible" else 1
    limit = switching.expansion_limit(
        step, layer.slope, ratio, layer.bound, count, layer.max_expansion, xp
    )
    expansion_unit = unit
    if layer.expansion != "tied":
        expansion_unit, _ = _spectrum(layer, expansion_kernel, xp)
    if layer.mode == "prescribed":
        expansion = switching.interval(raws[-1], 0.0, limit, xp)
    elif layer.expansion == "generic":
        # Its Jacobian has no sign: backwards it may expand just as much.
        expansion = switching.signed_step(raws[-1], limit, limit, xp)
    else:
        expansion = switching.signed_step(raws[-1], 2.0, limit, xp)
    if layer.expansion == "generic":
        expansion_unit = expansion_unit**0.5
    return step * unit, expansion * expansion_unit


def inverse_sizes(layer, kernel, expansion_kernel, raws, contraction, expansion) -> list[float]:
    """The raw weights whose times come closest to these, with their sign (float64)."""
    raws = list(raws)

    def largest(raw):
        return substep_sizes(layer, kernel, expansion_kernel, [*raws[:-1], raw], np)[1]

    if layer.step_size == "learned":
        unit, _ = _spectrum(layer, kernel, np)
        low, high = layer.step_range
        share = (contraction / unit - low) / max(high - low, 1e-12)
        raws[0] = 2.0 * _inverse_tanh(2.0 * share - 1.0)
    step = expansion if layer.mode == "flexible" else expansion / layer.substeps
    if layer.mode == "prescribed":
        end = largest(np.float64(40.0))
        raws[-1] = 2.0 * _inverse_tanh(2.0 * step / end - 1.0) if end > 0 else 0.0
    else:
        end = largest(np.float64(40.0 if step > 0 else -40.0))
        raws[-1] = _inverse_tanh(step / end) if end else 0.0
        raws[-1] = float(np.copysign(raws[-1], step))
    return [float(raw) for raw in raws]


def _inverse_tanh(y) -> float:
    """The number whose tanh is y; values beyond +-1 give one where float32 has reached it."""
    return float(np.clip(np.arctanh(np.clip(y, -1 + 1e-12, 1 - 1e-12)), -10.0, 10.0))


def time_step(layer, x, h, e, kernels, biases):
    """The state after one time step, over ``keras.ops``.

    Args:
        layer: a ``SwitchingFlow``, for its configuration.
        x: the state.
        h: contractive substep.
        e: expansive substep, signed.
        kernels: those of A and of the expansion.
        biases: b and v, or ``None`` each.
    """

    def contract(y):
        return gradient_field(layer.operator, layer._activation, y, kernels[0], biases[0], h)

    def expand(y):
        sigma = layer._expansion_activation
        if layer.expansion != "generic":
            return gradient_field(layer.operator, sigma, y, kernels[1], biases[1], e)
        inner = layer.operator.apply(y, kernels[1])
        return e * sigma(inner if biases[1] is None else inner + biases[1])

    return alternate(layer, x, contract, expand)


def time_step_float64(layer, x, h, e, kernels, biases):
    """The same in NumPy float64; the biases are numbers."""

    def contract(y):
        field = gradient_field_float64
        return h * field(layer.operator, layer._activation, y, kernels[0], biases[0])

    def expand(y):
        sigma = layer._expansion_activation
        if layer.expansion != "generic":
            return e * gradient_field_float64(layer.operator, sigma, y, kernels[1], biases[1])
        return e * sigma.reference(layer.operator.apply_float64(y, kernels[1]) + biases[1])

    return alternate(layer, x, contract, expand)


def alternate(layer, x, contract, expand):
    """The substeps of both fields in their order; the state may be of any type that adds."""
    if layer.mode == "flexible":
        for _ in range(layer.substeps):
            x = x - contract(x)
        return x + expand(x)
    for _ in range(layer.substeps):
        x = x + expand(x)
        x = x - contract(x)
    return x


_SOURCE = "arXiv 2210.02373, section on 1-Lipschitz networks"


def check_shape(layer, shape) -> None:
    """Refuses kernels for which the contraction cannot reach what the expansion stretches.

    Raises:
        ValueError: naming the operator and what it needs.
    """
    inputs, units = shape[-2:]
    if layer.expansion == "generic" and units != inputs:
        raise ValueError(
            f"`operator` must have {inputs} units, the channels of the input, for "
            f"expansion='generic'. Received: {units} units"
        )
    if layer.expansion != "tied" and units < inputs:
        raise ValueError(
            f"`operator` must have at least {inputs} units, the channels of the input: with fewer "
            "A is not injective, and what it does not see would only expand. "
            f"Received: {units} units"
        )
    if isinstance(layer.operator, ShiftedPointwise) and layer.operator.padding == "zero":
        raise ValueError(
            "`operator` must be injective: a shift with zero padding drops pixels. Use "
            "padding='circular'. Received: padding='zero'"
        )


def _smallest(operator, kernel, input_shape) -> float:
    """Lower bound of the min(inputs, units) singular values of A: on its row space."""
    lower, _ = switching.singular_values_squared(operator, kernel, np)
    bounds = [math.sqrt(lower), operator.min_singular_value_float64(kernel, input_shape)]
    if isinstance(operator, MatrixOperator):
        # A circular shift keeps every singular value; other shifts are refused.
        bounds.append(spectral.dense_min_singular_value_float64(kernel))
    return max(bounds)


def switching_bound(layer, input_shape, h, e, kernel, expansion_kernel) -> float:
    """Lipschitz bound of one time step with substeps h and e, by the sharp factors (float64)."""
    operator = layer.operator
    norm = operator.norm_float64(kernel, input_shape)
    smallest = _smallest(operator, kernel, input_shape)
    contraction = contractive_factor(h, norm, smallest, layer.slope, layer._activation.slope_max)
    sigma = layer._expansion_activation
    if layer.expansion == "tied":
        expansion_norm = norm
    else:
        expansion_norm = operator.norm_float64(expansion_kernel, input_shape)
        smallest = 0.0
    if layer.expansion == "generic":
        expansion = 1.0 + abs(e) * sigma.slope_max * expansion_norm
    elif e >= 0:
        expansion = 1.0 + e * sigma.slope_max * expansion_norm**2
    else:
        expansion = contractive_factor(
            -e, expansion_norm, smallest, sigma.slope_min, sigma.slope_max
        )
    expansions = 1 if layer.mode == "flexible" else layer.substeps
    bound = contraction**layer.substeps * expansion**expansions
    inputs, units = kernel.shape[-2:]
    # With fewer units than inputs (tied) both fields vanish on the same subspace, and map its
    # complement to itself: the identity there, the product here.
    return max(1.0, bound) if units < inputs else bound


def switching_guarantees(layer) -> list[Guarantee]:
    """What holds for a ``SwitchingFlow`` as it is configured."""
    formula = {
        "paper": "F = sqrt(1 - 2 a k t + t^2)",
        "sharp": "F = max(|1 - a k t|, |1 - t|)",
    }[layer.bound]
    power = layer.substeps if layer.mode == "flexible" else 1
    measured = layer.spectrum == "measured"
    return [
        Guarantee(
            "1-Lipschitz",
            "every time step, contractions and expansions together",
            1.0,
            "all finite weights: the step sizes follow singular values that each call bounds"
            if measured
            else "only if A^T A = I and |W| <= 1, which nothing here measures",
            _SOURCE if layer.bound == "paper" else f"{_SOURCE}; sharp factor: dynzoo",
        ),
        Guarantee(
            "room for expansion",
            f"largest expansive substep 1 / F^{power} - 1 with {formula}, a = {layer.slope:g}, "
            "for orthonormal A, over the admissible contractions",
            _room(layer),
            f"at most max_expansion; k = s_min^2 / s_max^2 {'measured' if measured else 'taken 1'}",
            _SOURCE,
        ),
    ]


def _room(layer) -> float:
    if layer.step_size == "learned":
        steps = np.linspace(layer.step_range[0], layer.step_range[1], 1001) / layer.substeps
    else:
        steps = np.array([layer.step_size / layer.substeps])
    power = layer.substeps if layer.mode == "flexible" else 1
    room = switching.expansion_limit(
        steps, layer.slope, 1.0, layer.bound, power, layer.max_expansion, np
    )
    return float(room.max())
