"""Training a preset from its recipe: a resumable job around ``model.fit``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import keras

from dynzoo import backend, constraints
from dynzoo.augmentation import batches as augmentation
from dynzoo.augmentation.on_device import distorted_model
from dynzoo.training import builders as optimization
from dynzoo.training import checkpoints, recipes
from dynzoo.training.arguments import check_training
from dynzoo.training.averaging import has_averages, take_averages, take_mean
from dynzoo.training.builders import GivenRate
from dynzoo.training.distribution import (
    DistributionError,
    OneDevice,
    OneProcess,
    Replicas,
    separate_processes,
)
from dynzoo.training.epoch_values import values
from dynzoo.training.epochs import TrainingDivergedError, TrainingLoop, held_out_row
from dynzoo.training.fitted_epochs import FittedEpochs
from dynzoo.training.loss_of_epoch import LossOfEpoch
from dynzoo.training.processes import Processes
from dynzoo.training.resident_epochs import ResidentEpochs, resident_needs_jax
from dynzoo.training.run import Run, session
from dynzoo.training.validation import hold_out
from dynzoo.utils import interruption
from dynzoo.utils.allocator import keep_freed_memory
from dynzoo.utils.files import check_place
from dynzoo.utils.tensorflow_import import set_random_seed

__all__ = ["TrainingDivergedError", "build_model", "train"]


_RESERVE = 10.0  # seconds of a run by the clock that are kept for its last look and its weights


def build_model(recipe: dict, num_classes: int, input_shape, dtype=None) -> keras.Model:
    """The model that a (validated) recipe describes, with fresh weights.

    Args:
        recipe: a complete recipe, as ``dynzoo.recipes.load`` gives it.
        num_classes: number of classes, unless the recipe's architecture says one.
        input_shape: (height, width, channels), unless the recipe's architecture says one.
        dtype: a Keras dtype policy in place of the recipe's.

    Returns:
        A ``keras.Model`` from images in [0, 1] to logits.

    Raises:
        RecipeError: if the architecture has an argument that its function does not take, or fewer
            classes than the data.

    Example:

    >>> import dynzoo
    >>> from dynzoo.training import build_model
    >>> recipe = dynzoo.recipes.load("isometric_tiny_cifar10")
    >>> build_model(recipe, num_classes=10, input_shape=(32, 32, 3)).count_params()
    1502986
    """
    from dynzoo.models import ARCHITECTURES

    arguments = dict(recipe["architecture"])
    builder = ARCHITECTURES[arguments.pop("name")]
    arguments.setdefault("input_shape", tuple(input_shape))
    chosen = arguments.setdefault("num_classes", num_classes)
    if isinstance(chosen, int) and 2 <= chosen < num_classes:
        raise recipes.RecipeError(
            f"`architecture.num_classes` must be at least {num_classes}, the classes of the data. "
            f"Received: {chosen}"
        )
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
    pilot=None,
    weights_dtype="float32",
    layout=None,
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
    ``output/epoch_<n>.npz`` keep; see ``dynzoo.training.averaging.take_mean``.

    With ``training.resident`` images, batches and steps stay on the device (JAX only; see
    ``dynzoo.training.resident_epochs.ResidentEpochs``), and what log.csv says of held-out images is
    a quick look (``dynzoo.training.quick_look.QuickLook``); the finished model is measured exactly.
    With ``training.clock`` as well, the schedule is stretched over ``max_seconds``: its epochs
    become shares of the time, the rate reaches 0 when the time is up, and the weights are written
    then and at 60 and 80 % of it.

    Args:
        config: a recipe: mapping, YAML file, or the name of one that ships.
        data_file: ``.npz`` file to use in place of the recipe's data set, or what ``data.load``
            gave of it as bytes.
        output: run folder; default ``runs/<name>``.
        max_seconds: stop cleanly after this many seconds, data loading included.
        resume: go on from the checkpoint in ``output`` if there is one.
        verbose: as in ``model.fit``.
        log: called with each message.
        distribute: train copies of the model on several devices, each on its share of every
            batch; see ``dynzoo.training.distribution.Replicas``. The result is that of one device
            up to rounding, and a checkpoint goes on with any number of devices. In one of several
            processes it trains with the others in any case; see
            ``dynzoo.training.processes.Processes``.
        devices: how many, with ``distribute``; default all.
        pilot: train nothing, but time steps for so many seconds and log what the training would
            cost.
        weights_dtype: of the preset's large arrays, ``"float32"`` or ``"float16"``: see
            ``dynzoo.save_to_preset``. With ``"float16"`` the held-out accuracies of a resident
            training are those of its last quick look.
        layout: divide the kernels over the devices of a mesh, ``"model=4"``, ``"batch=2,model=2"``
            or a YAML file (JAX only); see ``dynzoo.training.layouts.Sharded``. The result is that
            of one device up to rounding, and a checkpoint goes on with any layout.

    Returns:
        The trained (or so far trained) model, on one device.

    Raises:
        RecipeError: if the recipe is wrong, naming the key.
        CheckpointError: if the run folder holds a run and ``resume`` is not set, or the
            checkpoint is damaged or belongs to another recipe.
        TrainingDivergedError: if the loss is not finite; the last good checkpoint is kept.
        OSError: if nothing can be written into the run folder.
        DistributionError: if training cannot be spread over the devices or the processes.
        ProcessLostError: if another process of the same training is gone.
        ReplicasDivergedError: if the copies of the model are no longer the same after an epoch;
            nothing of that epoch is kept.
        ValueError: if ``max_seconds`` is not positive, or the preset of ``training.start`` is
            unknown or has a layer that does not match.

    Example:

    >>> from dynzoo.training import train
    >>> model = train("isometric_small_cifar10", max_seconds=600, resume=True)
    """
    started = time.monotonic()
    check_training(max_seconds, distribute, devices, pilot, weights_dtype, layout)
    recipe = recipes.load(config)
    settings = recipe["training"]
    _check_engine(settings, max_seconds, distribute or layout is not None, pilot)
    run = Run(recipe, Path(output) if output else Path("runs") / recipe["name"])
    # Before anything is computed: a CPU that computes can no longer be divided.
    replicas = _devices(distribute, devices, layout)
    replicas.check_batch_size(settings["batch_size"])
    if not replicas.writes:  # one process speaks for all
        verbose, log = 0, _silent
    with replicas.guard():
        if pilot is None:
            _check_output(run, resume, replicas)
        interruption.keeps(run.kept_so_far)
        if not isinstance(data_file, tuple):  # one that is in memory already
            log(f"{recipe['name']}: reading {data_file or recipe['data']['name']}")
        ((x, y), validation), num_classes = hold_out(recipe, data_file, log)
        run.trains_on(x, y)
        replicas.check_same("a recipe or images", f"{recipe} {run.state['images']}")
        keep_freed_memory()
        set_random_seed(settings["seed"])
        batches = _batches_an_epoch(settings, len(x))
        twin, loss = _compiled(recipe, num_classes, x.shape[1:], batches, replicas)
        size = " x ".join(map(str, x.shape[1:]))
        log(
            f"{len(x):,} images of {size} to train on, {len(validation[0]):,} held out; "
            f"{twin.network.count_params():,} parameters; {settings['epochs']} epochs of "
            f"{batches:,} batches; compiling for {backend.name()} with the first batch"
        )
        if pilot is None:
            _restore(run, twin, log)
        if not isinstance(replicas, OneDevice):
            replicas.check_equal(twin.model)
            share = settings["batch_size"] // replicas.count
            log(f"{share} of {settings['batch_size']} images a batch on each of {replicas}")
        run.state["sessions"].append(session(max_seconds, replicas.count, replicas.processes))

        deadline = None if max_seconds is None else started + max_seconds
        engine = _engine(settings, twin.model, x, y, replicas, verbose)

        def save(measured=None) -> Path:
            constraints.project(twin.updated())
            return run.save_preset(twin.plain, measured, weights_dtype)

        def write():
            log(f"weights of the unfinished run written to {save()}")

        loop = TrainingLoop(run, twin, engine, loss, validation, deadline, started, log, write)
        with interruption.training():
            if pilot is not None:
                log(loop.pilot(pilot, max_seconds))
                return twin.updated()
            if settings["clock"]:
                done = loop.by_clock(deadline - min(_RESERVE, 0.05 * max_seconds))
            else:
                done = loop.by_epochs()
        if settings["clock"]:
            log(f"preset written to {save()}")
        elif not done:
            log(f"stopped at the time limit; {run.checkpoint} goes on with --resume")
            return twin.updated()
        _choose_weights(run, twin)
    if not replicas.writes:
        constraints.project(twin.updated())
        return twin.plain
    measured = None
    if settings["average"] or (settings["resident"] and weights_dtype == "float32"):
        constraints.project(twin.updated())
        measured = held_out_row(run, twin.plain, validation)
    if not settings["clock"] or measured:
        log(f"preset written to {save(measured)}")
    return twin.plain


