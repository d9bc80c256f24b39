"""Running trials: in one process with the oracle, or as a worker that asks a chief for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynzoo.tuning.hypermodel import RecipeModel, attempt, epochs_of, forget_checkpoints
from dynzoo.tuning.records import COMPLETED, blank, number, outcome, read_record, write_record
from dynzoo.utils.extras import extra

with extra("tuning"):
    from keras_tuner.engine.base_tuner import BaseTuner
    from keras_tuner.engine.trial import TrialStatus
    from keras_tuner.src.distribute.oracle_client import OracleClient

__all__ = ["RecipeTuner"]

_SECONDS_IDLE = 1.0  # between two requests for a trial
_SECONDS_BEAT = 5.0  # between two signs of life in a trial
_SECONDS_SAID = 10.0  # between two lines on the epochs of a trial


class RecipeTuner(BaseTuner):
    """keras-tuner's loop over trials, around ``RecipeModel``.

    With the environment variables of keras-tuner's set, its ``oracle`` is a client of the chief's.

    Args:
        oracle: from ``make_oracle``.
        hypermodel: a ``RecipeModel``.
        folder: output folder of the search.
        log: called with each message.
    """

    def __init__(
        self,
        oracle: Any,
        hypermodel: RecipeModel,
        folder: Path,
        log: Callable[[str], None] = print,
    ):
        super().__init__(
            oracle=oracle, hypermodel=hypermodel, directory=str(folder), project_name="oracle"
        )
        self.folder = folder
        self.log = log
        self.records: list[dict[str, Any]] = []
        self._asked_in_vain = False

    def _populate_initial_space(self):
        """Nothing: the oracle has the whole space, and no network need be built to find it."""

    def save(self):
        """Nothing: all there is to save is the oracle's state."""

    def reload(self):
        """Nothing, as nothing was saved: a file of keras-tuner's that stands there is not read."""

    def pre_create_trial(self):
        if self._asked_in_vain:
            time.sleep(_SECONDS_IDLE)
        self._asked_in_vain = True

    def on_trial_begin(self, trial):
        self._asked_in_vain = False
        number = f"no. {int(trial.trial_id)}"
        if self._is_worker:
            self.log(f"worker {self.tuner_id}: begins trial {number}")
        else:
            count = len(self.oracle.end_order) + 1
            what = ", the recipe itself" if int(trial.trial_id) == 0 else ""
            self.log(f"begins trial {count} of {self.oracle.max_trials}, {number}{what}")
        self.hypermodel.log = _Seldom(self.log)

    def _try_run_and_update_trial(self, trial, *args, **kwargs):
        """Runs a trial unless it is recorded already, and reports to the oracle.

        In place of keras-tuner's own, which prints the stack of a trial that cannot be, and takes
        a full disk or a lost chief for a property of the network.
        """
        with _heartbeat(self.oracle, trial.trial_id):
            record = self._record(trial)
        self.records.append(record)
        objective = self.oracle.objective.name
        if self._is_worker:
            result = outcome(record, objective)
            self.log(f"worker {self.tuner_id}: trial {number(record)}: {result}")
        if record["status"] == COMPLETED:
            self.oracle.update_trial(trial.trial_id, {objective: record[objective]})
            trial.status = TrialStatus.COMPLETED
        else:
            trial.status, trial.message = TrialStatus.FAILED, record["reason"]

    @property
    def _is_worker(self) -> bool:
        return isinstance(self.oracle, OracleClient)

    def _record(self, trial) -> dict[str, Any]:
        tuned = trial.hyperparameters.values
        config, folder = self.hypermodel.config, self.folder / "trials" / trial.trial_id
        values = config.values(tuned)
        record = read_record(folder)
        if record is not None and record["values"] == values:
            return record  # finished, but the oracle was killed before it knew
        past = tuned.get("tuner/trial_id")
        result = attempt(
            self.hypermodel,
            trial.hyperparameters,
            folder,
            self.tuner_id,
            self.folder / "trials" / past if past else None,
        )
        record = blank(trial.trial_id, values) | result
        write_record(folder, record)
        if epochs_of(tuned) is None:  # no later trial goes on from this one
            forget_checkpoints(folder)
        return record


class _Seldom:
    """Of what a training says, the first lines, and then one in a while."""

    def __init__(self, log: Callable[[str], None]):
        self.log = log
        self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if not line.startswith("epoch ") or now - self._last >= _SECONDS_SAID:
            self._last = now
            self.log(f"  {line}")


@contextmanager
def _heartbeat(oracle: Any, trial_id: str) -> Iterator[None]:
    """Lets the chief hear of this worker for as long as the block runs."""
    if not isinstance(oracle, OracleClient):  # it is in this process
        yield
        return
    import grpc

    over = threading.Event()

    def beat() -> None:
        while not over.wait(_SECONDS_BEAT):
            try:
                oracle.get_trial(trial_id)
            except grpc.RpcError:
                pass  # the chief may come back; the result at the end says whether it has

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=1.0)
