"""One trial: the network of a recipe, built, trained and measured on held-out images."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.errors import FailedTrialError

from dynzoo.data import loading as data
from dynzoo.robustness import evaluation as robustness
from dynzoo.training import loop as training
from dynzoo.training.checkpoints import CheckpointError, NotFiniteError
from dynzoo.training.validation import hold_out, labels_and_radii
from dynzoo.tuning.config import SearchConfig
from dynzoo.utils.strict_json import short

__all__ = ["RecipeModel", "epochs_of"]


def epochs_of(tuned: dict[str, Any]) -> int | None:
    """The length of training that Hyperband has chosen for a trial, else ``None``."""
    return tuned.get("tuner/epochs")


class RecipeModel(keras_tuner.HyperModel):
    """A recipe whose values at some keys are chosen by keras-tuner.

    Args:
        config: the search.
        splits: the data as ``dynzoo.data.load_exact`` gives them.

    Example:

    >>> hypermodel = RecipeModel(SearchConfig.load("digits"), data.load("digits", dtype="uint8"))
    >>> hp = keras_tuner.HyperParameters()
    >>> hypermodel.declare_hyperparameters(hp)
    >>> hypermodel.build(hp).count_params()
    """

    def __init__(self, config: SearchConfig, splits: Any):
        super().__init__(name=config.recipe["name"])
        self.config = config
        self.splits = splits
        self.log: Callable[[str], None] = lambda line: None

    def declare_hyperparameters(self, hp: Any) -> None:
        for dimension in self.config.space:
            dimension.declare(hp)

    def build(self, hp: Any) -> keras.Model:
        """The network, with fresh weights.

        Raises:
            ValueError: if the values do not go together.
            FailedTrialError: if it has more parameters than ``search.max_model_size``.
        """
        self.declare_hyperparameters(hp)
        (x, y), _ = self.splits
        model = training.build_model(self._recipe(hp), int(y.max()) + 1, x.shape[1:])
        limit = self.config.settings["max_model_size"]
        if limit and model.count_params() > limit:
            raise FailedTrialError(
                f"too large: {model.count_params():,} parameters, `search.max_model_size` is "
                f"{limit:,}"
            )
        return model

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Trains the recipe of these values by ``dynzoo.training.train``, and measures the result.

        Args:
            hp: values of keras-tuner's.
            model: what ``build`` gave; ``train`` builds its own.
            *args: none.
            **kwargs: ``folder``, where the run has its checkpoint; ``start``, a run of the same
                network that it goes on from unless the folder has one, or ``None``.

        Returns:
            Shares ``clean``, ``certified`` and ``attacked`` of the held-out images (the last two
            ``None`` where not known), ``epochs``, and ``reason`` if the training was cut short.
        """
        del model, args
        folder, start = Path(kwargs["folder"]), kwargs["start"]
        recipe = self._recipe(hp)
        if start is not None and not (folder / "checkpoint.npz").exists():
            _copy_run(start, folder)
        trained = training.train(
            recipe,
            self.splits,
            folder,
            max_seconds=self._seconds_left(folder),
            resume=True,
            verbose=0,
            log=self.log,
        )
        (_, held_out), _ = hold_out(recipe, self.splits)
        done, planned = len(_epochs_done(folder)), recipe["training"]["epochs"]
        cut = done < planned
        return {
            **measure(trained, held_out, recipe, self.config.settings),
            "epochs": done,
            "reason": f"time limit in epoch {done + 1} of {planned}" if cut else "",
        }

    def _recipe(self, hp: Any) -> dict[str, Any]:
        return self.config.recipe_of(self.config.values(hp.values), epochs_of(hp.values))

    def _seconds_left(self, folder: Path) -> float | None:
        """What a run that was interrupted, or goes on from a shorter one, has left of its time."""
        limit = self.config.settings["seconds_per_trial"]
        rows = _epochs_done(folder)
        return max(1.0, limit - (float(rows[-1]["seconds"]) if rows else 0.0)) if limit else None


def measure(model: keras.Model, held_out: Any, recipe: dict, settings: dict) -> dict[str, Any]:
    """Shares of the held-out images that are right, proved, and still right under attack."""
    x, y = data.to_float(held_out[0]), held_out[1]
    norm, eps = recipe["evaluation"]["norm"], recipe["evaluation"]["eps"][0]
    labels, radii = labels_and_radii(model, x)
    correct = labels == y
    result: dict[str, Any] = {"clean": float(correct.mean()), "certified": None, "attacked": None}
    if radii is not None:
        # The Linf ball lies in the L2 ball that is larger by this factor.
        radius = eps * float(np.sqrt(x[0].size)) if norm == "linf" else eps
        result["certified"] = float((correct & (radii > radius)).mean())
    if settings["attacks"] != "none":
        count = settings["attack_images"]
        report = robustness.evaluate(
            model, x[:count], y[:count], norm, [eps], settings["attacks"], checks="quick"
        )
        result["attacked"] = report.robust[eps]
    if result[settings["objective"]] is None:
        raise FailedTrialError("the network has no certificate")
    return result


def attempt(hypermodel: RecipeModel, hp: Any, folder: Path, worker: str, past: Path | None) -> dict:
    """Builds, trains and measures; a network that cannot be is recorded, not raised.

    Args:
        hypermodel: the search's.
        hp: values of keras-tuner's.
        folder: folder of the trial.
        worker: who runs it; a run that another one began there is taken over.
        past: folder of the trial that Hyperband goes on from, or ``None``.

    Returns:
        What is to be recorded of the trial.

    Raises:
        OSError: if the folder cannot be written to: no other trial could be either.
        CheckpointError: if a file of the trial is damaged, naming it: the network is not to blame.
    """
    began = time.monotonic()
    keras.backend.clear_session()  # of the networks before
    result: dict[str, Any] = {"status": "failed", "worker": worker}
    try:
        model = hypermodel.build(hp)
        result["parameters"] = int(model.count_params())
        start = _latest_run(folder) or (_latest_run(past) if past else None)
        result |= hypermodel.fit(hp, model, folder=folder / worker, start=start)
        result["status"] = "completed"
    except NotFiniteError as error:
        result["reason"] = _one_line(error)
    except (OSError, CheckpointError):
        raise
    except (ValueError, FailedTrialError, training.TrainingDivergedError) as error:
        result["reason"] = _one_line(error)
    except Exception as error:  # out of memory, or a layer that this backend cannot compute
        result["reason"] = f"{type(error).__name__}: {_one_line(error)}"
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def forget_checkpoints(folder: Path) -> None:
    """Removes what only serves to go on with the training of a trial."""
    for name in ("checkpoint.npz", "best.npz", "epoch_*.npz"):
        for path in folder.glob(f"*/{name}"):
            path.unlink(missing_ok=True)


def _one_line(error: Exception, length: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[:length] + " ..."


def _latest_run(folder: Path) -> Path | None:
    """The run of a trial that was written to last, by whichever worker."""
    checkpoints = sorted(folder.glob("*/checkpoint.npz"), key=lambda p: p.stat().st_mtime)
    return checkpoints[-1].parent if checkpoints else None


def _copy_run(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in ("log.csv", "best.npz", "checkpoint.npz"):  # the checkpoint last: it counts
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def _epochs_done(folder: Path) -> list[dict[str, str]]:
    path = folder / "log.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not all(float(row["seconds"]) >= 0 for row in rows):
            raise ValueError("its seconds are no numbers >= 0")
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise CheckpointError(
            f"{path} is damaged ({short(repr(error))}): delete it, and it is written again"
        ) from None
    return rows
