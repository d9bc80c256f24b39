"""Losses that ask for a margin, which is what a certificate is made of."""

from __future__ import annotations

import functools

import keras
from keras import ops

from dynzoo.inference.label_checks import SHARE_TOLERANCE
from dynzoo.utils.arguments import number

__all__ = ["EfficientMargin", "MulticlassHinge", "OffsetCrossentropy"]


def _one_hot(y_true, logits):
    """Shares of the classes (batch, classes): one-hot rows of integers, or what was given."""
    y_true, classes = ops.convert_to_tensor(y_true), logits.shape[-1]
    if _has_shares(y_true, logits):
        return ops.cast(y_true, logits.dtype)
    # What is no class is made one here, for not every backend takes it, and NaN below.
    column = ops.clip(ops.cast(_column(y_true, logits), "int32"), 0, classes - 1)
    return ops.one_hot(column, classes, dtype=logits.dtype)


def _has_shares(y_true, logits) -> bool:
    """Whether labels are rows with a column a class; told by the shape alone, when compiling."""
    return len(y_true.shape) == len(logits.shape) and y_true.shape[-1] not in (None, 1)


def _column(y_true, logits):
    if len(y_true.shape) == len(logits.shape):
        y_true = ops.squeeze(y_true, axis=-1)
    return y_true


def _valid(y_true, logits):
    """Which rows of labels are a class, or shares of classes. (batch,), bool."""
    y_true, classes = ops.convert_to_tensor(y_true), logits.shape[-1]
    shape, rank = tuple(y_true.shape), len(logits.shape)
    shared = _has_shares(y_true, logits)
    if not (shape[-1] == classes if shared else len(shape) in (rank - 1, rank)):
        raise ValueError(
            "Labels must be integers of shape (batch,) or (batch, 1), or one-hot or soft labels of "
            f"shape (batch, {classes}) for logits of shape {tuple(logits.shape)}. "
            f"Received: labels of shape {shape}"
        )
    if shared:
        shares = ops.cast(y_true, "float32")
        one = ops.abs(ops.sum(shares, axis=-1) - 1.0) <= SHARE_TOLERANCE
        return ops.logical_and(one, ops.all(shares >= 0.0, axis=-1))
    # As floats, so that NaN and fractions are told from whole numbers.
    number = ops.cast(_column(y_true, logits), "float32")
    inside = ops.logical_and(number >= 0.0, number < float(classes))
    return ops.logical_and(inside, number == ops.floor(number))


def _nan_without_label(call):
    """The loss is NaN where a label is none, so that no training goes on as if nothing were wrong.

    No gradient comes from there: the weights are as good as before when the NaN is seen.
    """

    @functools.wraps(call)
    def checked(self, y_true, y_pred, *args, **kwargs):
        valid = _valid(y_true, y_pred)
        loss = call(self, y_true, y_pred, *args, **kwargs)
        return ops.where(valid, loss, ops.full_like(loss, float("nan")))

    return checked


def _log_softmax_of(target, logits):
    return ops.sum(target * ops.log_softmax(logits, axis=-1), axis=-1)


@keras.saving.register_keras_serializable(package="dynzoo")
class OffsetCrossentropy(keras.losses.Loss):
    r"""Cross-entropy that must win by an offset, with a temperature and logit annealing.

    $$-T\,(1 - p_y)^\beta \log p_y, \qquad p = \mathrm{softmax}\big((z - u\, e_y) / T\big)$$

    A 1-Lipschitz network cannot grow its logits at will; the offset u tells the loss how large a
    margin to aim at (in logit units: a certified radius r needs a margin of about sqrt(2) r), and
    a small temperature keeps gradients on examples near that margin. The exponent $\beta$ takes
    the gradient of an example away as its margin passes u, so that the little capacity of such a
    network is spent on the others; with 0 it is the cross-entropy.

    Args:
        offset: margin u, at least 0.
        temperature: T, positive.
        annealing: exponent $\beta$, 0 or at least 1.
        reduction: as in ``keras.losses.Loss``.
        name: name of the loss.

    Labels: integers (batch,) or (batch, 1), or shares of the classes (batch, classes), one-hot or
    soft, which then stand for $e_y$; the loss is NaN where a label is neither.
    Predictions: logits (batch, classes).

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from dynzoo.losses import OffsetCrossentropy
    >>> loss = OffsetCrossentropy(offset=0.4, temperature=0.25)
    >>> y, logits = np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]], "float32")
    >>> float(loss(y[:1], logits[:1])) < float(loss(y[1:], logits[1:]))
    True

    Reference: Prach and Lampert, "Almost-orthogonal layers", ECCV 2022; Prach et al., CVPR 2024;
    for the annealing Lai et al., "Enhancing certified robustness via block reflector orthogonal
    layers and logit annealing loss", ICML 2025.
    """

    def __init__(
        self,
        offset=0.4,
        temperature=0.25,
        reduction="sum_over_batch_size",
        name=None,
        *,
        annealing=0.0,
        **kwargs,
    ):
        super().__init__(reduction=reduction, name=name or "offset_crossentropy", **kwargs)
        # Between 0 and 1 the gradient would be infinite at p = 1.
        if annealing != 0 and not annealing >= 1:
            raise ValueError(
                f"`annealing` must be 0 or at least 1. Received: annealing={annealing}"
            )
        self.offset = number("offset", offset, closed="low")
        self.temperature = number("temperature", temperature)
        self.annealing = float(annealing)

    @_nan_without_label
    def call(self, y_true, y_pred):
        logits = ops.cast(y_pred, "float32")
        target = _one_hot(y_true, logits)
        log_p = _log_softmax_of(target, (logits - self.offset * target) / self.temperature)
        loss = -self.temperature * log_p
        if self.annealing:
            # 1 - p, which rounding may put a little below 0
            loss = loss * ops.power(ops.relu(-ops.expm1(log_p)), self.annealing)
        return loss

    def get_config(self):
        return {
            **super().get_config(),
            "offset": self.offset,
            "temperature": self.temperature,
            "annealing": self.annealing,
        }


