"""Training a preset from its recipe: a resumable job around ``model.fit``."""

from __future__ import annotations

import time
from pathlib import Path

import keras
import numpy as np

from dynzoo import augmentation, backend, checkpoints, constraints, optimization, recipes
from dynzoo.allocator import keep_freed_memory
from dynzoo.averaging import take_mean
from dynzoo.by_epoch import at_epoch, values
from dynzoo.distorted_model import distorted_model
from dynzoo.distribution import OneDevice, Replicas
from dynzoo.held_out import held_out_accuracy, hold_out
from dynzoo.loss_of_epoch import LossOfEpoch
from dynzoo.runs import Run, message, session
from dynzoo.watching import Watch

__all__ = ["TrainingDivergedError", "build_model", "train"]


class TrainingDivergedError(RuntimeError):
    """The loss was no longer finite; the last good checkpoint is kept."""


def build_model(recipe: dict, num_classes: int, input_shape, dtype=None) -> keras.Model:
    """The model that a (validated) recipe describes, with fresh weights."""
    from dynzoo.models import ARCHITECTURES

    arguments = dict(recipe["architecture"])
    builder = ARCHITECTURES[arguments.pop("name")]
    arguments.setdefault("input_shape", tuple(input_shape))
    arguments.setdefault("num_classes", num_classes)
    arguments.setdefault("seed", recipe["training"]["seed"])
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(dtype or recipe["training"]["dtype"])
        return builder(name=recipe["name"], **arguments)
    except TypeError as error:
        raise recipes.RecipeError(f"`architecture`: {error}") from None
    finally:
        keras.config.set_dtype_policy(before)


