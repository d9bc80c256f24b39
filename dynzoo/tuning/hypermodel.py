"""One trial: the network of a recipe, built, trained and measured on held-out images."""

from __future__ import annotations

import csv
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from dynzoo.data import datasets as data
from dynzoo.robustness import evaluation as robustness
from dynzoo.training import loop as training
from dynzoo.training.builders import make_loss
from dynzoo.training.checkpoints import CheckpointError, NotFiniteError
from dynzoo.training.epoch_values import at_epoch
from dynzoo.training.validation import hold_out, l2_radius, labels_and_radii
from dynzoo.tuning.config import OBJECTIVES, SearchConfig
from dynzoo.utils.extras import extra
from dynzoo.utils.strict_json import short

with extra("tuning"):
    import keras_tuner
    from keras_tuner.errors import FailedTrialError

__all__ = ["HyperModel", "RecipeModel", "epochs_of"]


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
                network that it goes on from unless the folder has one, or ``None``; ``into``, a
                model that gets the trained weights, if any does.

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
        if (into := kwargs.get("into")) is not None:
            into.set_weights(trained.get_weights())
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


class HyperModel(RecipeModel):
    """The space around a recipe, for any tuner of keras-tuner's, or one of your own.

    ``dynzoo.tuning.search`` is a tuner with a folder that goes on after a kill, a table and plots.
    This is for those who have a tuner: ``build`` gives the network of a trial, compiled; ``fit``
    trains it by its recipe and gives the tuner the shares of the held-out images that are right
    (``clean``), proved (``certified``) and, if ``search.attacks`` says how, right under attack
    (``attacked``). Of the section ``search``, ``attacks``, ``attack_images``, ``max_model_size``
    and ``seconds_per_trial`` hold; the tuner decides the rest.

    Condition: each trial is trained from fresh weights, also under Hyperband, whose longer trials
    then repeat the shorter ones. Callbacks are called once, after the last epoch.

    Args:
        config: a search: mapping, YAML file, or the name of one that ships.
        data_file: what ``dynzoo.data.load`` shall read in place of the recipe's data set.

    Raises:
        RecipeError: if the config is wrong, naming the key.
        ValueError: if the data cannot be had, or do not hold what is held out.

    Example:

    >>> import keras_tuner
    >>> from dynzoo.tuning import HyperModel
    >>> tuner = keras_tuner.RandomSearch(
    ...     HyperModel("digits"),
    ...     objective=keras_tuner.Objective("certified", "max"),
    ...     max_trials=3,
    ...     directory="my_search",
    ... )
    >>> tuner.search()
    >>> model = tuner.get_best_models()[0]
    """

    def __init__(self, config: Any, data_file: Any = None):
        plan = SearchConfig.load(config)
        super().__init__(plan, read_splits(plan, data_file or plan.recipe["data"]["name"]))

    def build(self, hp: Any) -> keras.Model:
        """The network, with fresh weights, compiled with the loss of its recipe.

        Raises:
            ValueError: if the values do not go together.
            FailedTrialError: if it has more parameters than ``search.max_model_size``.
        """
        model = super().build(hp)
        loss = at_epoch(self._recipe(hp)["training"]["loss"], 0)
        model.compile("adam", make_loss(loss), metrics=["accuracy"])
        return model

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Trains by the recipe of these values, and measures the result.

        Of what the tuner's ``search`` was given it takes ``callbacks``, among which the tuner's own
        keep the weights, and ``verbose``; what Hyperband says of epochs stands in ``hp`` too.

        Args:
            hp: values of keras-tuner's.
            model: what ``build`` gave; it has the trained weights afterwards.

        Returns:
            Shares ``clean``, ``certified`` and ``attacked`` of the held-out images, those that are
            known.

        Raises:
            ValueError: for images given to the tuner's ``search``: the recipe says what is read.
            FailedTrialError: if the training diverges.
        """
        unknown = sorted(set(kwargs) - {"callbacks", "epochs", "initial_epoch", "verbose"})
        if args or unknown:
            what = ", ".join(unknown) or f"{len(args)} positional arguments"
            raise ValueError(
                "`search` of the tuner takes `callbacks` and `verbose`: images, epochs and batch "
                f"size are those of the recipe. Received: {what}"
            )
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = RecipeModel.fit(self, hp, model, folder=folder, start=None, into=model)
            except training.TrainingDivergedError as error:
                raise FailedTrialError(_one_line(error)) from error
        shares = {k: v for k, v in result.items() if k in OBJECTIVES and v is not None}
        _call(kwargs.get("callbacks") or [], model, result["epochs"], shares)
        return shares


def _call(callbacks: Any, model: keras.Model, epochs: int, shares: dict[str, float]) -> None:
    """Tells callbacks of the last epoch: those of a tuner keep the weights, or stop it."""
    for callback in callbacks:
        callback.set_model(model)
        callback.on_train_begin()
        callback.on_epoch_begin(epochs - 1)
        callback.on_epoch_end(epochs - 1, dict(shares))
        callback.on_train_end(dict(shares))


def read_splits(plan: SearchConfig, source: Any) -> Any:
    """The data of a search, as ``dynzoo.data.load_exact`` gives them.

    Raises:
        ValueError: if they cannot be had, or do not hold what the recipe holds out.
    """
    try:
        splits = data.load_exact(source)
    except RuntimeError as error:  # neither here nor to be had: the message says what to do
        raise ValueError(str(error)) from error
    hold_out(plan.recipe, splits)  # a held-out part that the data do not have
    return splits


def measure(model: keras.Model, held_out: Any, recipe: dict, settings: dict) -> dict[str, Any]:
    """Shares of the held-out images that are right, proved, and still right under attack."""
    x, y = data.to_float(held_out[0]), held_out[1]
    norm, eps = recipe["evaluation"]["norm"], recipe["evaluation"]["eps"][0]
    labels, radii = labels_and_radii(model, x)
    correct = labels == y
    result: dict[str, Any] = {"clean": float(correct.mean()), "certified": None, "attacked": None}
    if radii is not None:
        radius = l2_radius(recipe["evaluation"], x.shape[1:])
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