def _devices(distribute: bool, devices: int | None, layout) -> OneProcess | Processes:
    """What a training runs on: several processes where this is one of them, else this one alone."""
    if layout is not None:
        from dynzoo.training.layouts import Sharded

        return Sharded(layout)
    if separate_processes() == 1:
        return Replicas(devices) if distribute else OneDevice()
    if devices is not None:
        raise DistributionError(
            "`devices` (--devices) must be left out in one of several processes, which use all "
            f"devices that each of them sees. Received: devices={devices}"
        )
    return Processes()


def _silent(message: str) -> None:
    """What the other processes say."""


def _batches_an_epoch(settings: dict, images: int) -> int:
    batches = images // settings["batch_size"]
    if batches == 0:
        raise recipes.RecipeError(
            f"`training.batch_size` must be at most {images}, the training images. "
            f"Received: {settings['batch_size']}"
        )
    return batches


def _compiled(recipe, num_classes, shape, batches, replicas) -> tuple[_Twin, LossOfEpoch]:
    """The model of a recipe with its optimizer and its loss."""
    settings = recipe["training"]
    with replicas.scope():
        network = build_model(recipe, num_classes, shape)
        replicas.synchronise(network)
        model = _with_distortions(network, recipe["data"])
        optimizer = optimization.make_optimizer(
            settings["optimizer"], settings["epochs"] * batches, settings["schedule"], batches
        )
        if settings["resident"]:
            optimizer.learning_rate = GivenRate(optimizer._learning_rate)
        loss = LossOfEpoch(settings["loss"])
        loss.compile(model, optimizer)
        replicas.average(model)
        # where Keras has wrapped it for float16, the wrapper: its state is in checkpoints as well
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
    return _Twin(recipe, model, network, replicas), loss


