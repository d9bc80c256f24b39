"""The plain residual network: nothing is constrained, batches are normalised, nothing is proved."""

from __future__ import annotations

import keras

from dynzoo.layers.isometries import SpaceToDepth
from dynzoo.models.arguments import (
    check_classes,
    check_image,
    check_normalization,
    check_stages,
    layer_seeds,
)
from dynzoo.utils.arguments import integer

__all__ = ["resnet_classifier"]

_MEAN = (0.4914, 0.4822, 0.4465)
_DEVIATION = (0.2470, 0.2435, 0.2616)


def resnet_classifier(
    input_shape=(32, 32, 3),
    num_classes=10,
    widths=(24, 48, 96, 256),
    steps=(1, 1, 1, 1),
    block_size=2,
    mean=_MEAN,
    deviation=_DEVIATION,
    seed=0,
    name=None,
) -> keras.Model:
    r"""Builds a pre-activation residual network with batch normalisation.

    Normalisation of the pixels; space-to-depth and a 3x3 lift; per stage ``steps[k]`` explicit
    Euler steps of size one on ``widths[k]`` channels,

    $$x \leftarrow x + B\,relu(N_2(A\,relu(N_1(x))))$$

    with free 3x3 convolutions A and B and batch normalisations $N_i$; a 2x2 convolution with
    stride 2 between stages; then normalisation, ReLU, the mean over the image and one dense layer.
    The baseline that the networks with guarantees are compared with: the same time discretisation
    of a field without structure.

    Guarantee: none. ``dynzoo.certify`` gives the true bound of its constant at inference, which
    is so large that no image keeps a radius worth the name.

    Args:
        input_shape: (height, width, channels) in pixels; height and width divisible by
            ``block_size * 2 ** (len(widths) - 1)``.
        num_classes: number of classes, at least 2.
        widths: channels of each stage.
        steps: residual steps of each stage.
        block_size: side of the first space-to-depth block in pixels.
        mean: channel means of the normalisation, for images in [0, 1].
        deviation: channel standard deviations, positive.
        seed: integer seed of all initialisers.
        name: name of the model.

    Returns:
        A functional ``keras.Model`` from images in [0, 1] to logits.

    Raises:
        ValueError: if an argument is out of its range, naming it.

    Example:

    >>> from dynzoo.models import resnet_classifier
    >>> model = resnet_classifier(widths=(8, 16), steps=(1, 1))
    >>> model.output_shape
    (None, 10)

    Reference: K. He et al., "Identity mappings in deep residual networks" (ECCV 2016).
    """
    check_stages(widths, steps)
    widths, steps = tuple(widths), tuple(steps)
    integer("block_size", block_size)
    check_classes(num_classes)
    check_image(input_shape, block_size * 2 ** (len(widths) - 1))
    means, variances = check_normalization(mean, deviation, input_shape[-1])
    seeds = layer_seeds(seed)

    def convolution(x, width, size=3, strides=1):
        return keras.layers.Conv2D(
            width,
            size,
            strides=strides,
            padding="same",
            use_bias=False,  # the normalisation that follows has one
            kernel_initializer=keras.initializers.HeNormal(seed=next(seeds)),
        )(x)

    inputs = keras.Input(tuple(input_shape), name="image")
    x = keras.layers.Normalization(mean=means, variance=variances)(inputs)
    x = convolution(SpaceToDepth(block_size)(x), widths[0])
    for stage, (width, count) in enumerate(zip(widths, steps, strict=True)):
        if stage:
            x = convolution(x, width, size=2, strides=2)
        for _ in range(count):
            y = convolution(_activated(x), width)
            y = convolution(_activated(y), width)
            x = keras.layers.Add()([x, y])
    x = keras.layers.GlobalAveragePooling2D()(_activated(x))
    outputs = keras.layers.Dense(
        num_classes,
        kernel_initializer=keras.initializers.GlorotNormal(seed=next(seeds)),
        name="head",
    )(x)
    return keras.Model(inputs, outputs, name=name or "resnet")


def _activated(x):
    """Batch normalisation, its averages over some ten batches, then ReLU."""
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))
