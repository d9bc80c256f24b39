"""The clock and the loss after every batch, without waiting for the device."""

import math
import threading
import time

import keras
import numpy as np
import pytest

from dynzoo import backend
from dynzoo.training import callbacks as watching
from dynzoo.training.callbacks import Watch


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


def _toy():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=backend.fit_with_jit())
    return model


def _fit(watch, batches, *others):
    x = np.ones((batches, 1), np.float32)
    model = _toy()
    model.fit(x, x, batch_size=1, shuffle=False, verbose=0, callbacks=[watch, *others])
    return model


class _Slow(Watch):
    """A watch that hears of each batch late, as of a slow device, and notes how many had begun."""

    def __init__(self, deadline=None, fail=None):
        super().__init__(deadline)
        self.fail, self.ahead, self.threads = fail, [], set()

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.01)
        self.threads.add(threading.get_ident())
        self.ahead.append(self._begun - self.batches)
        if batch == self.fail:
            raise RuntimeError("the device is gone")
        super().on_train_batch_end(batch, logs)


def test_keras_does_not_wait_after_every_step():
    watch = _Slow()
    _fit(watch, 12)
    assert watch.batches == 12
    here = {threading.get_ident()}
    if backend.name() == "tensorflow":  # Keras calls it not safe for threads
        assert watch.threads == here and max(watch.ahead) == 1
    else:
        assert here.isdisjoint(watch.threads)
        assert 1 < max(watch.ahead) <= watching._AHEAD + 1  # and one that waits to begin


def test_one_other_callback_makes_keras_wait_as_before():
    """What shows that the name `async_safe` is the one that Keras reads."""
    watch = _Slow()
    _fit(watch, 4, keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None))
    assert watch.threads == {threading.get_ident()} and max(watch.ahead) == 1


def test_a_stop_comes_within_the_batches_that_may_have_begun():
    watch = _Slow(deadline=-math.inf)
    model = _fit(watch, 20)
    assert watch.out_of_time and 1 <= watch.batches <= 1 + watching._AHEAD
    # every batch that was counted has changed the weights, and no other
    assert int(backend.value_of(model.optimizer.iterations)) == watch.batches
    assert np.isfinite(backend.value_of(model.weights[0])).all()


def test_every_batch_is_counted_once_from_many_threads():
    watch = Watch(None)
    watch.set_model(_toy())
    ends = [
        threading.Thread(target=watch.on_train_batch_end, args=(i, {"loss": float(i)}))
        for i in range(40)
    ]
    for end in ends:
        end.start()
    for end in ends:
        end.join()
    assert watch.batches == 40 and not watch.diverged


def test_an_error_of_a_step_is_raised_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(watching, "_PATIENCE", 0.05)
    with pytest.raises(RuntimeError, match="the device is gone"):
        _fit(_Slow(fail=2), 12)