def _check_output(run: Run, resume: bool, replicas) -> None:
    """That the run folder can be written into, and holds no run that is not to go on."""
    if not resume and replicas.exists(run.checkpoint):
        raise checkpoints.CheckpointError(
            f"{run.checkpoint} exists: pass --resume to go on, or choose another output folder"
        )
    if replicas.writes:
        check_place(run.output, folder=True)


def _restore(run: Run, twin: _Twin, log) -> None:
    """Where a run stood, or the weights that it starts from."""
    start = run.recipe["training"]["start"]
    replicas = twin.replicas
    if replicas.exists(run.checkpoint):
        # which a run from before they were written down does not have
        now = {key: run.state[key] for key in ("images", "judged", "optimizer")}
        with replicas.scope():
            run.state = checkpoints.read(run.checkpoint, twin.model, run.check, replicas.read)
        run.state.update(now)
        run.check_kept(replicas.exists)
        _check_best(run, twin)
        run.note_kept()
        log(f"resumed at epoch {run.state['epoch']}, batch {run.state['batch']}")
    elif start:
        from dynzoo.training.warm_start import warm_start

        run.state["start"] = warm_start(twin.plain, start)
        twin.adopt()
        log(f"started from the weights of {run.state['start']['preset']}")


def _check_best(run: Run, twin: _Twin) -> None:
    """That the weights of the best epoch so far are in their file, or can be put there."""
    replicas, best = twin.replicas, run.best_row()
    if run.recipe["training"]["keep"] != "best" or best is None:
        return
    held = checkpoints.state_of(run.best, replicas.read) if replicas.exists(run.best) else None
    if held is not None and held.get("epoch") == best["epoch"]:
        return
    if (run.state["epoch"], run.state["batch"]) != (best["epoch"], 0):
        what = "is missing" if held is None else f"holds those after epoch {held.get('epoch')}"
        raise checkpoints.CheckpointError(
            f"`training.keep: best` keeps the weights after epoch {best['epoch']}, but {run.best} "
            f"{what}: put the right file there, keep the last weights, or use another output folder"
        )
    if replicas.writes:  # killed between its two files, or moved without this one
        checkpoints.write(run.best, twin.model, run.state)