def train(
    config,
    data_file=None,
    output=None,
    max_seconds=None,
    resume=False,
    verbose="auto",
    log=print,
    distribute=False,
    devices=None,
) -> keras.Model:
    """Trains the model of a recipe and returns it, in float32.

    After each epoch, and when the time is up, everything needed to go on is written to
    ``output/checkpoint.npz`` in one atomic step, and ``output/log.csv`` has a row an epoch
    (accuracies in percent; ``val_certified`` at the recipe's first eps, empty for a model without
    a certificate). With ``training.validate_every: n`` only every n-th epoch and the last one have
    held-out accuracies and a checkpoint, which pays where an epoch takes seconds. Model choice uses
    a held-out part of the training images; the test set is not read for it. When the last epoch is
    done, the preset is written to ``output/preset``. With ``training.start`` the weights come from
    that preset, with a fresh head for another number of classes; a checkpoint goes before.
    With ``training.average`` the preset's weights are the projected mean of those that
    ``output/epoch_<n>.npz`` keep; see `dynzoo.averaging.take_mean`.

    Args:
        config: a recipe: mapping, YAML file, or the name of one that ships.
        data_file: ``.npz`` file to use in place of the recipe's data set, or what `data.load` gave
            of it as bytes.
        output: run folder; default ``runs/<name>``.
        max_seconds: stop cleanly after this many seconds, data loading included.
        resume: go on from the checkpoint in ``output`` if there is one.
        verbose: as in ``model.fit``.
        log: called with each message.
        distribute: train copies of the model on several devices, each on its share of every
            batch; see `dynzoo.distribution.Replicas`. The result is that of one device up to
            rounding, and a checkpoint goes on with any number of devices.
        devices: how many, with ``distribute``; default all.

    Returns:
        The trained (or so far trained) model, on one device.

    Raises:
        RecipeError: if the recipe is wrong, naming the key.
        CheckpointError: if the run folder holds a run and ``resume`` is not set, or the
            checkpoint is damaged or belongs to another recipe.
        TrainingDivergedError: if the loss is not finite; the last good checkpoint is kept.
        DistributionError: if training cannot be spread over the devices, or this is one of
            several processes.
        ReplicasDivergedError: if the copies of the model are no longer the same after an epoch;
            nothing of that epoch is kept.
        ValueError: if ``max_seconds`` is not positive, or the preset of ``training.start`` is
            unknown or has a layer that does not match.

    Example:

    >>> train("isometric_small_cifar10", max_seconds=600, resume=True)
    """
    started = time.monotonic()
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"`max_seconds` must be positive. Received: max_seconds={max_seconds}")
    if devices is not None and not distribute:
        raise ValueError(f"`devices` needs `distribute=True`. Received: devices={devices}")
    recipe = recipes.load(config)
    settings = recipe["training"]
    run = Run(recipe, Path(output) if output else Path("runs") / recipe["name"])
    if run.checkpoint.exists() and not resume:
        raise checkpoints.CheckpointError(
            f"{run.checkpoint} exists: pass --resume to go on, or choose another output folder"
        )
    # Before anything is computed: a CPU that computes can no longer be divided.
    replicas = Replicas(devices) if distribute else OneDevice()
    replicas.check_batch_size(settings["batch_size"])
    ((x, y), validation), num_classes = hold_out(recipe, data_file)

    keep_freed_memory()
    keras.utils.set_random_seed(settings["seed"])
    batches = len(x) // settings["batch_size"]
    if batches == 0:
        raise recipes.RecipeError(
            f"`training.batch_size` must be at most {len(x)}, the training images. "
            f"Received: {settings['batch_size']}"
        )
    with replicas.scope():
        network = build_model(recipe, num_classes, x.shape[1:])
        replicas.synchronise(network)
        model = _with_distortions(network, recipe["data"])
        optimizer = optimization.make_optimizer(
            settings["optimizer"], settings["epochs"] * batches, settings["schedule"], batches
        )
        loss = LossOfEpoch(settings["loss"])
        loss.compile(model, optimizer)
        optimizer.build(model.trainable_variables)
    twin = _Twin(recipe, model, network, replicas)
    if run.checkpoint.exists():
        run.state = checkpoints.read(run.checkpoint, model, run.check)
        run.check_kept()
        log(f"resumed at epoch {run.state['epoch']}, batch {run.state['batch']}")
    elif settings["start"]:
        from dynzoo.warm_start import warm_start

        run.state["start"] = warm_start(twin.plain, settings["start"])
        twin.adopt()
        log(f"started from the weights of {run.state['start']['preset']}")
    if distribute:
        share = settings["batch_size"] // replicas.count
        log(f"{share} of {settings['batch_size']} images a batch on each of {replicas}")
    run.state["sessions"].append(session(max_seconds, replicas.count))

    deadline = None if max_seconds is None else started + max_seconds
    data = ((x, y), validation)
    finished = _loop(run, twin, loss, data, batches, deadline, started, verbose, log)
    if not finished:
        log(f"stopped at the time limit; {run.checkpoint} goes on with --resume")
        return twin.updated()
    if settings["average"]:
        take_mean(model, [run.kept(epoch) for epoch in settings["average"]], run.check)
    elif settings["keep"] == "best" and run.best.exists():
        checkpoints.read(run.best, model, run.check)
    final = twin.updated()
    constraints.project(final)
    measured = _held_out(run, final, validation) if settings["average"] else None
    log(f"preset written to {run.save_preset(final, measured)}")
    return final


def _with_distortions(model: keras.Model, section: dict) -> keras.Model:
    """The model that `fit` gets: with the distortions that the images have in some epoch."""
    turn, zoom, recolor = (any(values(section[key])) for key in augmentation.DISTORTIONS)
    return distorted_model(model, turn or zoom, recolor) if turn or zoom or recolor else model


class _Twin:
    """What `fit` gets, its network, and that in float32 on one device: itself, or a copy."""

    def __init__(self, recipe, model, network, replicas):
        self.model, self.network, self.replicas = model, network, replicas
        self.plain = network
        if recipe["training"]["dtype"] != "float32" or isinstance(replicas, Replicas):
            classes, shape = network.output_shape[-1], network.input_shape[1:]
            self.plain = build_model(recipe, classes, shape, "float32")

    def updated(self) -> keras.Model:
        if self.plain is not self.network:
            self.plain.set_weights([backend.value_of(v) for v in self.model.weights])
        return self.plain

    def adopt(self) -> None:
        """The model takes the weights of its twin."""
        if self.plain is not self.network:
            for variable, value in zip(self.model.weights, self.plain.get_weights(), strict=True):
                variable.assign(value)


