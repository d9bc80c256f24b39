"""The networks of the MNIST noise experiment: lift, eight time steps of an ODE, linear head.

All are normalise -> 3x3 convolution to 8 channels -> 8 steps on the channels of each pixel ->
flatten -> dense 10 (63,386 parameters, arXiv 2203.11805) and differ in the steps alone. Those that
the package has no layer for are here, as small layers that `dynzoo.certify` understands.
"""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops
from noise import DEVIATION, MEAN

from dynzoo import operators
from dynzoo.fields import contractive_hamiltonian as theory
from dynzoo.fields.gradient import gradient_field, gradient_field_float64
from dynzoo.fields.hamiltonian import canonical_matrix
from dynzoo.layers.contractive_hamiltonian_flow import ContractiveHamiltonianFlow
from dynzoo.layers.hamiltonian_flow import HamiltonianFlow
from dynzoo.layers.phase_space import PhaseSpaceFlow
from dynzoo.utils.arguments import float64

STEPS, CHANNELS, STEP_SIZE = 8, 8, 0.5
EPSILON = 1e-6


class FreeFlow(PhaseSpaceFlow):
    """What the two flows below share: Euler steps of one fixed size, no constraint."""

    _on_halves = False

    def __init__(self, operator, step_size=STEP_SIZE, steps=STEPS, seed=None, **kwargs):
        super().__init__(operator, "tanh", steps, 1.0, 1.0, None, False, True, seed, **kwargs)
        self.step_size = step_size


class ResidualFlow(FreeFlow):
    """The plain residual network y + h tanh(K^T y + b)."""

    def _field(self, x, kernel, bias):
        return ops.tanh(self.operator.apply(x, kernel) + bias)

    def _field_float64(self, x, kernel, bias):
        return np.tanh(self.operator.apply_float64(x, kernel) + bias)

    def _advance(self, x, fields, h, xp):
        return x + h * fields[0](x)

    def lipschitz_bound(self, input_shape) -> float:
        """Product of 1 + h |K|."""
        return math.prod(1.0 + self.step_size * n for (n,) in self._norms(input_shape))


class PublishedContractiveFlow(FreeFlow):
    r"""The contractive Hamiltonian network as published, with its published step.

    $y + h(J - \gamma I)[K\tanh(K^Ty + b) + \kappa^2y]$, $\kappa = 0.02$, h = 0.5, and the damping
    $\gamma = 1/\sqrt{1 - \alpha^2 - \epsilon}$, $\alpha = (c_2 - c_1)/(c_2 + c_1)$, of the
    present kernels, through which no gradient flows. The ODE contracts; a step of 0.5 is far
    outside the range in which the discrete map would (`facts`). This is a layer of its own because
    `ContractiveHamiltonianFlow` computes its damping from the norm that the constraint allows.
    """

    kappa = 0.02

    def _damping(self, norm, xp):
        c1, c2 = self.kappa**2, self.kappa**2 + norm**2
        # 1 - alpha^2 without the cancellation
        rest = 4.0 * c1 * c2 / (c1 + c2) ** 2 - EPSILON
        # the formula ends at |K| = 40, where kappa is too small for the given epsilon
        return 1.0 / xp.sqrt(xp.maximum(rest, EPSILON))

    def _field(self, x, kernel, bias):
        return gradient_field(self.operator, self._activation, x, kernel, bias)

    def _field_float64(self, x, kernel, bias):
        return gradient_field_float64(self.operator, self._activation, x, kernel, bias)

    def _advance(self, x, fields, damping, xp):
        gradient = fields[0](x) + self.kappa**2 * x
        # J as a matrix product: with few channels faster than cutting the channels in halves
        features = gradient.shape[-1]
        turn = canonical_matrix(features).T.astype("float32")
        turned = xp.matmul(xp.reshape(gradient, (-1, features)), turn)
        turned = xp.reshape(turned, (-1, *gradient.shape[1:]))
        return x + self.step_size * (turned - damping * gradient)

    def call(self, x):
        kernels = ops.stop_gradient(ops.stack([k.value for k in self.kernels]))
        norm = ops.max(ops.svd(kernels, compute_uv=False))
        damping = ops.cast(self._damping(norm, ops), self.compute_dtype)
        for i in range(self.steps):
            x = self._advance(x, self._fields(i), damping, ops)
        return x

    @property
    def gamma(self) -> float:
        """The present damping (float64)."""
        norm = max(np.linalg.norm(float64(k), 2) for k in self.kernels)
        return float(self._damping(norm, np))

    def call_float64(self, x):
        x, damping = np.asarray(x, dtype=np.float64), self.gamma
        for i in range(self.steps):
            x = self._advance(x, self._fields_float64(i), damping, np)
        return x

    def lipschitz_bound(self, input_shape) -> float:
        """Product of the (attainable) factors of the steps."""
        damping, c1 = self.gamma, self.kappa**2
        return math.prod(
            theory.euler_factor(self.step_size, damping, c1, c1 + n**2)
            for (n,) in self._norms(input_shape)
        )


