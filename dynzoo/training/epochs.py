"""The loop of a training: epoch after epoch, with looks, records and checkpoints between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.training import checkpoints
from dynzoo.training.clock import TrainingClock
from dynzoo.training.epoch_values import at_epoch
from dynzoo.training.fitted_epochs import FittedEpochs, Stretch
from dynzoo.training.loss_of_epoch import LossOfEpoch
from dynzoo.training.quick_look import QuickLook
from dynzoo.training.resident_epochs import ResidentEpochs
from dynzoo.training.run import Run, message
from dynzoo.training.validation import held_out_accuracy, l2_radius
from dynzoo.utils import interruption

__all__ = ["TrainingDivergedError", "TrainingLoop", "held_out_row"]

_MARKS = (0.6, 0.8)  # shares of a run by the clock at which its weights are written
_ATTEMPTS = 3  # times that a run by the clock goes back before it gives up


class TrainingDivergedError(RuntimeError):
    """The loss was no longer finite; the last good checkpoint is kept."""


class TrainingLoop:
    """Takes a run from its state to its end, or to its time limit.

    Args:
        run: the run's records and state.
        twin: the model in training, and the same in float32.
        engine: what takes the steps.
        loss: the compiled loss, whose numbers change from epoch to epoch.
        validation: held-out images and labels.
        deadline: when to stop, in the seconds of ``time.monotonic``; ``None`` for never.
        started: when the process began, in the same seconds.
        log: called with each message.
        write: called to write the weights of an unfinished run by the clock.
    """

    def __init__(
        self,
        run: Run,
        twin: Any,
        engine: FittedEpochs | ResidentEpochs,
        loss: LossOfEpoch,
        validation: tuple[np.ndarray, np.ndarray],
        deadline: float | None,
        started: float,
        log: Callable[[str], None],
        write: Callable[[], None],
    ):
        self.run, self.twin, self.engine, self.loss = run, twin, engine, loss
        self.validation, self.deadline, self.log, self.write = validation, deadline, log, write
        self.settings = run.recipe["training"]
        self.batches = engine.steps_an_epoch
        self.began = started - run.state["seconds"]
        self._quick: QuickLook | None = None

    def by_epochs(self) -> bool:
        """Epochs as the recipe counts them; returns whether the last one was reached."""
        run, state, settings = self.run, self.run.state, self.settings
        while state["epoch"] < settings["epochs"]:
            epoch, first = state["epoch"], state["batch"]
            done = self._stretch(epoch, first, self._rates(self.batches - first), epoch + 1)
            if not done.finite:
                raise self._diverged()
            self.twin.replicas.check_equal(self.twin.model)
            state["batch"] += done.steps
            look = best = False
            if state["batch"] >= self.batches:
                state.update(epoch=epoch + 1, batch=0)
                look = self._is_due(epoch + 1 == settings["epochs"])
                row = self._row(done, look, quick=isinstance(self.engine, ResidentEpochs))
                if epoch + 1 in settings["average"]:
                    self._write(run.kept(epoch + 1))
                best = look and run.best_row() is row
                self.log(message(row, settings["epochs"]))
            late = self.twin.replicas.any(done.out_of_time or self._is_late())
            if look or late:
                self._keep()
            if best:  # after the checkpoint, from which a run that is killed here makes it again
                self._write(run.best)
            self._log_rows()
            self._end_if_asked()
            if late and state["epoch"] < settings["epochs"]:
                return False
        return True

    def by_clock(self, end: float) -> bool:
        """Epochs as the time allows them, the schedule stretched over it; until its end.

        Args:
            end: when the last step must be done, in the seconds of ``time.monotonic``.
        """
        state, engine = self.run.state, self.engine
        assert isinstance(engine, ResidentEpochs)
        clock = TrainingClock(end, self.batches, state.get("share", 0.0))
        section = self._section(self._virtual_epoch(clock.share))
        engine.measure(state["epoch"], section)
        seconds, steps, factor, attempts = engine.seconds_a_step, 0, 1.0, 0
        self.log(
            f"{engine.batch_size / seconds:,.0f} images/s after {engine.seconds_to_compile:.0f} s "
            f"to compile: about {(end - time.monotonic()) / seconds / self.batches:.0f} epochs"
        )
        began, good = time.monotonic(), engine.state()
        marks = [m for m in _MARKS if m > clock.share]
        while clock.share < 1.0:
            count, share = clock.next_epoch(seconds)
            positions = clock.positions(count, share) * self.settings["epochs"] * self.batches
            rates = factor * backend.to_numpy(engine.rate.schedule(positions.astype("float32")))
            virtual = self._virtual_epoch(clock.share)
            done = self._stretch(virtual, 0, rates, self._virtual_epoch(share), state["epoch"])
            steps += done.steps
            seconds = (time.monotonic() - began) / steps
            state["epoch"] += 1
            if not done.finite:
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise self._diverged()
                engine.restore(good)
                factor /= 2
                self.log(f"epoch {state['epoch']}: not finite; back one epoch, rate halved")
                continue
            if interruption.asked():  # the epoch ended early, and so does the share of it
                share = clock.share + (share - clock.share) * done.steps / count
            epochs_left = 0 if share == 1.0 else round((1 - share) / (share - clock.share))
            good, clock.share = engine.state(), share
            state.update(batch=0, share=share)
            last = share == 1.0
            look = self._is_due(last)
            row = self._row(done, look, quick=True, rate=float(rates[-1]))
            self.log(message(row, state["epoch"] + epochs_left))
            marked = bool(marks) and share >= marks[0] and not last
            if marked:
                marks = [m for m in marks if m > share]
                self.write()
            if look or marked or interruption.asked():
                self._keep()
            self._log_rows()
            self._end_if_asked()
        return True

    def pilot(self, seconds: float, max_seconds: float | None) -> str:
        """What the training would cost, timed for so many seconds; changes the weights in memory.

        Args:
            seconds: how long to time steps.
            max_seconds: the time of the run that is planned, or ``None`` for the recipe's epochs.
        """
        engine, size = self.engine, self.engine.batch_size
        section, update = self._section(0), ""
        began = time.monotonic()
        if isinstance(engine, ResidentEpochs):
            engine.measure(0, section)
            compiled = time.monotonic() - began
            a_step = engine.time_steps(0, section, seconds)
            update = f", {1000 * engine.seconds_an_update():.1f} ms of it for the update"
        else:
            engine.run(0, section, self.batches - 1, self._rates(1))
            self._end_if_asked()
            compiled = time.monotonic() - began
            began = time.monotonic()
            done = engine.run(0, section, 0, self._rates(self.batches), began + seconds)
            self._end_if_asked()
            a_step = (time.monotonic() - began) / done.steps
        epoch = a_step * self.batches
        if max_seconds is None:
            epochs = float(self.settings["epochs"])
            whole = compiled + epochs * epoch
        else:
            epochs = max(0.0, max_seconds - (time.monotonic() - self.began)) / epoch
            whole = max_seconds
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + whole))
        return (
            f"{size / a_step:,.0f} images/s: {1000 * a_step:.1f} ms a step of {size}{update}; "
            f"{epoch:.1f} s an epoch, after {compiled:.0f} s to compile. {epochs:.1f} epochs in "
            f"{whole:.0f} s; begun now, that ends at {when}"
        )

    def _virtual_epoch(self, share: float) -> int:
        return min(int(share * self.settings["epochs"]), self.settings["epochs"] - 1)

    def _section(self, epoch: int) -> dict[str, Any]:
        return at_epoch(self.run.recipe["data"], epoch)

    def _rates(self, count: int) -> np.ndarray:
        """Learning rates of the next steps, by the optimizer's own count."""
        if self.engine.rate is None:  # `fit` asks the optimizer
            return np.zeros(count, "float32")
        # `iterations` counts updates, of which there are fewer where gradients are accumulated
        steps = int(backend.value_of(self.twin.model.optimizer._iterations)) + np.arange(count)
        return backend.to_numpy(self.engine.rate.schedule(steps.astype("float32")))

    def _stretch(
        self, epoch: int, first: int, rates: np.ndarray, then: int, number: int | None = None
    ) -> Stretch:
        """Steps with the data and the loss of an epoch, and what comes after it made ready."""
        number = epoch if number is None else number
        with self.twin.replicas.scope():
            if self.loss.start(epoch):
                self.loss.compile(self.twin.model, self.twin.model.optimizer)
                self.engine.recompiled()
        if then < self.settings["epochs"]:
            self.engine.prepare(number + 1, self._section(then))
        done = self.engine.run(number, self._section(epoch), first, rates, self.deadline)
        self.run.state["seconds"] = time.monotonic() - self.began
        return done

    def _is_due(self, last: bool) -> bool:
        return last or self.run.state["epoch"] % self.settings["validate_every"] == 0

    def _is_late(self) -> bool:
        late = self.deadline is not None and time.monotonic() > self.deadline
        return late or interruption.asked()

    def _keep(self) -> None:
        """Writes the checkpoint, from which the run goes on."""
        self._write(self.run.checkpoint)
        self.run.note_kept()
        interruption.release()

    def _write(self, path: Path) -> None:
        if self.twin.replicas.writes:
            checkpoints.write(path, self.twin.model, self.run.state)

    def _log_rows(self) -> None:
        if self.twin.replicas.writes:
            self.run.log()

    def _end_if_asked(self) -> None:
        # Raised here and not by Python, which would do so amid native code.
        if interruption.asked():
            raise KeyboardInterrupt

    def _row(self, done: Stretch, look: bool, quick: bool, rate: float | None = None) -> dict:
        if rate is None:
            rate = float(backend.to_numpy(self.twin.model.optimizer.learning_rate))
        state = self.run.state
        row = {
            "epoch": state["epoch"],
            "seconds": round(state["seconds"], 1),
            "learning_rate": round(rate, 8),
            "loss": round(done.loss, 6),
            "accuracy": round(100 * done.accuracy, 3),
            "val_accuracy": None,
            "val_certified": None,
        }
        if look:
            if quick:
                row |= self._quick_look()
            else:
                with self.twin.looked_at() as model:
                    row |= held_out_row(self.run, model, self.validation)
        state["history"].append(row)
        return row

    def _quick_look(self) -> dict:
        if self._quick is None:
            eps = l2_radius(self.run.recipe["evaluation"], self.validation[0].shape[1:])
            plain = self.twin.updated()
            self._quick = QuickLook(self.twin.network, plain, self.validation, eps)
        return _percent(*self._quick())

    def _diverged(self) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"the loss or a weight was not finite in epoch {self.run.state['epoch'] + 1}. "
            f"{_last_good(self.run.checkpoint)}. Try a lower `training.optimizer.learning_rate`."
        )


def held_out_row(run: Run, model: keras.Model, validation: tuple[np.ndarray, np.ndarray]) -> dict:
    """Held-out accuracies of a model in float32, in percent, with exact certificates."""
    eps = l2_radius(run.recipe["evaluation"], validation[0].shape[1:])
    # In full precision: TF32 would cost the certificate more than the last epochs gain.
    with backend.full_precision():
        return _percent(*held_out_accuracy(model, validation, eps))


def _percent(accuracy: float, certified: float | None) -> dict:
    return {
        "val_accuracy": round(100 * accuracy, 3),
        "val_certified": None if certified is None else round(100 * certified, 3),
    }


def _last_good(checkpoint: Path) -> str:
    kept = f"The last good checkpoint is kept: {checkpoint}"
    return kept if checkpoint.exists() else "There is no checkpoint yet"
