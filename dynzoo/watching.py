"""What a training looks at after every batch: the clock, and whether the loss is still a number."""

from __future__ import annotations

import math
import time
from typing import Any

import keras

__all__ = ["Watch"]


class Watch(keras.callbacks.Callback):
    """Stops `fit` at the time limit and at a loss that is not finite; counts the batches done.

    The loss of a batch is looked at after the next one has begun: to read it is to wait for the
    device, which would have nothing to do while the next batch is made. Keras reports the mean over
    the epoch so far, so what has once stopped to be finite stays that, and none is missed.

    Args:
        deadline: when to stop, in the seconds of `time.monotonic`; `None` for never.
    """

    def __init__(self, deadline: float | None):
        super().__init__()
        self.deadline = deadline
        self.batches = 0
        self.out_of_time = False
        self.diverged = False
        self._loss: Any = 0.0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        self._look()
        self._loss = (logs or {}).get("loss", 0.0)
        if self.diverged:
            self.model.stop_training = True
        elif self.deadline is not None and time.monotonic() > self.deadline:
            self.out_of_time = self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self._look()

    def _look(self) -> None:
        self.diverged = self.diverged or not math.isfinite(float(self._loss))
