"""Callbacks for ``fit``: certified accuracy on held-out images, for whatever decides by it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from dynzoo import metrics
from dynzoo.constraints import hint_at_unmet, projected_at_end
from dynzoo.inference.label_checks import check_labels
from dynzoo.utils.arguments import integer, listed, number

__all__ = ["CertifiedAccuracy"]


class CertifiedAccuracy(keras.callbacks.Callback):
    r"""Certified accuracy after each epoch, in the logs of ``fit``; and what the metric needs.

    With images: $\frac1n \#\{i : \text{answer}_i = y_i,\ r_i > \varepsilon\}$ from
    ``certify(model).radii``, as ``val_certified_accuracy``. Callbacks that stand behind it see it
    (``EarlyStopping``, ``ModelCheckpoint``), the history does, and keras-tuner as
    ``Objective("val_certified_accuracy", "max")``. Without images it only serves
    ``dynzoo.metrics.CertifiedAccuracy``, which measures the validation data of ``fit``.

    Guarantee: as ``dynzoo.certify`` gives it, for the weights that the model holds at the end of
    the epoch. If the weights are off their constraints when the training ends, as averages are
    (``use_ema=True``), there is an ``UnmetConstraintWarning`` that says what to do.

    Args:
        x: held-out images (n, ...), floats in the scale that the model takes; or ``None``.
        y: their labels (n,) or (n, 1), or one-hot rows.
        eps: L2 radius or radii, positive, in the units of x. With several the names are
            ``val_certified_accuracy_36_255``, ``val_certified_accuracy_0_5`` and so on.
        batch_size: images per forward pass.

    Raises:
        ValueError: if an argument is out of its range; when training begins, if the model cannot be
            certified, does not take these images, or there is nothing to measure.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.random.default_rng(0).random((9, 4)).astype("float32"), np.arange(9) % 3
    >>> certified = dynzoo.callbacks.CertifiedAccuracy(x, y, eps=36 / 255)
    >>> stop = keras.callbacks.EarlyStopping("val_certified_accuracy", mode="max")
    >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[certified, stop])
    >>> "val_certified_accuracy" in history.history
    True
    """

    def __init__(
        self,
        x: Any = None,
        y: Any = None,
        eps: float | Iterable[float] = 36 / 255,
        batch_size: int = 256,
    ):
        super().__init__()
        if (x is None) != (y is None):
            raise ValueError("`x` and `y` go together. Received: one without the other")
        self.x, self.y = x, None if y is None else check_labels(y, len(x))
        if x is not None and not len(x):
            raise ValueError("`x` must hold at least one image. Received: an empty array")
        self.eps = [number("eps", e) for e in listed(eps)]
        if not self.eps:
            raise ValueError("`eps` must hold at least one radius. Received: an empty sequence")
        self.batch_size = integer("batch_size", batch_size)
        self._tested: list[metrics.CertifiedAccuracy] = []

    def __deepcopy__(self, memo: dict) -> CertifiedAccuracy:
        # keras-tuner copies callbacks for each execution; the images are read only.
        return copy.copy(self)

    def on_train_begin(self, logs=None):
        model = self.model
        compiled = _metrics(model)
        for metric in compiled:
            metric.attach(1)
        if self.x is not None and self.y is not None:
            _measured(model, self.x[:1], self.y[:1], self.eps, 1)
            check_labels(self.y, len(self.x), model.output_shape[-1])
        elif not compiled:
            raise ValueError(
                "`CertifiedAccuracy` has nothing to measure. Give it held-out images and labels, "
                "or compile the model with `metrics=[dynzoo.metrics.CertifiedAccuracy(eps)]`."
            )

    def on_test_begin(self, logs=None):
        model = self.model
        self._tested = list(_metrics(model))
        for metric in self._tested:
            metric.attach(1)
            metric.begin_test(model)

    def on_test_batch_begin(self, batch, logs=None):
        for metric in self._tested:
            metric.begin_batch()

    def on_test_end(self, logs=None):
        for metric in self._tested:
            metric.attach(-1)
            metric.end_test()
        self._tested = []

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        for metric in _metrics(model := self.model):
            # Of the training batches it says nothing, which keras-tuner would warn of.
            if math.isnan(logs.get(metric.name, 0.0)):
                del logs[metric.name]
        if self.x is not None:
            shares = _measured(model, self.x, self.y, self.eps, self.batch_size)
            logs.update(zip(self.names, shares, strict=True))

    def on_train_end(self, logs=None):
        for metric in _metrics(model := self.model):
            metric.attach(-1)
        if not projected_at_end(model):
            hint_at_unmet(model)

    @property
    def names(self) -> list[str]:
        """Names in the logs, one for each radius."""
        if len(self.eps) == 1:
            return ["val_certified_accuracy"]
        # Signs that `ModelCheckpoint` would take for something else in the name of a file.
        texts = [_text(e).replace("/", "_").replace(".", "_") for e in self.eps]
        return [f"val_certified_accuracy_{text}" for text in texts]


def _measured(model: Any, x: Any, y: Any, eps: list[float], batch_size: int) -> list[float]:
    """Certified accuracies at the radii; 0 for a model whose weights are not finite."""
    from dynzoo.certificates import certify

    if not all(np.isfinite(w).all() for w in model.get_weights()):
        return [0.0] * len(eps)
    labels, radii = certify(model).radii(x, batch_size=batch_size)
    return [float(np.mean((labels == y) & (radii > e))) for e in eps]


def _metrics(model: Any) -> list[metrics.CertifiedAccuracy]:
    """Those that the model was compiled with, whether Keras has built them or not."""
    compiled = getattr(model, "_compile_metrics", None)
    parts = [getattr(compiled, f"_user_{kind}", None) for kind in ("metrics", "weighted_metrics")]
    found = keras.tree.flatten([part for part in parts if part])
    return [metric for metric in found if isinstance(metric, metrics.CertifiedAccuracy)]


def _text(eps: float) -> str:
    steps = eps * 255.0
    return f"{round(steps)}/255" if abs(steps - round(steps)) < 1e-6 else f"{eps:.6g}"
