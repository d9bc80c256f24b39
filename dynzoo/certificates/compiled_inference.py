"""Logits as the backend computes them, compiled under the settings that were certified.

A trace takes the settings of the layers for constants. What Keras compiled for ``predict`` may be
from a time when a setting was another, and answers for that model from then on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.certificates.settings import Settings, difference
from dynzoo.inference.batching import batches, fastest
from dynzoo.inference.passes import compiled_function, weights_for

__all__ = ["run_batches", "run_once"]


class _Compiled:
    """The functions of a model under its settings; the model is held weakly."""

    def __init__(self, model: keras.Model, settings: Settings):
        self.settings = settings
        self.inference = backend.inference(model)
        self.batches = compiled_function(model, self.inference)
        self.once: Callable[..., Any] | None = None


_COMPILED: weakref.WeakKeyDictionary[Any, _Compiled] = weakref.WeakKeyDictionary()


def run_once(model: keras.Model, settings: Settings, x: np.ndarray) -> np.ndarray:
    """Outputs for a few inputs without the cost of optimised code; on JAX always as many."""
    compiled, weights = _compiled(model, settings), backend.weights_of(model)
    inputs = _pack(model, x)
    if compiled.once is None:
        compiled.once = backend.jit_once(compiled.inference, weights, inputs)
    return backend.to_numpy(compiled.once(weights, inputs))


def run_batches(
    model: keras.Model, settings: Settings, x: np.ndarray, batch_size: int
) -> np.ndarray:
    """Logits of images, in batches of few distinct lengths.

    Args:
        model: the model.
        settings: of its layers, now.
        x: images (n, ...) in the type in which they reach the model, n at least 1.
        batch_size: images per forward pass, at most.
    """
    function = _compiled(model, settings).batches
    weights = weights_for(function, model)
    parts = []
    for rows, real in batches(len(x), fastest(batch_size, x.shape[1:])):
        logits = function(weights, _pack(model, x[rows]))
        parts.append(backend.to_numpy(logits)[:real])
    return np.concatenate(parts)


def _compiled(model: keras.Model, settings: Settings) -> _Compiled:
    known = _COMPILED.get(model)
    if known is None or difference(known.settings, settings) is not None:
        if known is not None or getattr(model, "predict_function", None) is not None:
            # `predict` would go on with the settings of the time when it was compiled.
            model.make_predict_function(force=True)
        known = _COMPILED[model] = _Compiled(model, settings)
    return known


def _pack(model: keras.Model, x: np.ndarray) -> Any:
    """One array as what the model is called with: a tensor, or a dict of one."""
    structure, inputs = getattr(model, "_inputs_struct", None), keras.ops.convert_to_tensor(x)
    if isinstance(structure, dict):
        return keras.tree.pack_sequence_as(structure, [inputs])
    return inputs
