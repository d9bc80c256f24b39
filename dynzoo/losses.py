"""Losses that ask for a margin, which is what a certificate is made of."""

from __future__ import annotations

import keras
from keras import ops

__all__ = ["MulticlassHinge", "OffsetCrossentropy"]


def _one_hot(y_true, logits):
    y_true = ops.cast(y_true, "int32")
    if len(y_true.shape) == len(logits.shape):
        y_true = ops.squeeze(y_true, axis=-1)
    return ops.one_hot(y_true, logits.shape[-1], dtype=logits.dtype)


@keras.saving.register_keras_serializable(package="dynzoo")
class OffsetCrossentropy(keras.losses.Loss):
    r"""Cross-entropy that must win by an offset, with a temperature.

    $$T \cdot \mathrm{CE}\big((z - u\, e_y) / T,\; y\big)$$

    A 1-Lipschitz network cannot grow its logits at will; the offset u tells the loss how large a
    margin to aim at (in logit units: a certified radius r needs a margin of about sqrt(2) r), and
    a small temperature keeps gradients on examples near that margin.

    Args:
        offset: margin u, at least 0.
        temperature: T, positive.

    Labels: integers (batch,). Predictions: logits (batch, classes).

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> model.compile("adam", loss=OffsetCrossentropy(offset=0.4, temperature=0.25))

    Reference: Prach and Lampert, "Almost-orthogonal layers", ECCV 2022; Prach et al., CVPR 2024.
    """

    def __init__(
        self, offset=0.4, temperature=0.25, reduction="sum_over_batch_size", name=None, **kwargs
    ):
        super().__init__(reduction=reduction, name=name or "offset_crossentropy", **kwargs)
        if not offset >= 0:
            raise ValueError(f"`offset` must be at least 0. Received: offset={offset}")
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive. Received: temperature={temperature}")
        self.offset = float(offset)
        self.temperature = float(temperature)

    def call(self, y_true, y_pred):
        logits = ops.cast(y_pred, "float32")
        target = _one_hot(y_true, logits)
        log_p = ops.log_softmax((logits - self.offset * target) / self.temperature, axis=-1)
        return -self.temperature * ops.sum(target * log_p, axis=-1)

    def get_config(self):
        return {
            **super().get_config(),
            "offset": self.offset,
            "temperature": self.temperature,
        }


@keras.saving.register_keras_serializable(package="dynzoo")
class MulticlassHinge(keras.losses.Loss):
    r"""Multi-class hinge loss with a margin: $\tfrac1K\sum_{j\ne y}\max(0, m - (z_y - z_j))$.

    Args:
        margin: m, positive, in logit units.

    Labels: integers (batch,). Predictions: logits (batch, classes).

    Raises:
        ValueError: if ``margin`` is not positive.

    Example:

    >>> model.compile("adam", loss=MulticlassHinge(margin=0.7))

    Reference: E. Celledoni et al., SISC 2023 (the loss of the adversarial experiments);
    K = number of classes, as in the usual multi-margin loss.
    """

    def __init__(self, margin=0.7, reduction="sum_over_batch_size", name=None, **kwargs):
        super().__init__(reduction=reduction, name=name or "multiclass_hinge", **kwargs)
        if not margin > 0:
            raise ValueError(f"`margin` must be positive. Received: margin={margin}")
        self.margin = float(margin)

    def call(self, y_true, y_pred):
        logits = ops.cast(y_pred, "float32")
        target = _one_hot(y_true, logits)
        own = ops.sum(target * logits, axis=-1, keepdims=True)
        violation = ops.relu(self.margin - (own - logits)) * (1.0 - target)
        return ops.mean(violation, axis=-1)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}
