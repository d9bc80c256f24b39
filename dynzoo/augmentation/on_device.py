"""Distortions of training images as a part of the compiled training step, on the device.

On a host, in NumPy, a core distorts some thousand images of CIFAR-10 a second, which an accelerator
would wait for. The random numbers are still drawn on the host, so that a batch depends on its seed,
epoch and number, and on no device.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dynzoo.augmentation.distortions import color_jitter, rotate_and_zoom

__all__ = ["DRAWS", "Distortion", "distorted_model"]

# Columns of the numbers that `Augmented` draws for an image, each with its neutral value.
DRAWS = {"angle": 0.0, "zoom": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0}


@keras.saving.register_keras_serializable(package="dynzoo")
class Distortion(keras.layers.Layer):
    r"""Turn, enlarge and recolor every image by the numbers given with it.

    $$ y_b = C_{\beta_b, \gamma_b, \sigma_b}\big(R_{\theta_b, s_b}(x_b)\big) $$

    with ``dynzoo.augmentation.distortions.rotate_and_zoom`` for R and ``color_jitter`` for C, in
    float32 whatever the policy of the model.

    Args:
        turn: whether to rotate and zoom; if not, the first two numbers are not read.
        recolor: whether to change the colors; if not, the last three are not read.

    Call: images (n, h, w, c) in [0, 1] and numbers (n, 5), the columns named in ``DRAWS``.

    Example:

    >>> Distortion()([images, np.tile(list(DRAWS.values()), (len(images), 1))])
    """

    def __init__(self, turn: bool = True, recolor: bool = True, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.turn = bool(turn)
        self.recolor = bool(recolor)

    def call(self, inputs):
        x, draws = inputs
        angle, zoom, brightness, contrast, saturation = (draws[:, i] for i in range(len(DRAWS)))
        if self.turn:
            x = rotate_and_zoom(x, angle, zoom, ops)
        if self.recolor:
            x = color_jitter(x, brightness, contrast, saturation, ops)
        return x

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {**super().get_config(), "turn": self.turn, "recolor": self.recolor}


def distorted_model(model: keras.Model, turn: bool = True, recolor: bool = True) -> keras.Model:
    """A model of images and numbers that distorts the images and passes them to a given one.

    Its weights are those of the given model, in the same order, and no others: to train it is to
    train the given one.

    Args:
        model: a model of images (n, h, w, c) in [0, 1].
        turn, recolor: as in ``Distortion``.

    Example:

    >>> batches = Augmented(x, y, rotation=15, zoom=0.1, distort=False)
    >>> trained = distorted_model(model, recolor=False)
    >>> trained.compile("adam", loss)
    >>> trained.fit(batches)
    """
    images = keras.Input(model.input_shape[1:], name="images")
    draws = keras.Input((len(DRAWS),), name="draws")
    outputs = model(Distortion(turn, recolor)([images, draws]))
    return keras.Model([images, draws], outputs, name=f"distorted_{model.name}")
