"""Small models with random weights, and how fast their outputs move."""

import keras
import numpy as np
from keras import layers as kl

from dynzoo.backend import to_numpy
from dynzoo.certificates import certify, forward_float64

SHAPE = (4, 4, 2)
CLASSES = 3


def images(n=12, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype("float32")


def randomize(model, seed=0):
    """Random values everywhere, biases and moving averages too."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(scale=0.6, size=weight.shape)
        weight.assign(np.abs(value) + 0.2 if "variance" in weight.path else value)
    return model


def classifier(*layers, shape=SHAPE, seed=0):
    return randomize(keras.Sequential([keras.Input(shape), *layers]), seed)


def linear(kernel, bias):
    model = keras.Sequential([keras.Input((len(kernel),)), kl.Dense(len(bias))])
    model.set_weights([np.asarray(kernel, "float32"), np.asarray(bias, "float32")])
    return model


def worst_gain(model, seed=0, points=3):
    """Largest measured |f(x) - f(y)| / |x - y|: random pairs, and along singular directions."""
    rng = np.random.default_rng(seed)
    shape = model.input_shape[1:]
    x, y = rng.normal(size=(2, 40, *shape))
    y[20:] = x[20:] + 1e-3 * y[20:]
    moved = np.linalg.norm(forward_float64(model, x) - forward_float64(model, y), axis=1)
    gains = [moved / np.linalg.norm((x - y).reshape(40, -1), axis=1)]
    size = int(np.prod(shape))
    step = (1e-6 * np.eye(size)).reshape(size, *shape)
    for point in x[:points]:
        ahead, behind = forward_float64(model, point + step), forward_float64(model, point - step)
        gains.append([np.linalg.norm((ahead - behind) / 2e-6, ord=2)])
    return float(np.max(np.concatenate(gains)))


def assert_sound(model, seed=0):
    bound = certify(model).lipschitz
    measured = worst_gain(model, seed)
    assert measured <= bound * (1 + 1e-6)
    x = images(5, model.input_shape[1:], seed)
    computed = to_numpy(model(x, training=False))
    reference = forward_float64(model, x)
    scale = max(1.0, float(np.max(np.abs(reference))))
    np.testing.assert_allclose(computed, reference, atol=1e-5 * scale)
    return measured / bound
