"""Losses, optimizers and the learning-rate schedule of a recipe, built from their names."""

from __future__ import annotations

import keras
from keras import ops

from dynzoo import losses, optimizers

__all__ = ["LOSSES", "OPTIMIZERS", "Trapezoid", "at_epoch", "make_loss", "make_optimizer"]

LOSSES = {
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
        if total_steps < 1:
            raise ValueError(f"`total_steps` must be positive. Received: {total_steps}")
        if not (0 <= warmup <= 1 and 0 <= decay <= 1 and warmup + decay <= 1):
            raise ValueError(
                "`warmup` and `decay` must be shares in [0, 1] that add up to at most 1. "
                f"Received: warmup={warmup}, decay={decay}"
            )
        self.peak = float(peak)
        self.total_steps = int(total_steps)
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
            **{"adam_beta_2": 0.99, **arguments},
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


def at_epoch(config: dict, epoch: int) -> dict:
    """A recipe's loss in one epoch: an argument may be a mapping from first epoch to value.

    >>> at_epoch({"name": "offset_crossentropy", "offset": {0: 0.4, 6: 0.8}}, 7)
    {'name': 'offset_crossentropy', 'offset': 0.8}
    """
    return {k: _value_at(k, v, epoch) if isinstance(v, dict) else v for k, v in config.items()}


def _value_at(key: str, values: dict, epoch: int):
    starts = list(values)
    if starts != sorted(starts, key=int) or not starts or int(starts[0]) != 0:
        raise ValueError(
            f"`training.loss.{key}` must map increasing epochs, from 0, to values. "
            f"Received: {values}"
        )
    return values[max((s for s in starts if int(s) <= epoch), key=int)]


def make_loss(config: dict) -> keras.losses.Loss:
    """The loss that a recipe's ``training.loss`` describes."""
    arguments = {k: v for k, v in config.items() if k != "name"}
    try:
        return LOSSES[config["name"]](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`training.loss`: {error}") from None


def make_optimizer(config: dict, total_steps: int, schedule: dict) -> keras.optimizers.Optimizer:
    """The optimizer of a recipe's ``training.optimizer``, with its schedule."""
    arguments = {k: v for k, v in config.items() if k != "name"}
    rate = Trapezoid(config["learning_rate"], total_steps, **schedule)
    try:
        return OPTIMIZERS[config["name"]](**arguments)(rate)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`training.optimizer`: {error}") from None