@keras.saving.register_keras_serializable(package="dynzoo")
class EfficientMargin(keras.losses.Loss):
    r"""Cross-entropy under the worst change of the logits that a perturbation could make (EMMA).

    $$T \cdot \mathrm{CE}\big((z + m) / T,\; y\big), \qquad
    m_j = \mathrm{clip}(z_y - z_j,\; u / 100,\; u) \text{ for } j \ne y, \qquad m_y = 0$$

    Where ``OffsetCrossentropy`` asks every class to stay behind by u, this loss asks a class that
    is nearer than u for no more than to stay behind: an image that is answered wrong counts almost
    as in the cross-entropy, and the margin is demanded where there is one. No gradient flows
    through m. The published loss takes $u = \epsilon L \|w_y - w_j\|$ for each pair of
    classes; here it is one number, which is the same for a head whose rows are about orthogonal
    ($\|w_y - w_j\| = \sqrt 2$ for unit rows).

    Args:
        offset: largest margin u in logit units, positive.
        temperature: T, positive.
        reduction: as in ``keras.losses.Loss``.
        name: name of the loss.

    Labels: integers (batch,) or (batch, 1), or shares of the classes (batch, classes), one-hot or
    soft, which then stand for $e_y$; the loss is NaN where a label is neither.
    Predictions: logits (batch, classes).

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from dynzoo.losses import EfficientMargin
    >>> loss = EfficientMargin(offset=0.4, temperature=0.25)
    >>> y, logits = np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]], "float32")
    >>> float(loss(y[:1], logits[:1])) < float(loss(y[1:], logits[1:]))
    True

    Reference: Hu et al., "Unlocking deterministic robustness certification on ImageNet", NeurIPS
    2023 (the EMMA loss).
    """

    def __init__(
        self, offset=0.4, temperature=0.25, reduction="sum_over_batch_size", name=None, **kwargs
    ):
        super().__init__(reduction=reduction, name=name or "efficient_margin", **kwargs)
        self.offset = number("offset", offset)
        self.temperature = number("temperature", temperature)

    @_nan_without_label
    def call(self, y_true, y_pred):
        logits = ops.cast(y_pred, "float32")
        target = _one_hot(y_true, logits)
        margins = ops.stop_gradient(ops.sum(target * logits, axis=-1, keepdims=True) - logits)
        shifts = ops.clip(margins, 0.01 * self.offset, self.offset) * (1.0 - target)
        return -self.temperature * _log_softmax_of(target, (logits + shifts) / self.temperature)

    def get_config(self):
        return {**super().get_config(), "offset": self.offset, "temperature": self.temperature}


@keras.saving.register_keras_serializable(package="dynzoo")
class MulticlassHinge(keras.losses.Loss):
    r"""Multi-class hinge loss with a margin: $\tfrac1K\sum_{j\ne y}\max(0, m - (z_y - z_j))$.

    Args:
        margin: m, positive, in logit units.
        reduction: as in ``keras.losses.Loss``.
        name: name of the loss.

    Labels: integers (batch,) or (batch, 1), or shares of the classes (batch, classes), one-hot or
    soft, which then stand for $e_y$; the loss is NaN where a label is neither.
    Predictions: logits (batch, classes).

    Raises:
        ValueError: if ``margin`` is not positive.

    Example:

    >>> import numpy as np
    >>> from dynzoo.losses import MulticlassHinge
    >>> loss = MulticlassHinge(margin=0.75)
    >>> float(loss(np.array([0]), np.array([[1.0, 0.5]], "float32")))  # 0.25 short, of 2 classes
    0.125

    Reference: E. Celledoni et al., SISC 2023 (the loss of the adversarial experiments);
    K = number of classes, as in the usual multi-margin loss.
    """

    def __init__(self, margin=0.7, reduction="sum_over_batch_size", name=None, **kwargs):
        super().__init__(reduction=reduction, name=name or "multiclass_hinge", **kwargs)
        self.margin = number("margin", margin)

    @_nan_without_label
    def call(self, y_true, y_pred):
        logits = ops.cast(y_pred, "float32")
        target = _one_hot(y_true, logits)
        own = ops.sum(target * logits, axis=-1, keepdims=True)
        violation = ops.relu(self.margin - (own - logits)) * (1.0 - target)
        return ops.mean(violation, axis=-1)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}
