"""keras-tuner's oracles, which also start from the recipe itself, survive a kill, and lose nobody.

An oracle hands out trials and takes their results. Optuna's sampler is a fifth. What is added to
keras-tuner's four:

* the first trial is the recipe as it stands;
* the state is written atomically, so that a kill at any moment leaves one that can be read;
* a trial whose worker is not heard of any more is given to another one;
* Bayesian search learns from what was infeasible, and is the same when it is resumed;
* grid search can be resumed, and hands out trials while others run.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import hyperparameters as hp_module
from keras_tuner.engine.trial import Trial, TrialStatus
from sklearn.exceptions import ConvergenceWarning

from dynzoo.training.checkpoints import CheckpointError
from dynzoo.tuning.config import SearchConfig
from dynzoo.utils.files import write_atomically
from dynzoo.utils.strict_json import short

__all__ = ["make_oracle"]

# A trial that took so many workers down with it is not tried again.
_MAX_LOST = 3
_REMEDY = "put its copy back, or search in another output folder"


class _Steady(keras_tuner.Oracle):
    """What all have in common; mixed in before a class of keras-tuner's."""

    trials: dict[str, Any]
    _retry_queue: list[str]

    def __init__(self, patience: float = 60.0, **arguments: Any):
        super().__init__(
            # any number of infeasible trials in a row is a result, not a reason to stop
            max_consecutive_failed_trials=10**9,
            **arguments,
        )
        self.patience = patience
        self.on_end: Callable[[Any], None] = lambda trial: None
        self.verbose = 0
        self._heard: dict[str, float] = {}
        self._lost: dict[str, int] = {}

    def _random_values(self):
        if not self.trials:
            return {hp.name: hp.default for hp in self.hyperparameters.space}
        return super()._random_values()

    def create_trial(self, tuner_id):
        self._heard[tuner_id] = time.monotonic()
        self._give_back_lost(tuner_id)
        trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.STOPPED and self.ongoing_trials:
            # One of them may come back, and then somebody must be there to take it.
            self.tuner_ids.add(tuner_id)
            trial.status = TrialStatus.IDLE
        if trial.status == TrialStatus.RUNNING:
            trial.metrics = type(trial.metrics)()  # one that is given out again has no result yet
        return trial

    def _give_back_lost(self, asking: str) -> None:
        for tuner_id, trial in list(self.ongoing_trials.items()):
            if tuner_id == asking or self.is_alive(tuner_id):
                continue
            del self.ongoing_trials[tuner_id]
            self.tuner_ids.discard(tuner_id)
            self._lost[trial.trial_id] = self._lost.get(trial.trial_id, 0) + 1
            if self._lost[trial.trial_id] < _MAX_LOST:
                self._retry_queue.append(trial.trial_id)
                continue
            trial.status = TrialStatus.FAILED
            trial.message = f"{_MAX_LOST} workers were lost with it"
            self.end_trial(trial)

    def is_alive(self, tuner_id: str) -> bool:
        """Whether a worker was heard of lately."""
        return time.monotonic() - self._heard.get(tuner_id, -math.inf) <= self.patience

    @property
    def last_heard(self) -> float:
        """When any worker was last heard of, by ``time.monotonic``."""
        return max(self._heard.values(), default=-math.inf)

    def get_trial(self, trial_id):
        # Workers ask this every few seconds for no other reason than to be heard.
        for tuner_id, trial in self.ongoing_trials.items():
            if trial.trial_id == trial_id:
                self._heard[tuner_id] = time.monotonic()
        return super().get_trial(trial_id)

    def update_trial(self, trial_id, metrics, step=0):
        if trial_id in self.end_order:
            return self.trials[trial_id]
        return super().update_trial(trial_id, metrics, step)

    def end_trial(self, trial):
        known = self.trials[trial.trial_id]
        if trial.trial_id in self.end_order:
            # Its first worker was only slow, and a second one was faster.
            for tuner_id, ongoing in list(self.ongoing_trials.items()):
                if ongoing is known:
                    del self.ongoing_trials[tuner_id]
            return
        if trial.trial_id in self._retry_queue:
            self._retry_queue.remove(trial.trial_id)
        # What comes over the network has lost half the digits of its numbers, and its message
        # says nothing new.
        trial.hyperparameters = known.hyperparameters
        trial.message = trial.message or known.message
        super().end_trial(trial)
        self.on_end(known)

    def get_state(self):
        return {**super().get_state(), "lost": self._lost}

    def set_state(self, state):
        super().set_state(state)
        self._lost = state["lost"]

    def save(self):
        _write(self._get_oracle_fname(), self.get_state())

    def _save_trial(self, trial):
        _write(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

    def reload(self):
        """Goes on from the files of the folder.

        Raises:
            CheckpointError: naming the file that is damaged or missing.
        """
        for path in sorted(Path(self._project_dir).glob("trial_*/trial.json")):
            with _named(path):
                values = Trial.load(str(path)).hyperparameters.values
                if lacking := sorted({hp.name for hp in self.hyperparameters.space} - set(values)):
                    raise ValueError(f"it lacks {', '.join(lacking)}")
        path = Path(self._get_oracle_fname())
        with _named(path):
            state = json.loads(path.read_text(encoding="utf-8"))
            began = [str(name) for name in state["start_order"]]
            if unknown := sorted({*state["end_order"]} - {*began}):
                raise ValueError(f"trials that ended without a beginning: {unknown}")
        for trial in (Path(self._get_trial_dir(name)) / "trial.json" for name in began):
            if not trial.exists():
                raise CheckpointError(f"{trial} is missing: {_REMEDY}")
        with _named(path):
            super().reload()
        # A kill between the two files leaves a trial that the oracle does not know of: it is made
        # again, with the same number.
        self.trials = {name: self.trials[name] for name in self.start_order}
        # keras-tuner counts a trial among the running ones until after its end is saved.
        self._retry_queue = [name for name in self._retry_queue if name not in self.end_order]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong within this block is due to a damaged file."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # keras-tuner reads it without a check: any kind may come of it
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is damaged ({short(why)}): {_REMEDY}") from None


class _Random(_Steady, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Hyperband(_Steady, keras_tuner.oracles.HyperbandOracle):
    def __init__(self, max_trials: int, **arguments: Any):
        super().__init__(**arguments)
        self.max_trials = max_trials
        rounds = [
            self._get_size(bracket, number)
            for bracket in range(self._get_num_brackets())
            for number in range(self._get_num_rounds(bracket))
        ]
        self.hyperband_iterations = math.ceil(max_trials / sum(rounds))


class _Bayesian(_Steady, keras_tuner.oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id):
        # Not a stream that a resumed search would begin anew.
        self._random_state = np.random.RandomState([self.seed, len(self.trials)])
        with warnings.catch_warnings():
            # A length scale at its bound says that one of few trials stands out.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().populate_space(trial_id)

    def _vectorize_trials(self):
        # keras-tuner leaves out what failed, and proposes it again and again.
        x, y = super()._vectorize_trials()
        failed = [t for t in self.trials.values() if t.status == TrialStatus.FAILED]
        vectors = [
            [hp.value_to_prob(t.hyperparameters.values[hp.name]) for hp in self._nonfixed_space()]
            for t in failed
        ]
        worst = np.full(len(failed), y.max())  # it minimises
        return np.concatenate([x, np.reshape(vectors, (-1, x.shape[1]))]), np.append(y, worst)


class _Grid(_Steady, keras_tuner.oracles.GridSearchOracle):
    def __init__(self, max_trials: int, **arguments: Any):
        super().__init__(max_trials=max_trials, **arguments)
        # a range without steps is ten values, of which the recipe's own need not be one
        space = self.hyperparameters.space
        combinations = math.prod(len({hp.default, *hp.values}) for hp in space)
        self.max_trials = min(max_trials, combinations)

    def populate_space(self, trial_id):
        response = super().populate_space(trial_id)
        if response["status"] == TrialStatus.RUNNING:
            # The space is known beforehand: the next combination need not wait for this one.
            self._populate_next.append(trial_id)
        return response

    def set_state(self, state):
        super().set_state(state)
        for trial_id in self.start_order:  # which is the order of the grid
            self._ordered_ids.insert(trial_id)
        self._populate_next = self.start_order[-1:]


class _Optuna(_Steady, keras_tuner.Oracle):
    """Trials proposed by Optuna's TPE sampler, from a study that is made anew for each of them."""

    def __init__(self, initial_points: int, **arguments: Any):
        super().__init__(**arguments)
        self.initial_points = initial_points

    def populate_space(self, trial_id):
        if not self.trials:
            return {"status": TrialStatus.RUNNING, "values": self._random_values()}
        study, ranges = self._study(), self._distributions()
        for _ in range(self._max_collisions):
            values = {**self.hyperparameters.values, **study.ask(ranges).params}
            if not self._duplicate(values):
                return {"status": TrialStatus.RUNNING, "values": values}
        return {"status": TrialStatus.STOPPED}

    def _study(self) -> Any:
        """What is known so far; no stream and no storage that a resumed search had to find."""
        import optuna  # an extra

        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.initial_points, seed=int(self.seed) * 10_007 + len(self.trials)
        )
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(direction="maximize", sampler=sampler)
        finally:
            optuna.logging.set_verbosity(verbosity)
        ranges = self._distributions()
        scores = [t.score for t in self.trials.values() if t.status == TrialStatus.COMPLETED]
        for trial in self.trials.values():
            if trial.status == TrialStatus.COMPLETED:
                score = trial.score
            elif trial.status == TrialStatus.FAILED and scores:
                score = min(scores)  # else it would be proposed again and again
            else:
                continue
            params = {name: trial.hyperparameters.values[name] for name in ranges}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=ranges, value=score)
            )
        return study

    def _distributions(self) -> dict[str, Any]:
        from optuna import distributions

        return {hp.name: _distribution(hp, distributions) for hp in self.hyperparameters.space}