def _choose_weights(run: Run, twin: _Twin) -> None:
    """Gives the model those of its weights that the recipe keeps, where they are not the last.

    With ``use_ema`` they are the optimizer's averages, at the last or the best epoch.
    """
    settings, load = run.recipe["training"], twin.replicas.read
    with twin.replicas.scope():
        if settings["average"]:
            kept = [run.kept(epoch) for epoch in settings["average"]]
            take_mean(twin.model, kept, run.check, load)
        elif settings["keep"] == "best" and run.best_row():
            checkpoints.read(run.best, twin.model, run.check, load)
        take_averages(twin.model)


def _check_engine(settings: dict, max_seconds, distribute: bool, pilot) -> None:
    """What resident training and the clock need; said before any image is read."""
    if settings["clock"] and max_seconds is None and pilot is None:
        raise ValueError(
            "`training.clock` stretches the schedule over `max_seconds` (--max-seconds), which "
            "must be given. Received: max_seconds=None"
        )
    if settings["resident"] and backend.name() != "jax":
        raise ValueError(resident_needs_jax())
    if settings["resident"] and (distribute or separate_processes() > 1):
        raise ValueError(
            "`distribute` (--distribute), `layout`, several processes and `training.resident` are "
            "ways to use devices: give one. Received: resident=True beside another"
        )


def _engine(settings, model, x, y, replicas, verbose) -> FittedEpochs | ResidentEpochs:
    """What takes the epochs: on the device as a whole, or ``model.fit``."""
    arguments = (model, x, y, settings["batch_size"], settings["seed"], replicas)
    if settings["resident"]:
        return ResidentEpochs(*arguments)
    return FittedEpochs(*arguments, verbose=verbose, total=settings["epochs"])


def _with_distortions(model: keras.Model, section: dict) -> keras.Model:
    """The model that ``fit`` gets: with the distortions that the images have in some epoch."""
    turn, zoom, recolor = (any(values(section[key])) for key in augmentation.DISTORTIONS)
    return distorted_model(model, turn or zoom, recolor) if turn or zoom or recolor else model


class _Twin:
    """What ``fit`` gets, its network, and that in float32 on one device: itself, or a copy."""

    def __init__(self, recipe, model, network, replicas):
        self.model, self.network, self.replicas = model, network, replicas
        self.plain = network
        if recipe["training"]["dtype"] != "float32" or replicas.apart:
            classes, shape = network.output_shape[-1], network.input_shape[1:]
            self.plain = build_model(recipe, classes, shape, "float32")

    def updated(self) -> keras.Model:
        if self.plain is not self.network:
            self.plain.set_weights([backend.value_of(v) for v in self.model.weights])
        return self.plain

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[keras.Model]:
        """The network in float32 as it would be kept now: with ``use_ema`` the averages."""
        if not has_averages(self.model):
            yield self.updated()
            return
        variables = self.model.trainable_variables
        raw = [backend.value_of(v) for v in variables]
        take_averages(self.model)
        plain = self.updated()
        constraints.project(plain)
        try:
            yield plain
        finally:
            for variable, value in zip(variables, raw, strict=True):
                variable.assign(value)

    def adopt(self) -> None:
        """The model takes the weights of its twin."""
        if self.plain is not self.network:
            for variable, value in zip(self.model.weights, self.plain.get_weights(), strict=True):
                variable.assign(value)
