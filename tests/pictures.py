"""Pictures made of noise, and a classifier of them whose answers are plain to see."""

import keras
import numpy as np
from keras import ops
from scipy import ndimage


def pictures(count=12, height=32, width=32, channels=3, seed=0):
    """Smooth shapes with edges and texture, in 8-bit values: nearer to photographs than noise."""
    noise = np.random.default_rng(seed).standard_normal((4, count, height, width, channels))
    smooth = [ndimage.gaussian_filter(noise[k], (0, s, s, 0)) for k, s in ((0, 4), (1, 2), (2, 1))]
    x = sum(part / part.std() for part in smooth) + 1.5 * (smooth[0] > 0) + 0.15 * noise[3]
    x = np.clip(0.45 + 0.13 * (x - x.mean()), 0, 1)
    return (np.rint(255 * x) / 255).astype("float32")


class Brightest(keras.layers.Layer):
    """Logits of three classes: minus the distance of the mean value from 0.2, 0.5 and 0.8."""

    def call(self, x):
        mean = ops.mean(x, axis=(1, 2, 3))
        return -ops.abs(mean[:, None] - ops.convert_to_tensor([[0.2, 0.5, 0.8]], "float32"))


def brightest(shape=(16, 16, 3)):
    return keras.Sequential([keras.Input(shape), Brightest()])


def labelled(count=30, shape=(16, 16, 3), shift=0.0):
    y = np.arange(count) % 3
    x = np.clip(pictures(count, *shape) * 0.25 + (0.1 + 0.3 * y + shift)[:, None, None, None], 0, 1)
    return x.astype("float32"), y.astype("int64")
