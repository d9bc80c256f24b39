"""Two classifiers of handwritten digits whose exact robust accuracy is known in closed form."""

import functools

import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits


@functools.cache
def digits():
    """All 1797 digits: images of shape (1797, 64) in [0, 1], labels (1797,)."""
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype("float32"), y.astype("int64")


def held_out(count=200):
    x, y = digits()
    return x[1000 : 1000 + count], y[1000 : 1000 + count]


def ridge():
    """Linear one-versus-all ridge classifier: pixels / 16, targets +-1, lambda 1, scores x 10."""
    x, y = digits()
    a = np.hstack([x[:1000].astype(np.float64), np.ones((1000, 1))])
    targets = np.where(y[:1000, None] == np.arange(10), 1.0, -1.0)
    penalty = np.eye(65)
    penalty[64, 64] = 0.0
    w = 10 * np.linalg.solve(a.T @ a + penalty, a.T @ targets)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.layers[0].set_weights([w[:64], w[64]])
    return model


class Distances(keras.layers.Layer):
    """Minus the distance to each class mean: every logit is 1-Lipschitz."""

    def build(self, input_shape):
        x, y = digits()
        means = np.stack([x[:1000][y[:1000] == k].mean(axis=0) for k in range(10)])
        self.means = self.add_weight(shape=(10, 64), trainable=False, name="means")
        self.means.assign(means)

    def call(self, x):
        delta = x[:, None, :] - ops.convert_to_tensor(self.means)[None]
        return -ops.sqrt(ops.sum(delta * delta, axis=-1) + 1e-20)


def centroids():
    return keras.Sequential([keras.Input((64,)), Distances()])


class MarginCertificate:
    """Half the margin, times `factor`: right for `centroids()` at factor 1, wrong above 2."""

    def __init__(self, model, factor=1.0):
        self.model, self.factor = model, factor

    def radii(self, x, batch_size=256):
        z = np.asarray(ops.convert_to_numpy(self.model(x, training=False)), dtype=np.float64)
        top = np.sort(z, axis=1)
        radius = self.factor * (top[:, -1] - top[:, -2]) / 2
        return z.argmax(axis=1), np.maximum(radius * (1 - 1e-5) - 1e-6, 0.0)

    def to_dict(self):
        return {"type": "margin", "lipschitz": 1.0}
