"""The clock and the loss after every batch, without waiting for the device."""

import math

import keras
import numpy as np
import pytest

from dynzoo.watching import Watch


class Loss:
    """A number on a device: what reads it is noted."""

    def __init__(self, value, batch, read):
        self.value, self.batch, self.read = value, batch, read

    def __float__(self):
        self.read.append(self.batch)
        return float(self.value)


def watched(losses, deadline=None):
    """The watch and, for each batch, the batches whose losses were read when it had begun."""
    watch, read, after = Watch(deadline), [], []
    watch.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    watch.model.stop_training = False
    for batch, value in enumerate(losses):
        watch.on_train_batch_end(batch, {"loss": Loss(value, batch, read)})
        after.append(list(read))
        if watch.model.stop_training:
            break
    watch.on_epoch_end(0)
    return watch, after


def test_no_loss_is_read_before_the_next_batch_has_begun():
    watch, after = watched([0.5, 0.4, 0.3])
    assert after == [[], [0], [0, 1]]
    assert watch.batches == 3 and not watch.diverged and not watch.model.stop_training


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_a_loss_that_is_not_finite_is_found(value, batch):
    losses = [0.5] * batch + [value] * (3 - batch)
    watch, after = watched(losses)
    assert watch.diverged and not watch.out_of_time
    assert len(after) == min(batch + 2, 3)


def test_the_deadline_stops_after_the_batch_that_passes_it():
    watch, after = watched([0.5, 0.4], deadline=-math.inf)
    assert watch.out_of_time and watch.model.stop_training and len(after) == 1
    assert not watched([0.5, 0.4], deadline=math.inf)[0].out_of_time


def test_keras_gives_a_loss_that_stays_not_finite():
    """What the watch relies on: the mean over the epoch so far."""
    seen = []
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(logs["loss"]))
    )
    x = np.array([[1.0], [np.nan], [1.0], [1.0]], dtype=np.float32)
    y = np.zeros((4, 1), np.float32)
    with np.errstate(invalid="ignore"):
        model.fit(x, y, batch_size=1, shuffle=False, verbose=0, callbacks=[note])
    assert np.isfinite(seen[0]) and np.isnan(seen[1])