def _loop(run, twin, loss, data, batches, deadline, started, verbose, log) -> bool:
    """Epoch after epoch; returns whether the last one was reached."""
    recipe, state, settings = run.recipe, run.state, run.recipe["training"]
    model, replicas = twin.model, twin.replicas
    (x, y), validation = data
    seconds_before = state["seconds"]
    while state["epoch"] < settings["epochs"]:
        section = at_epoch(recipe["data"], state["epoch"])
        dataset = augmentation.Augmented(
            x,
            y,
            batch_size=settings["batch_size"],
            seed=settings["seed"],
            epoch=state["epoch"],
            start_batch=state["batch"],
            padding=section["crop_padding"],
            distort=model is twin.network,
            **{key: section[key] for key in ("flip", *augmentation.DISTORTIONS)},
        )
        watch = Watch(deadline)
        with replicas.scope():
            if loss.start(state["epoch"]):
                loss.compile(model, model.optimizer)
            history = model.fit(
                dataset,
                initial_epoch=state["epoch"],
                epochs=state["epoch"] + 1,
                callbacks=[watch],
                shuffle=False,
                verbose=verbose,
            )
        # The last update before a stop is one whose loss nobody has seen yet.
        finite = all(np.isfinite(backend.value_of(v)).all() for v in model.weights)
        if watch.diverged or not finite:
            raise TrainingDivergedError(
                f"the loss or a weight was not finite in epoch {state['epoch'] + 1}. "
                f"{_last_good(run.checkpoint)}. Try a lower `training.optimizer.learning_rate`."
            )
        replicas.check_equal(model)
        state["batch"] += watch.batches
        state["seconds"] = seconds_before + time.monotonic() - started
        look = False
        if state["batch"] >= batches:
            epoch = state["epoch"] + 1
            state.update(epoch=epoch, batch=0)
            look = epoch == settings["epochs"] or epoch % settings["validate_every"] == 0
            row = _epoch_row(run, twin, history, validation if look else None)
            state["history"].append(row)
            if epoch in settings["average"]:
                checkpoints.write(run.kept(epoch), model, state)
            if look and run.best_row() is row:
                checkpoints.write(run.best, model, state)
            log(message(row, settings["epochs"]))
        out_of_time = watch.out_of_time or (deadline is not None and time.monotonic() > deadline)
        if look or out_of_time:
            checkpoints.write(run.checkpoint, model, state)
        run.log()
        if out_of_time and state["epoch"] < settings["epochs"]:
            return False
    return True


def _last_good(checkpoint: Path) -> str:
    kept = f"The last good checkpoint is kept: {checkpoint}"
    return kept if checkpoint.exists() else "There is no checkpoint yet"


def _held_out(run, model, validation) -> dict:
    accuracy, certified = held_out_accuracy(model, validation, run.recipe["evaluation"]["eps"][0])
    return {
        "val_accuracy": round(100 * accuracy, 3),
        "val_certified": None if certified is None else round(100 * certified, 3),
    }


def _epoch_row(run, twin, history, validation) -> dict:
    rate = twin.model.optimizer.learning_rate
    row = {
        "epoch": run.state["epoch"],
        "seconds": round(run.state["seconds"], 1),
        "learning_rate": round(float(backend.to_numpy(rate)), 8),
        "loss": round(float(history.history["loss"][-1]), 6),
        "accuracy": round(100 * float(history.history["accuracy"][-1]), 3),
        "val_accuracy": None,
        "val_certified": None,
    }
    return row | _held_out(run, twin.updated(), validation) if validation else row