def _distribution(hp: Any, distributions: Any) -> Any:
    """Optuna's words for a dimension as ``Dimension.declare`` registers it."""
    if isinstance(hp, hp_module.Choice):
        return distributions.CategoricalDistribution(list(hp.values))
    kind = "Int" if isinstance(hp, hp_module.Int) else "Float"
    make = getattr(distributions, f"{kind}Distribution")
    return make(hp.min_value, hp.max_value, log=hp.sampling == "log")


_ORACLES: dict[str, Any] = {
    "random": _Random,
    "hyperband": _Hyperband,
    "bayesian": _Bayesian,
    "grid": _Grid,
    "optuna": _Optuna,
}


def make_oracle(config: SearchConfig, patience: float = 60.0) -> Any:
    """The oracle of a search, over its whole space.

    Args:
        config: the search.
        patience: seconds after which a worker that is not heard of is given up.
    """
    settings = config.settings
    space = keras_tuner.HyperParameters()
    for dimension in config.space:
        dimension.declare(space)
    arguments: dict[str, Any] = {
        "objective": keras_tuner.Objective(config.objective, "max"),
        "max_trials": settings["max_trials"],
        "hyperparameters": space,
        "seed": settings["seed"] + 1,  # 0 would be a random seed
        "patience": patience,
    }
    if settings["tuner"] == "hyperband":
        arguments |= {
            "max_epochs": config.recipe["training"]["epochs"],
            "factor": settings["factor"],
        }
    elif settings["tuner"] in ("bayesian", "optuna"):
        name = "num_initial_points" if settings["tuner"] == "bayesian" else "initial_points"
        third = max(2, settings["max_trials"] // 3)
        arguments[name] = settings["initial_points"] or third
    return _ORACLES[settings["tuner"]](**arguments)


def _write(path: Any, state: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(state).encode())
