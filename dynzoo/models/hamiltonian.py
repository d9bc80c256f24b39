"""Hamiltonian networks: each stage a flow that can be undone, or one that contracts."""

from __future__ import annotations

import keras

from dynzoo import operators
from dynzoo.layers.contractive_hamiltonian_flow import ContractiveHamiltonianFlow
from dynzoo.layers.hamiltonian_flow import HamiltonianFlow
from dynzoo.layers.isometries import SpaceToDepth
from dynzoo.models.arguments import (
    check_classes,
    check_image,
    check_normalization,
    check_stages,
    layer_seeds,
)
from dynzoo.utils.arguments import integer, one_of

__all__ = ["hamiltonian_classifier"]

_MEAN = (0.4914, 0.4822, 0.4465)
_DEVIATION = (0.2470, 0.2435, 0.2616)


def hamiltonian_classifier(
    input_shape=(32, 32, 3),
    num_classes=10,
    widths=(32, 64, 128),
    steps=(4, 4, 4),
    flow="hamiltonian",
    operator="conv",
    activation="tanh",
    step_size=None,
    max_norm=None,
    kappa=0.5,
    margin=1.0,
    normalization=None,
    head="mean",
    block_size=2,
    mean=_MEAN,
    deviation=_DEVIATION,
    seed=0,
    name=None,
) -> keras.Model:
    r"""Builds a classifier whose stages are flows on phase space, $x = (q, p)$.

    Normalisation of the pixels; space-to-depth and a 3x3 lift; per stage ``steps[k]`` time steps on
    ``widths[k]`` channels, the first half of which is q; a 2x2 convolution with stride 2 between
    stages; one dense layer on the mean over the image, or on all pixels. The flows are

    $$q' = A^T\sigma(Ap + a), \quad p' = -B^T\sigma(Bq + b) \qquad (hamiltonian, leapfrog)$$
    $$x' = (J - \gamma I)\,[K^T\sigma(Kx + b) + \kappa^2x] \qquad (contractive, Euler)$$

    Guarantee (``"hamiltonian"``): every stage is symplectic, keeps volumes and has an inverse, for
    all weights and steps, and gradients do not vanish in it. Guarantee (``"contractive"``): every
    stage is 1-Lipschitz, at a known rate. The lift, the convolutions between stages and the head
    are free: ``dynzoo.certify`` bounds the whole.

    Args:
        input_shape: (height, width, channels) in pixels; height and width divisible by
            ``block_size * 2 ** (len(widths) - 1)``.
        num_classes: number of classes, at least 2.
        widths: channels of each stage, even.
        steps: time steps of each stage.
        flow: ``"hamiltonian"`` or ``"contractive"``.
        operator: ``"conv"`` (3x3, zero padding) or ``"pointwise"`` (each pixel by itself); as many
            outputs as inputs.
        activation: name of a monotone activation with slopes in [0, 1].
        step_size: time step h of the flows; ``None`` for 0.5 (hamiltonian) or the step that
            contracts most (contractive).
        max_norm: norm that the constraint allows the operators; ``None`` for no constraint
            (hamiltonian) or 1 (contractive).
        kappa: square root of the quadratic part of the energy, positive (contractive only).
        margin: relative distance of the damping from the critical one (contractive only).
        normalization: ``"batch"`` to normalise each stage's input over the batch, or ``None``.
        head: ``"mean"`` (of the image) or ``"flatten"``: what the dense layer sees.
        block_size: side of the first space-to-depth block in pixels; 1 for none.
        mean: channel means of the normalisation, for images in [0, 1].
        deviation: channel standard deviations, positive.
        seed: integer seed of all initialisers.
        name: name of the model.

    Returns:
        A functional ``keras.Model`` from images in [0, 1] to logits.

    Raises:
        ValueError: if an argument is out of its range, naming it.

    Example:

    >>> from dynzoo.models import hamiltonian_classifier
    >>> model = hamiltonian_classifier(widths=(8, 16), steps=(2, 2))
    >>> model.output_shape
    (None, 10)

    Reference: C. Galimberti et al., "Hamiltonian deep neural networks guaranteeing non-vanishing
    gradients by design", IEEE TAC 2023 (arXiv 2105.13205); M. Zakwan, L. Xu and G. Ferrari-Trecate,
    "Robust classification using contractive Hamiltonian neural ODEs", IEEE L-CSS 7 (2023), arXiv
    2203.11805. The architecture is ours.
    """
    check_stages(widths, steps)
    widths, steps = tuple(widths), tuple(steps)
    if any(width % 2 for width in widths):
        raise ValueError(f"`widths` must be even: halves are q and p. Received: widths={widths}")
    one_of("flow", flow, ("hamiltonian", "contractive"))
    one_of("operator", operator, tuple(_OPERATORS))
    one_of("normalization", normalization, (None, "batch"))
    one_of("head", head, ("mean", "flatten"))
    integer("block_size", block_size)
    check_classes(num_classes)
    check_image(input_shape, block_size * 2 ** (len(widths) - 1))
    means, variances = check_normalization(mean, deviation, input_shape[-1])
    seeds = layer_seeds(seed, 50)
    contraction = {"kappa": kappa, "margin": margin} if flow == "contractive" else None

    inputs = keras.Input(tuple(input_shape), name="image")
    x = keras.layers.Normalization(mean=means, variance=variances)(inputs)
    if block_size > 1:
        x = SpaceToDepth(block_size)(x)
    for stage, (width, count) in enumerate(zip(widths, steps, strict=True)):
        size, stride = (3, 1) if stage == 0 else (2, 2)
        x = keras.layers.Conv2D(
            width,
            size,
            strides=stride,
            padding="same",
            kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds)),
            name=f"lift_{stage}",
        )(x)
        if normalization == "batch":
            x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
        x = _flow(
            _OPERATORS[operator](width if contraction else width // 2), count, activation,
            step_size, max_norm, contraction, next(seeds), f"flow_{stage}",
        )(x)  # fmt: skip
    x = keras.layers.Flatten()(x) if head == "flatten" else keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(
        num_classes,
        kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds)),
        name="head",
    )(x)
    return keras.Model(inputs, outputs, name=name or "hamiltonian")


_OPERATORS = {"conv": operators.Conv, "pointwise": operators.Pointwise}


def _flow(operator, steps, activation, step_size, max_norm, contraction, seed, name):
    """The flow of a stage; ``contraction`` holds what only the damped one knows."""
    shared = {"activation": activation, "steps": steps, "seed": seed, "name": name}
    if contraction is not None:
        return ContractiveHamiltonianFlow(
            operator,
            step_size="optimal" if step_size is None else step_size,
            max_norm=1.0 if max_norm is None else max_norm,
            **contraction,
            **shared,
        )
    free = max_norm is None
    return HamiltonianFlow(
        operator,
        integrator="leapfrog",
        step_size=0.5 if step_size is None else step_size,
        constraint=None if free else "spectral_norm",
        max_norm=1.0 if free else max_norm,
        **shared,
    )