def flow(name, seed):
    """The eight steps of a network of `NETWORKS`."""
    operator = operators.Pointwise(CHANNELS)
    if name == "resnet":
        return ResidualFlow(operator, seed=seed, name="flow")
    if name == "chnode_published":
        return PublishedContractiveFlow(operator, seed=seed, name="flow")
    if name == "hdnn":
        return HamiltonianFlow(
            operator, hamiltonian="joint", integrator="euler", step_size=STEP_SIZE, steps=STEPS,
            constraint=None, seed=seed, name="flow",
        )  # fmt: skip
    if name == "chnode_provable":
        return ContractiveHamiltonianFlow(operator, steps=STEPS, seed=seed, name="flow", **PROVABLE)
    raise ValueError(f"`name` must be one of {list(NETWORKS)}. Received: name={name!r}")


PROVABLE = {"kappa": 0.5, "margin": 1.0, "max_norm": 1.0, "step_size": "optimal"}

NETWORKS = {
    "resnet": "ResNet",
    "hdnn": "H-DNN",
    "chnode_published": "CH-NODE, published",
    "chnode_provable": "CH-NODE, provable",
}
# weight of |w|^2 / 2 and of the smoothness penalty: the published ones
WEIGHT_DECAY = {"hdnn": 4e-3}
SMOOTHNESS = {"hdnn": 8e-3}
PUBLISHED_WEIGHT_DECAY, PUBLISHED_SMOOTHNESS = 2e-4, 1e-3


def network(name, seed=0):
    """A network of `NETWORKS` from images (28, 28, 1) in [0, 1] to ten logits."""
    steps = flow(name, seed)
    glorot = keras.initializers.GlorotUniform
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Rescaling(1 / DEVIATION, offset=-MEAN / DEVIATION)(inputs)
    x = keras.layers.Conv2D(
        CHANNELS, 3, padding="same", kernel_initializer=glorot(seed), name="lift"
    )(x)
    x = steps(x)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(10, kernel_initializer=glorot(seed + 1), name="head")(x)
    if name != "chnode_provable":
        # the published start, N(0, 1); inside the constraint of the provable one it cannot stay
        rng = np.random.default_rng(seed)
        for variable in [*steps.kernels, *steps.biases]:
            variable.assign(rng.standard_normal(tuple(variable.shape)).astype("float32"))
    return keras.Model(inputs, outputs, name=name)


def penalised_loss(model):
    r"""Cross-entropy + weight decay + smoothness of the weights in time, as published.

    $\frac\lambda2\sum|w|^2 + \frac{\alpha h}2(N - 1)\sum_j\|K_{j+1} - K_j\|^2 +
    |b_{j+1} - b_j|^2$; the first is what PyTorch's Adam calls weight decay.
    """
    decay = WEIGHT_DECAY.get(model.name, PUBLISHED_WEIGHT_DECAY)
    smoothness = SMOOTHNESS.get(model.name, PUBLISHED_SMOOTHNESS)
    steps = model.get_layer("flow")
    weight = 0.5 * smoothness * steps.step_sizes()[0] * (STEPS - 1)

    def loss(labels, logits):
        entropy = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        penalty = 0.5 * decay * sum(ops.sum(ops.square(w)) for w in model.trainable_variables)
        for variables in (steps.kernels, steps.biases):
            stacked = ops.stack([v.value for v in variables])
            penalty = penalty + weight * ops.sum(ops.square(stacked[1:] - stacked[:-1]))
        return entropy + penalty

    return loss


def facts(model) -> dict:
    """What the theory says of the trained weights (float64); None where it says nothing."""
    steps = model.get_layer("flow")
    shape = (None, 28, 28, CHANNELS)
    norm = max(steps.operator.norm_float64(float64(k), shape) for k in steps.kernels)
    damping = getattr(steps, "gamma", None)
    found = {
        "step_size": steps.step_sizes()[0],
        "largest_kernel_norm": norm,
        "flow_lipschitz_bound": steps.lipschitz_bound(shape),
        "damping": damping,
        "contraction_rate_of_ode": None,
        "largest_contractive_step": None,
    }
    if damping is not None:
        c1 = steps.kappa**2
        found["contraction_rate_of_ode"] = theory.contraction_rate(damping, c1, c1 + norm**2)
        found["largest_contractive_step"] = theory.euler_step_limit(damping, c1, c1 + norm**2)
    return found
