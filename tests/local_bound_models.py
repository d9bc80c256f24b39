"""Small networks of the kinds that local bounds know, and points in balls around images."""

import functools

import keras
import numpy as np
from keras import layers as kl
from keras import ops

import dynzoo.layers as dl
from dynzoo import operators
from dynzoo.certificates import forward_float64

SHAPE = (4, 4, 2)


def images(n=6, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype("float32")


def randomize(model, seed):
    """Random values everywhere, so that biases and scales count."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(scale=0.5, size=weight.shape)
        weight.assign(np.abs(value) + 0.2 if "variance" in weight.path else value)
    return model


def perceptron(units=(16, 16), inputs=8, classes=4, seed=0):
    keras.utils.set_random_seed(seed)
    hidden = [kl.Dense(n, "relu", kernel_initializer="he_normal") for n in units]
    model = keras.Sequential([keras.Input((inputs,)), *hidden, kl.Dense(classes)])
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        layer.bias.assign(rng.normal(scale=0.3, size=layer.bias.shape))
    return model


@functools.cache  # building it takes long on some backends; `randomize` makes it new
def build_everything():
    """One model with nearly all layers that are supported."""
    inputs = keras.Input(SHAPE)
    x = kl.Normalization(mean=[0.4, 0.5], variance=[0.1, 0.2])(inputs)
    x = kl.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(x)
    x = kl.ReLU(negative_slope=0.1)(dl.LearnedScale()(x))
    y = kl.Conv2D(4, 2, padding="same", activation="relu")(kl.BatchNormalization()(x))
    x = kl.Add()([x, kl.Dropout(0.1)(y)])
    x = dl.GradientFlow(operators.Conv(3), constraint="spectral_norm", steps=2)(x)
    x = dl.GradientFlow(
        operators.Pointwise(3), constraint=None, step_size=0.3, direction="expansive"
    )(x)
    x = dl.SwitchingFlow(operators.ShiftedPointwise(4), mode="flexible")(x)
    x = dl.SwitchingFlow(operators.Conv(4), mode="prescribed")(x)
    x = kl.Flatten()(kl.MaxPooling2D(2)(x))
    x = kl.Subtract()([kl.Dense(5, "leaky_relu")(x), kl.Dense(5)(kl.Reshape((4,))(x))])
    return keras.Model(inputs, dl.UnitRowDense(3)(kl.LeakyReLU(0.3)(x)))


def everything(seed=0):
    return randomize(build_everything(), seed)


@functools.cache
def build_pooled():
    inputs = keras.Input(SHAPE)
    x = kl.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    x = kl.AveragePooling2D(2)(kl.Rescaling(1.5, 0.1)(kl.Activation("relu")(x)))
    return keras.Model(inputs, kl.Dense(3)(kl.Flatten()(x)))


def pooled(seed=0):
    return randomize(build_pooled(), seed)


@functools.cache
def build_written():
    """Bare operations, as residual networks are written."""
    inputs = keras.Input(SHAPE)
    x = (inputs - 0.5) / np.array([0.3, 0.2], "float32")
    x = x + 0.5 * ops.relu(kl.Dense(2)(ops.transpose(x, (0, 2, 1, 3))))
    x = kl.Conv2D(3, 2, activation=ops.relu)(x)[:, 1:, ::2]
    x = 1.0 - ops.leaky_relu(-x, 0.3)
    x = ops.subtract(kl.Dense(3)(x), ops.flip(x, axis=1))
    return keras.Model(inputs, kl.Dense(3)(ops.reshape(x, (-1, 12))))


def written(seed=0):
    return randomize(build_written(), seed)


@functools.cache
def build_bent():
    """What passes back know besides: groups, dilation, padding, curves, overlapping windows."""
    inputs = keras.Input((6, 5, 2))
    x = kl.ZeroPadding2D(((1, 2), (0, 1)))(inputs)
    x = kl.Conv2D(4, 2, dilation_rate=2, groups=2, activation="elu")(x)
    y = kl.Conv2D(4, 3, padding="same", activation="gelu")(kl.BatchNormalization()(x))
    x = kl.Add()([kl.ReLU(max_value=1.5)(x), y])
    x = kl.MaxPooling2D(2, strides=1)(x)
    x = kl.AveragePooling2D(2, strides=1)(kl.Conv2D(4, 2, strides=2, padding="same")(x))
    x = kl.Dense(3, "tanh")(kl.MaxPooling2D(2, padding="same")(x))
    x = kl.Flatten()(kl.Permute((3, 1, 2))(x))
    return keras.Model(inputs, kl.Dense(3)(kl.ELU(0.7)(kl.Dense(5, "relu")(x))))


def bent(seed=0):
    return randomize(build_bent(), seed)


@functools.cache
def build_residual():
    """A small residual network of rectifiers."""
    inputs = keras.Input((6, 6, 2))
    x = kl.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    y = kl.Conv2D(3, 3, padding="same", activation="relu")(x)
    x = kl.ReLU()(kl.Add()([x, kl.Conv2D(3, 3, padding="same")(y)]))
    x = kl.Conv2D(4, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling2D()(x)))


def residual(seed=0):
    return randomize(build_residual(), seed)


@functools.cache
def build_joined():
    """What convolutional networks of others have besides, and joins."""
    inputs = keras.Input(SHAPE)
    x = dl.PositionOffset()(dl.MeanShift([0.1, -0.2])(inputs))
    x = kl.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = kl.PReLU(shared_axes=[1, 2])(x)
    y = kl.Conv2DTranspose(3, 3, strides=2, padding="same", activation="relu")(x)
    y = dl.MaxMin()(kl.Conv2D(4, 2, strides=2)(kl.Cropping2D(((1, 0), (0, 1)))(y)))
    x = kl.Concatenate()([y, kl.Conv2D(2, 2)(x), ops.maximum(y, 0.5 * y)])
    x = kl.Minimum()([x, kl.Maximum()([kl.Conv2D(10, 1)(x), kl.Average()([x, -x])])])
    x = dl.SpaceToDepth(2)(ops.concatenate([x[:, 1:], x, x[:, :1]], axis=1)[:, :, :2])
    x = kl.Concatenate(axis=-1)([kl.GlobalMaxPooling2D()(x), kl.Flatten()(x[:, :1, :1])])
    return keras.Model(inputs, kl.Dense(3)(kl.PReLU()(x)))


def joined(seed=0):
    return randomize(build_joined(), seed)


@functools.cache
def build_sequence():
    """Layers of sequences."""
    inputs = keras.Input((9, 2))
    x = kl.Conv1D(4, 3, padding="causal", dilation_rate=2)(kl.ZeroPadding1D((1, 2))(inputs))
    x = kl.MaxPooling1D(3, 2, padding="same")(ops.clip(x, -0.7, 0.9))
    x = kl.DepthwiseConv1D(2, activation="relu")(x)
    x = kl.Conv1DTranspose(3, 3, strides=2)(kl.Cropping1D(1)(x))
    y = kl.AveragePooling1D(2, padding="same")(x)
    return keras.Model(
        inputs,
        kl.Dense(3)(kl.Add()([kl.GlobalAveragePooling1D()(y), kl.GlobalMaxPooling1D()(x)])),
    )


def sequence(seed=0):
    return randomize(build_sequence(), seed)


@functools.cache
def build_isometric():
    """The zoo's own blocks, those of its isometric networks among them."""
    inputs = keras.Input((4, 4, 3))
    x = dl.ChannelPadding(6)(inputs)
    x = dl.SpatialShift(fraction=0.7)(dl.OrthonormalPointwise(6, use_bias=True)(x))
    x = dl.MaxMinShift(reverse=True)(dl.GradientFlow(operators.ShiftedPointwise(4))(x))
    x = dl.MaxMinShift(padding="zero", fraction=1.0)(dl.BetaAbs(0.6)(x))
    x = dl.SpatialShift(reverse=True, padding="zero")(x)
    x = kl.Flatten()(dl.ScaledAveragePooling2D(2)(x))
    x = dl.BetaAbs(0.1)(dl.ChannelPadding(10)(dl.OrthonormalDense(8)(x)))
    return keras.Model(inputs, dl.UnitRowDense(3)(x))


def isometric(seed=0):
    return randomize(build_isometric(), seed)


MODELS = {
    "everything": everything,
    "pooled": pooled,
    "written": written,
    "isometric": isometric,
    "perceptron": lambda seed=0: perceptron(),
}


# Those that only passes back know, in addition.
ALL_MODELS = {
    **MODELS,
    "bent": bent,
    "residual": residual,
    "joined": joined,
    "sequence": sequence,
}


def in_ball(center, radius, rng, count):
    """Points (count, n, ...) of the balls, a third of them on the sphere."""
    step = rng.standard_normal((count, *center.shape))
    share = np.minimum(1.0, 1.5 * rng.uniform(size=(count, len(center))))
    lengths = np.linalg.norm(step.reshape(count, len(center), -1), axis=2)
    return center + step * (share * radius / lengths).reshape(
        *lengths.shape, *step[0, 0].ndim * [1]
    )


def gradient(model, x, directions):
    """Of the logits along one direction (K,) or several (K, q), by central differences."""
    steps = 1e-6 * np.eye(x.size).reshape(x.size, *x.shape)
    ends = forward_float64(model, np.concatenate([x + steps, x - steps]))
    slopes = (ends[: x.size] - ends[x.size :]) @ directions / 2e-6
    return slopes.T.reshape(*directions.shape[1:], *x.shape)
