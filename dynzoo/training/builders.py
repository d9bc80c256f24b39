"""Losses, optimizers and the learning-rate schedule of a recipe, built from their names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo import losses, optimizers
from dynzoo.utils.arguments import integer

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "GivenRate",
    "PiecewiseLinear",
    "Trapezoid",
    "build_variables",
    "make_loss",
    "make_optimizer",
]


def _crossentropy():
    """Cross-entropy of logits, for networks that are not asked for a margin."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


LOSSES = {
    "crossentropy": _crossentropy,
    "efficient_margin": losses.EfficientMargin,
    "offset_crossentropy": losses.OffsetCrossentropy,
    "multiclass_hinge": losses.MulticlassHinge,
}


@keras.saving.register_keras_serializable(package="dynzoo")
class Trapezoid(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, a plateau, and a linear decay to zero.

    Args:
        peak: learning rate of the plateau.
        total_steps: optimizer updates of the whole training, a positive integer.
        warmup: share of the updates that warms up, in [0, 1].
        decay: share of the updates that decays, in [0, 1].

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> keras.optimizers.SGD(Trapezoid(0.1, total_steps=1000, warmup=0.1, decay=0.5))
    """

    def __init__(self, peak, total_steps, warmup=0.02, decay=0.5):
        if not (0 <= warmup <= 1 and 0 <= decay <= 1 and warmup + decay <= 1):
            raise ValueError(
                "`warmup` and `decay` must be shares in [0, 1] that add up to at most 1. "
                f"Received: warmup={warmup}, decay={decay}"
            )
        self.peak = float(peak)
        self.total_steps = integer("total_steps", total_steps)
        self.warmup = float(warmup)
        self.decay = float(decay)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        up = (step + 1.0) / max(1.0, self.warmup * self.total_steps)
        down = (self.total_steps - step) / max(1.0, self.decay * self.total_steps)
        return self.peak * ops.clip(ops.minimum(up, down), 0.0, 1.0)

    def get_config(self):
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup": self.warmup,
            "decay": self.decay,
        }


@keras.saving.register_keras_serializable(package="dynzoo")
class GivenRate(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule in whose place a rate can be given: by a clock, or by a loop over many steps.

    Args:
        schedule: what holds where nothing is given.

    Example:

    >>> rate = GivenRate(Trapezoid(0.1, total_steps=1000))
    >>> with rate.given(0.05):
    ...     state = step(state)  # traced here, with a rate that may be an argument
    """

    def __init__(self, schedule):
        self.schedule = schedule
        self._given: Any = None

    @contextlib.contextmanager
    def given(self, rate: Any) -> Iterator[None]:
        """A scope in which the rate is this one."""
        self._given = rate
        try:
            yield
        finally:
            self._given = None

    def __call__(self, step):
        return self.schedule(step) if self._given is None else self._given

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]))


