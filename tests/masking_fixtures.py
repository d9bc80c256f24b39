"""Nine ways to look robust without being it, around the linear model of `robustness_fixtures`."""

import keras
import numpy as np
from keras import ops
from robustness_fixtures import ridge


class Scaled(keras.layers.Layer):
    """Logits times a large number: cross-entropy and its gradient vanish in float32."""

    def call(self, z):
        return 1000.0 * z


class Shifted(keras.layers.Layer):
    """Logits plus a large number: differences drown in the rounding of float32."""

    def call(self, z):
        return z + 1e6


class Softmax(keras.layers.Layer):
    """Probabilities in place of logits."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def call(self, z):
        return ops.softmax(self.factor * z)


class ZeroGradient(keras.layers.Layer):
    def call(self, x):
        return ops.stop_gradient(x)


class NegatedGradient(keras.layers.Layer):
    def call(self, x):
        return 2.0 * ops.stop_gradient(x) - x


class NoisyGradient(keras.layers.Layer):
    """The identity, with a gradient that points somewhere else at each pixel."""

    def call(self, x):
        factors = np.random.default_rng(0).normal(scale=10.0, size=x.shape[-1]).astype("float32")
        wrong = x * ops.convert_to_tensor(factors)
        return x + wrong - ops.stop_gradient(wrong)


class Rounded(keras.layers.Layer):
    """17 grey levels: flat almost everywhere."""

    def call(self, x):
        return ops.round(x * 16.0) / 16.0


class Noise(keras.layers.Layer):
    """Logits with noise, at inference as well."""

    random_at_inference = True

    def build(self, input_shape):
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, z):
        return z + keras.random.normal(ops.shape(z), stddev=2.0, seed=self.seed_generator)


def wrapped(before=(), after=()):
    """The linear model with layers before and after it."""
    return keras.Sequential([keras.Input((64,)), *before, *ridge().layers, *after])


# name: (model, warnings of which at least one must come)
FIXTURES = {
    "scaled": (lambda: wrapped(after=[Scaled()]), {"zero-gradients-ce"}),
    "shifted": (lambda: wrapped(after=[Shifted()]), {"gradient-mismatch"}),
    "softmax": (lambda: wrapped(after=[Softmax()]), {"probabilities"}),
    "sharp softmax": (lambda: wrapped(after=[Softmax(20.0)]), {"probabilities", "zero-gradients"}),
    "zero gradient": (lambda: wrapped([ZeroGradient()]), {"zero-gradients"}),
    "negated gradient": (lambda: wrapped([NegatedGradient()]), {"gradient-mismatch"}),
    "noisy gradient": (lambda: wrapped([NoisyGradient()]), {"gradient-mismatch"}),
    "rounded": (lambda: wrapped([Rounded()]), {"zero-gradients"}),
    "random": (lambda: wrapped(after=[Noise()]), {"randomised-model"}),
}
