"""What a training looks at after every batch: the clock, and whether the loss is still a number."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import keras

from dynzoo.utils import interruption

__all__ = ["Watch"]

# Batches that may have begun and not ended: one that the device computes and one that waits for it.
# A stop comes one batch late at most.
_AHEAD = 2
# Longest wait for one of them, in seconds. Where a step failed, its end is never reported, and
# Keras raises the error only when the next one ends.
_PATIENCE = 10.0


class Watch(keras.callbacks.Callback):
    """Stops ``fit`` at the time limit, at Ctrl-C and at a loss that is not finite; counts batches.

    It is ``async_safe``: where Keras can (JAX, PyTorch), it reports the end of a batch from a
    thread, which waits for the loss while the next batch is made and begun, one batch ahead at
    most. The loss of a batch is looked at after the next one has ended. Keras reports the mean over
    the epoch so far, so what has once stopped to be finite stays that, and none is missed.

    Args:
        deadline: when to stop, in the seconds of ``time.monotonic``; ``None`` for never.
    """

    # Keras (CallbackList) asks for this name. Without it, it waits for the device after each step.
    async_safe = True

    def __init__(self, deadline: float | None):
        super().__init__()
        self.deadline = deadline
        self.batches = 0
        self.out_of_time = False
        self.diverged = False
        self._begun = 0
        self._loss: Any = 0.0
        self._ended = threading.Condition()  # ends are reported from several threads
        self._fitted: Any = None

    def set_model(self, model):
        super().set_model(model)
        # To ask for `self.model` makes Keras put JAX's present weights into the model, which must
        # not happen in a thread while the next step takes them away.
        self._fitted = model

    def on_train_batch_begin(self, batch, logs=None):
        self._begun += 1
        with self._ended:
            self._ended.wait_for(lambda: self._begun - self.batches <= _AHEAD, _PATIENCE)

    def on_train_batch_end(self, batch, logs=None):
        with self._ended:
            self.batches += 1
            interruption.hold()
            loss, self._loss = self._loss, (logs or {}).get("loss", 0.0)
            self._look(loss)
            if self.diverged:
                self._fitted.stop_training = True
            elif interruption.asked() or self._is_late():
                self.out_of_time = self._fitted.stop_training = True
            self._ended.notify_all()

    def on_epoch_end(self, epoch, logs=None):
        self._look(self._loss)

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _look(self, loss: Any) -> None:
        self.diverged = self.diverged or not math.isfinite(float(loss))
