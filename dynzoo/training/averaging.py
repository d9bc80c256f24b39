"""Weight averaging: the mean of weights after several epochs, and the averages of an optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.training import checkpoints

__all__ = ["averages_kept", "has_averages", "take_averages", "take_mean"]


def take_mean(
    model: keras.Model,
    paths: Sequence[Path],
    check: Callable[[dict], None] | None = None,
    load: Callable[[Path], bytes] | None = None,
) -> None:
    r"""Gives a model the mean of the trainable weights that its checkpoints hold.

    $$ \bar w = \frac1n \sum_{k=1}^n w_k $$

    At the ends of cycles of the learning rate, the networks of one training err differently, and
    the mean of their weights is often better than each (Izmailov et al., "Averaging Weights Leads
    to Wider Optima and Better Generalization", UAI 2018). What is not trained, such as moving
    statistics, is that of the last checkpoint.

    Which checkpoints are averaged is a choice of a model: make it by held-out images, or before any
    are seen, and never by test numbers, which would be too good afterwards.

    Condition: the mean of orthonormal matrices is not orthonormal. Project the model onto its
    constraints afterwards, with `dynzoo.constraints.project`, as `dynzoo.training.train` does.

    Args:
        model: a compiled, built model, as `dynzoo.training.checkpoints.read` wants it.
        paths: the checkpoints, at least one.
        check: called with the state of each; may raise.
        load: gives the bytes of a file, in place of ``Path.read_bytes``.

    Raises:
        CheckpointError: if a file is damaged or does not fit the model.

    Example:

    >>> take_mean(model, ["runs/mine/epoch_40.npz", "runs/mine/epoch_80.npz"])
    """
    total: list[Any] = [np.float64(0.0)] * len(model.trainable_variables)
    for path in paths:
        checkpoints.read(path, model, check, load)
        weights = [backend.value_of(v) for v in model.trainable_variables]
        total = [t + w.astype(np.float64) for t, w in zip(total, weights, strict=True)]
    for variable, t in zip(model.trainable_variables, total, strict=True):
        variable.assign((t / len(paths)).astype(np.float32))


def _averaging(model: keras.Model) -> Any:
    """The optimizer that averages the weights (``use_ema``), or ``None``."""
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of the wrapper for float16
    return optimizer if getattr(optimizer, "use_ema", False) else None


def has_averages(model: keras.Model) -> bool:
    """Whether the optimizer of a model averages its weights."""
    return _averaging(model) is not None


def take_averages(model: keras.Model) -> None:
    """Gives a model the averages of its optimizer, if it has any.

    They leave the constraints: project the model afterwards.
    """
    optimizer = _averaging(model)
    if optimizer is not None:
        optimizer.finalize_variable_values(model.trainable_variables)
        backend.own_arrays(model.trainable_variables)


@contextlib.contextmanager
def averages_kept(model: keras.Model) -> Iterator[None]:
    """Keeps ``fit`` from putting the averages in the place of the weights when it ends.

    A training is many calls of it, and goes on from the weights, on their constraints.
    """
    optimizer = _averaging(model)
    if optimizer is None:
        yield
        return
    optimizer.finalize_variable_values = lambda trainable_variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values  # the class has its own
