"""Metrics for ``compile``: the share of images whose answer is right and proved."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.utils.arguments import number

__all__ = ["CertifiedAccuracy"]


@keras.saving.register_keras_serializable(package="dynzoo")
class CertifiedAccuracy(keras.metrics.Mean):
    r"""Certified accuracy of a validation, as a metric of ``compile``; training batches have none.

    $$\frac1n \#\{i : z_y(x_i) - z_j(x_i) \ge m_{yj} \text{ for all } j \ne y_i\}$$

    with m the ``Certificate.needed_margins`` of the weights that are validated, which
    ``dynzoo.callbacks.CertifiedAccuracy`` has computed in float64 before the first batch. A metric
    sees labels and logits and no weights, so it needs that callback, which ``fit`` and ``evaluate``
    are given with nothing in it. In ``fit`` the number is ``val_certified_accuracy``.

    Guarantee: what is counted is right, and no change of the image of L2 size up to ``eps`` turns
    the answer, under the assumptions of ``dynzoo.certify``, for images in the model's range of
    pixels ([0, 1] where none is known). It is never above the share of ``certify(model).radii(x)``
    beyond ``eps``, and below it by images only that are within some 1e-4 of that radius: it
    allows for the rounding of any image. While weights move nothing is proved: on training batches
    it is NaN, and in the history it is not.

    Args:
        eps: L2 radius, positive, in the units of the images.
        name: of the metric.
        dtype: as in Keras; the numbers are counted in it.

    Labels: integers (batch,) or (batch, 1), or shares of the classes (batch, classes), of which the
    largest counts; what is no class counts as wrong. Predictions: logits (batch, classes).

    Raises:
        ValueError: if ``eps`` is not positive; in ``fit`` and ``evaluate`` without the callback.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> metric = dynzoo.metrics.CertifiedAccuracy(36 / 255)
    >>> model.compile("sgd", dynzoo.losses.OffsetCrossentropy(), metrics=["accuracy", metric])
    >>> x, y = np.random.default_rng(0).random((9, 4)).astype("float32"), np.arange(9) % 3
    >>> measure = dynzoo.callbacks.CertifiedAccuracy()
    >>> history = model.fit(x, y, validation_data=(x, y), verbose=0, callbacks=[measure])
    >>> "val_certified_accuracy" in history.history
    True

    Reference: Tsuzuku, Sato and Sugiyama, "Lipschitz-margin training", NeurIPS 2018.
    """

    def __init__(self, eps=36 / 255, name="certified_accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.eps = number("eps", eps)
        self._direction = "up"  # what Keras asks where `mode` is "auto"
        self._needed: Any = None
        self._callbacks = 0
        self._tested: weakref.ref | None = None

    def update_state(self, y_true, y_pred, sample_weight=None):
        logits, y_true = ops.convert_to_tensor(y_pred), ops.convert_to_tensor(y_true)
        classes = logits.shape[-1]
        if self._needed is None:
            if backend.builds_metrics_late():
                self._check_attached()
            self._make(classes, logits.dtype)
        # The type in which they were computed: a rounded logit may be ahead where it was not.
        logits = ops.cast(logits, self._needed.dtype)
        if len(y_true.shape) == 2 and y_true.shape[-1] not in (None, 1):
            known, labels = ops.ones_like(logits[:, 0], "bool"), ops.argmax(y_true, axis=-1)
        else:
            given = ops.reshape(ops.cast(y_true, "float32"), (-1,))
            known = (given >= 0) & (given < classes) & (given == ops.floor(given))
            labels = ops.cast(ops.where(known, given, ops.zeros_like(given)), "int32")
        needed = ops.take(ops.convert_to_tensor(self._needed), labels, axis=0)
        own = ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1)
        proved = known & ops.all((own - logits >= needed) & ops.isfinite(logits), axis=-1)
        unknown = ops.any(ops.isnan(needed), axis=-1)
        nan = ops.full_like(logits[:, 0], float("nan"))
        values = ops.where(unknown, nan, ops.cast(proved, "float32"))
        super().update_state(values, sample_weight)

    def reset_state(self):
        super().reset_state()
        self._check_attached()
        # Keras resets metrics after the callbacks of a test have begun, whatever weights they put
        # into the model, and before its first batch.
        self._assign(None if self._tested is None else self._tested())
        self._tested = None

    def get_config(self):
        return {"eps": self.eps, "name": self.name, "dtype": self.dtype}

    def attach(self, by: int) -> None:
        """A callback that knows the model has begun (1), or ended (-1)."""
        self._callbacks = max(0, self._callbacks + by)

    def begin_test(self, model: keras.Model) -> None:
        """A test begins: from the next reset on, numbers are for the weights of this model."""
        self._make(model.output_shape[-1], model.outputs[0].dtype)
        self._tested = weakref.ref(model)

    def begin_batch(self) -> None:
        """A batch of a test begins; where Keras had not built its metrics, it reset none."""
        if self._tested is not None:
            self.reset_state()

    def end_test(self) -> None:
        """The weights may move again."""
        self._tested = None
        self._assign(None)

    def _make(self, classes: int, dtype: Any) -> None:
        if self._needed is None:
            wide = keras.backend.standardize_dtype(dtype) == "float64"
            start = keras.initializers.Constant(float("nan"))
            dtype = "float64" if wide else "float32"
            self._needed = self.add_variable((classes, classes), start, dtype, name="needed")

    def _assign(self, model: Any) -> None:
        if self._needed is not None:
            dtype = np.dtype(keras.backend.standardize_dtype(self._needed.dtype))
            self._needed.assign(_needed(model, self.eps, self._needed.shape, dtype))

    def _check_attached(self) -> None:
        if not self._callbacks:
            raise ValueError(
                "`dynzoo.metrics.CertifiedAccuracy` needs what the weights prove, which a metric "
                "does not see. Pass `callbacks=[dynzoo.callbacks.CertifiedAccuracy()]` to `fit` "
                "and to `evaluate`."
            )


def _needed(model: Any, eps: float, shape: Any, dtype: np.dtype) -> np.ndarray:
    """Margins (K, K) in the type of the logits, rounded up; NaN without a model."""
    if model is None:
        return np.full(shape, np.nan, dtype)
    from dynzoo.certificates import certify

    if not all(np.isfinite(w).all() for w in model.get_weights()):
        return np.full(shape, np.inf, dtype)
    with np.errstate(over="ignore"):
        needed = certify(model).needed_margins(eps).astype(dtype)
    # The difference of two logits is rounded too: one step for the cast, one for the difference.
    above = np.array(np.inf, dtype)
    needed = np.nextafter(np.nextafter(needed, above), above)
    np.fill_diagonal(needed, -np.inf)
    return needed