@keras.saving.register_keras_serializable(package="dynzoo")
class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Straight lines between given points: plateaus, decays and restarts.

    Args:
        steps: updates at which a value is given, increasing, from 0.
        rates: learning rate at each of them, at least 0; the last one holds from there on.

    Raises:
        ValueError: if the points are not as described.

    Example:

    >>> keras.optimizers.SGD(PiecewiseLinear([0, 100, 1000], [0.0, 0.1, 0.0]))
    """

    def __init__(self, steps, rates):
        steps, rates = [float(s) for s in steps], [float(r) for r in rates]
        increasing = all(a < b for a, b in zip(steps, steps[1:], strict=False))
        if not steps or steps[0] != 0 or not increasing or len(steps) != len(rates):
            raise ValueError(
                "`steps` must increase from 0, with one of `rates` each. "
                f"Received: steps={steps}, rates={rates}"
            )
        if not all(0 <= r < float("inf") for r in rates):
            raise ValueError(f"`rates` must be finite and at least 0. Received: rates={rates}")
        self.steps = steps
        self.rates = rates

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rate = ops.zeros_like(step) + self.rates[0]
        last = self.steps[0]
        for a, b, low, high in zip(
            self.steps, self.steps[1:], self.rates, self.rates[1:], strict=False
        ):
            share = ops.clip((step - a) / (b - a), 0.0, 1.0)
            rate = ops.where(step >= a, low + share * (high - low), rate)
            last = b
        return ops.where(step >= last, ops.zeros_like(step) + self.rates[-1], rate)

    def get_config(self):
        return {"steps": self.steps, "rates": self.rates}


def _muon(learning_rate, adam_learning_rate=0.002, momentum=0.95, **arguments):
    """Riemannian Muon for matrices, Adam for the rest and for the head (whose rows are unit)."""

    def build(schedule):
        return optimizers.RiemannianMuon(
            schedule,
            adam_lr_ratio=adam_learning_rate / learning_rate,
            momentum=momentum,
            weight_decay=None,
            rms_rate=None,
            exclude_layers=["head"],
            **{"adam_beta_2": 0.99, "stacked": True, **arguments},
        )

    return build


def _plain(optimizer):
    def configure(learning_rate, **arguments):
        return lambda schedule: optimizer(schedule, **arguments)

    return configure


OPTIMIZERS = {
    "muon": _muon,
    "sgd": _plain(keras.optimizers.SGD),
    "adam": _plain(keras.optimizers.Adam),
    "adamw": _plain(keras.optimizers.AdamW),
    "nadam": _plain(keras.optimizers.Nadam),
}


def make_loss(config: dict) -> keras.losses.Loss:
    """The loss that a recipe's ``training.loss`` describes."""
    arguments = {k: v for k, v in config.items() if k != "name"}
    try:
        return LOSSES[config["name"]](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`training.loss`: {error}") from None


def make_optimizer(
    config: dict, total_steps: int, schedule: dict, steps_per_epoch: int = 1
) -> keras.optimizers.Optimizer:
    """The optimizer of a recipe's ``training.optimizer``, with its schedule.

    Keras' schedules and averages of weights run on a clock of batches, also where gradients of
    several make one update: the schedule here is given in batches, and an average is given the
    momentum that makes it, over the batches of an update, what the recipe says.

    Args:
        config: name, learning rate and further arguments.
        total_steps: batches of the whole training.
        schedule: ``warmup`` and ``decay`` as shares of it; or ``points``, a mapping from epoch to
            share of the learning rate, with straight lines between.
        steps_per_epoch: batches an epoch, for ``points``.

    Raises:
        ValueError: for arguments that the optimizer or the schedule does not take.
    """
    arguments = _by_batch({k: v for k, v in config.items() if k != "name"})
    peak = config["learning_rate"]
    try:
        if schedule.get("points"):
            points = {float(k): float(v) for k, v in schedule["points"].items()}
            rate: keras.optimizers.schedules.LearningRateSchedule = PiecewiseLinear(
                [epoch * steps_per_epoch for epoch in points], [peak * v for v in points.values()]
            )
        else:
            shares = {k: v for k, v in schedule.items() if k != "points"}
            rate = Trapezoid(peak, total_steps, **shares)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`training.schedule`: {error}") from None
    try:
        return OPTIMIZERS[config["name"]](**arguments)(rate)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`training.optimizer`: {error}") from None


def _by_batch(arguments: dict) -> dict:
    """Arguments whose average of weights, if any, forgets as much an update as was asked for."""
    batches = arguments.get("gradient_accumulation_steps")
    if not arguments.get("use_ema") or not isinstance(batches, int) or batches < 2:
        return arguments
    momentum = arguments.get("ema_momentum", 0.99)
    if not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
        return arguments  # the optimizer says what is wrong
    return {**arguments, "ema_momentum": momentum ** (1 / batches)}


def build_variables(model: keras.Model, label: np.ndarray | None = None) -> None:
    """Makes the variables of the optimizer and of the metrics of a compiled model now.

    A compiled loop cannot make them, and TensorFlow, whose `fit` makes them in its first step,
    traces that step a second time for it: half of what there is to wait before a training begins.

    Args:
        model: the compiled model.
        label: the label of an image, a share for each class; an integer if `None`.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    labels = np.zeros((1,), "int32") if label is None else label[None]
    logits = ops.zeros((1, model.output_shape[-1]))
    model.compute_metrics(None, ops.convert_to_tensor(labels), logits)
    model.reset_metrics()
