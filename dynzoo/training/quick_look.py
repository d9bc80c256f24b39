"""A quick look at held-out images on the device, between epochs that take seconds."""

from __future__ import annotations

import keras
import numpy as np

from dynzoo import backend
from dynzoo.data import datasets as data

__all__ = ["QuickLook"]


class QuickLook:
    r"""Held-out accuracies in the precision of training, for the log; not a proof.

    An image counts as certified where

    $$ \min_j \frac{z_y - z_j}{L \|w_y - w_j\|} > \epsilon $$

    with the logits z as the network in training computes them, its present head w, and the
    Lipschitz bound L that its body had when the object was made. Rounding is left out, and so is
    what the training has since done to L: for orthonormal and unit-norm kernels nothing. What the
    finished network is worth says ``dynzoo.training.validation.held_out_accuracy``.

    Args:
        network: the model in training.
        plain: the same in float32, with the same weights.
        held_out: images (n, h, w, c) as bytes or in [0, 1], and labels (n,).
        eps: L2 radius in units of the pixel range.

    Example:

    >>> look = QuickLook(network, plain, (x, y), 36 / 255)
    >>> accuracy, certified = look()  # shares in [0, 1]; `None` where there is no certificate
    """

    def __init__(self, network: keras.Model, plain: keras.Model, held_out, eps: float):
        from dynzoo import certificates

        self.network, self.eps = network, eps
        x, self.labels = held_out
        self.images = keras.ops.convert_to_tensor(data.to_float(x))
        self._logits = backend.without_grad(backend.jit(backend.inference(network)))
        self.body: float | None = None
        try:
            self.body = certificates.certify(plain).body_lipschitz
        except certificates.UncertifiableLayerError:
            pass

    def __call__(self) -> tuple[float, float | None]:
        from dynzoo.certificates import margins
        from dynzoo.certificates.rules.table import linear_head

        raw = self._logits(backend.weights_of(self.network), self.images)
        logits = backend.to_numpy(keras.ops.cast(raw, "float32")).astype(np.float64)
        answers = logits.argmax(axis=1)
        right = answers == self.labels
        if self.body is None:
            return float(right.mean()), None
        kernel = linear_head(self.network.layers[-1])
        if kernel is None:
            distances = np.sqrt(2.0) * (1 - np.eye(logits.shape[1]))
        else:
            distances = np.linalg.norm(kernel[:, :, None] - kernel[:, None, :], axis=0)
        radii = margins.limits(logits, answers, self.body * distances).min(axis=1)
        return float(right.mean()), float((right & (radii > self.eps)).mean())
