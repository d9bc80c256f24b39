"""Residual networks as convection-diffusion equations: the noise is inside, or it is not."""

from __future__ import annotations

import keras
from keras import ops

from dynzoo import operators
from dynzoo.inference.model_layers import random_layers
from dynzoo.layers.convection_diffusion_flow import ConvectionDiffusionFlow
from dynzoo.layers.isometries import SpaceToDepth
from dynzoo.models.arguments import (
    check_classes,
    check_image,
    check_normalization,
    check_stages,
    layer_seeds,
)
from dynzoo.utils.arguments import integer, number

__all__ = ["convection_diffusion_classifier", "feynman_kac_model"]

_MEAN = (0.4914, 0.4822, 0.4465)
_DEVIATION = (0.2470, 0.2435, 0.2616)


def convection_diffusion_classifier(
    input_shape=(32, 32, 3),
    num_classes=10,
    widths=(32, 64, 128),
    steps=(2, 2, 2),
    diffusion=0.1,
    input_noise=0.0,
    step_size=0.5,
    velocity="free",
    max_norm=None,
    activation="relu",
    inference="deterministic",
    samples=8,
    block_size=2,
    mean=_MEAN,
    deviation=_DEVIATION,
    seed=0,
    name=None,
) -> keras.Model:
    r"""Builds a residual network whose every step may be followed by diffusion.

    Normalisation of the pixels; space-to-depth and a 3x3 lift; per stage ``steps[k]`` steps

    $$x \leftarrow x + h\,B^T\sigma(Ax + b) + \sigma\sqrt{2h}\,n, \quad n \sim N(0, I)$$

    of ``ConvectionDiffusionFlow`` on ``widths[k]`` channels; a 2x2 convolution with stride 2
    between stages; ReLU, mean over the image, and one dense layer. ``diffusion=0`` is the plain
    residual network. The feature vector of each pixel is scaled to unit variance where a stage
    begins (``LayerNormalization`` without weights), so that ``diffusion`` is relative to the
    features and the network cannot outgrow its noise by larger weights in the lift. Nothing is
    normalised over a batch: the answer to one image does not depend on the others.

    Guarantee: none for the network without noise. ``dynzoo.certificates.smooth`` certifies its mean
    over noise on the pixels, for which ``input_noise`` prepares it in training: a step of pure
    diffusion before the first convection. With ``inference="random"``, ``feynman_kac_mean`` is the
    mean over all noise in the features.

    Args:
        input_shape: (height, width, channels) in pixels; height and width divisible by
            ``block_size * 2 ** (len(widths) - 1)``.
        num_classes: number of classes, at least 2.
        widths: channels of each stage.
        steps: time steps of each stage.
        diffusion: noise level $\sigma$ of the flows, at least 0; one step adds noise of standard
            deviation $\sigma\sqrt{2h}$ to features of unit variance.
        input_noise: standard deviation of noise on the pixels in training, in [0, 1], in units of
            the pixel range [0, 1].
        step_size: time step h of the flows.
        velocity: ``"free"`` or ``"gradient"``, as in ``ConvectionDiffusionFlow``.
        max_norm: bound of |A| and |B|, or ``None`` for none.
        activation: name of a monotone activation inside the steps.
        inference: what the noise of the flows does outside training: ``"deterministic"`` (it is
            off), ``"mean"`` or ``"random"``.
        samples: paths of ``inference="mean"``.
        block_size: side of the space-to-depth block in pixels.
        mean: channel means of the normalisation, for images in [0, 1].
        deviation: channel standard deviations, positive.
        seed: integer seed of all initialisers and of the noise.
        name: name of the model.

    Returns:
        A functional ``keras.Model`` from images in [0, 1] to logits.

    Raises:
        ValueError: if an argument is out of its range, naming it.

    Example:

    >>> from dynzoo.models import convection_diffusion_classifier
    >>> model = convection_diffusion_classifier(widths=(8, 16), steps=(1, 1), diffusion=0.2)
    >>> model.output_shape
    (None, 10)

    Reference: T. Wang et al., "An axiomatized PDE model of deep neural networks" (arXiv
    2307.12333); B. Wang et al., "ResNets ensemble via the Feynman-Kac formalism" (NeurIPS 2019).
    The architecture is ours.
    """
    check_stages(widths, steps)
    widths, steps = tuple(widths), tuple(steps)
    number("diffusion", diffusion, closed="low")
    number("input_noise", input_noise, 0.0, 1.0, closed="both")
    integer("block_size", block_size)
    check_classes(num_classes)
    check_image(input_shape, block_size * 2 ** (len(widths) - 1))
    means, variances = check_normalization(mean, deviation, input_shape[-1])
    seeds = layer_seeds(seed, 50)

    inputs = x = keras.Input(tuple(input_shape), name="image")
    if input_noise > 0:
        x = keras.layers.GaussianNoise(input_noise, seed=seed)(x)
    x = keras.layers.Normalization(mean=means, variance=variances)(x)
    x = SpaceToDepth(block_size)(x)
    for stage, (width, count) in enumerate(zip(widths, steps, strict=True)):
        size, stride = (3, 1) if stage == 0 else (2, 2)
        x = keras.layers.Conv2D(
            width,
            size,
            strides=stride,
            padding="same",
            kernel_initializer=keras.initializers.GlorotNormal(seed=next(seeds)),
        )(x)
        x = _unit_variance()(x)
        x = ConvectionDiffusionFlow(
            operators.Conv(width),
            sigma=diffusion,
            step_size=step_size,
            steps=count,
            velocity=velocity,
            activation=activation,
            max_norm=max_norm,
            inference=inference,
            samples=samples,
            seed=next(seeds),
        )(x)
    x = keras.layers.ReLU()(_unit_variance()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(
        num_classes,
        kernel_initializer=keras.initializers.GlorotNormal(seed=next(seeds)),
        name="head",
    )(x)
    return keras.Model(inputs, outputs, name=name or "convection_diffusion")


def feynman_kac_model(model, samples=8, name=None) -> keras.Model:
    r"""Builds the model whose answer is the mean of ``samples`` passes of a random one.

    $$u_M(x) = \frac1M \sum_{m=1}^M f(X_T^{(m)}), \quad X_0^{(m)} = x$$

    A Monte-Carlo step of the Feynman-Kac formula as a Keras graph, so that an attack follows the
    gradient of the mean over the noise (expectation over transformation) and not that of one
    draw. Each pass draws anew where the backend keeps the state of random generators inside
    compiled functions (PyTorch, TensorFlow); attacks on JAX see the same draws each time.

    Args:
        model: built model of one output that is random at inference, such as
            ``convection_diffusion_classifier`` with ``inference="random"``.
        samples: passes M, a positive integer.
        name: name of the new model, which shares the weights of ``model``.

    Raises:
        ValueError: if ``samples`` is not a positive integer, or no layer is random at inference.

    Example:

    >>> from dynzoo.models import convection_diffusion_classifier, feynman_kac_model
    >>> model = convection_diffusion_classifier(
    ...     (8, 8, 3), widths=(8,), steps=(1,), diffusion=0.2, inference="random"
    ... )
    >>> mean = feynman_kac_model(model, samples=4)
    >>> mean.output_shape
    (None, 10)

    Reference: A. Athalye, N. Carlini and D. Wagner, "Obfuscated gradients give a false sense of
    security" (ICML 2018), section 4 (expectation over transformation).
    """
    integer("samples", samples)
    if not random_layers(model):
        raise ValueError(
            "`model` must have a layer that is random at inference: the mean of others is one pass."
        )
    inputs = keras.Input(model.input_shape[1:], name="image")
    outputs = model(ops.repeat(inputs, samples, axis=0))
    outputs = ops.mean(ops.reshape(outputs, (-1, samples, model.output_shape[-1])), axis=1)
    return keras.Model(inputs, outputs, name=name or "feynman_kac")


def _unit_variance():
    """Scales the feature vector of each pixel, by itself, to mean 0 and variance 1."""
    return keras.layers.LayerNormalization(center=False, scale=False)
