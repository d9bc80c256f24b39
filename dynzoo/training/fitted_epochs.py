"""Epochs by ``model.fit``: batches from the host, on every backend and several devices."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

from dynzoo import backend
from dynzoo.augmentation.batches import DISTORTIONS, Augmented
from dynzoo.training.averaging import averages_kept
from dynzoo.training.distribution import OneDevice, OneProcess
from dynzoo.training.processes import Processes

__all__ = ["Epochs", "FittedEpochs", "Stretch"]


class Stretch(NamedTuple):
    """Steps that were taken at a stretch, and what came of them.

    Attributes:
        steps: how many.
        finite: whether the loss and all weights still are.
        out_of_time: whether the deadline ended it.
        loss, accuracy: means over the stretch, the accuracy in [0, 1].
    """

    steps: int
    finite: bool
    out_of_time: bool
    loss: float
    accuracy: float


class Epochs:
    """What takes the steps of a training: its model, its images, and the batches of an epoch.

    Args:
        model: the compiled model.
        images: (n, h, w, c), bytes or float32 in [0, 1].
        labels: (n,) integers.
        batch_size: images a step.
        seed: that of ``Augmented``.
        replicas: the devices, or the processes.
    """

    def __init__(
        self,
        model: keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        replicas: OneProcess | Processes | None = None,
    ):
        self.model = model
        self.replicas = replicas or OneDevice()
        self.images, self.labels = images, labels
        self.batch_size, self.seed = batch_size, seed
        self.steps_an_epoch = len(images) // batch_size

    def batches(self, epoch: int, section: dict[str, Any], first: int = 0) -> Augmented:
        """The batches of an epoch; the model distorts their images if it has a second input.

        Args:
            epoch: its number, from 0.
            section: ``data`` of the recipe in this epoch.
            first: number of the first batch.
        """
        return self.replicas.batches(
            self.images,
            self.labels,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            start_batch=first,
            padding=section["crop_padding"],
            distort=len(self.model.inputs) == 1,
            **{key: section[key] for key in ("flip", *DISTORTIONS)},
        )


class FittedEpochs(Epochs):
    """Training steps of a compiled model on images that the host hands over, batch by batch.

    Args:
        *arguments: those of ``Epochs``.
        verbose: as in ``model.fit``.
        total: epochs of the whole run, for what ``fit`` says of each.
    """

    rate = None  # the optimizer has its own

    def __init__(
        self,
        *arguments: Any,
        verbose: Any = "auto",
        total: int = 1,
    ):
        super().__init__(*arguments)
        self.verbose, self.total = verbose, total

    def prepare(self, epoch: int, section: dict[str, Any]) -> None:
        """Nothing: ``model.fit`` reads ahead by itself."""

    def recompiled(self) -> None:
        """Nothing: ``model.fit`` sees that the model was compiled anew."""

    def run(
        self,
        epoch: int,
        section: dict[str, Any],
        first: int,
        rates: np.ndarray,
        deadline: float | None = None,
    ) -> Stretch:
        """Takes the steps of an epoch from a batch on, to its end; weights stay in the model.

        Args:
            epoch: its number, from 0.
            section: ``data`` of the recipe in this epoch.
            first: number of the first batch.
            rates: of no use here, where the optimizer has a schedule of its own.
            deadline: when to stop, in the seconds of ``time.monotonic``; ``None`` for never.
        """
        watch = self.replicas.watch(deadline)
        bar = [_BarOfRun(self.total)] if self.verbose else []
        with self.replicas.scope(), backend.fit_at_full_precision(), averages_kept(self.model):
            history = self.model.fit(
                self.batches(epoch, section, first),
                initial_epoch=epoch,
                epochs=epoch + 1,
                callbacks=[watch, *bar],
                shuffle=False,
                verbose=self.verbose,
            ).history
        # The last update before a stop is one whose loss nobody has seen yet.
        finite = all(np.isfinite(backend.value_of(v)).all() for v in self.model.weights)
        finite = not self.replicas.any(watch.diverged or not finite)
        figures = (float(history[name][-1]) for name in ("loss", "accuracy"))
        return Stretch(watch.batches, finite, watch.out_of_time, *self.replicas.mean(*figures))


class _BarOfRun(keras.callbacks.ProgbarLogger):
    """Keras' bar, which knows of one epoch alone: ``fit`` is called for each."""

    async_safe = True  # as Keras takes its own to be

    def __init__(self, total: int):
        super().__init__()
        self.total = total

    def set_params(self, params):
        super().set_params(params)
        self.epochs = self.total
