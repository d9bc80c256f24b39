"""The mean of a model over the noise of its layers: the Feynman-Kac formula for whole models."""

from __future__ import annotations

import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.inference.draws import Draws
from dynzoo.inference.model_layers import random_layers
from dynzoo.utils.arguments import integer

__all__ = ["feynman_kac_mean"]


def feynman_kac_mean(model, x, samples=16, seed=0, batch_size=256) -> np.ndarray:
    r"""Monte-Carlo mean of a model's outputs over the noise of its layers, $u(x) = E f(X_T)$.

    The noise is that of the layers that draw in inference mode, such as ``ConvectionDiffusionFlow``
    with ``inference="random"``; its draws depend on ``seed``, the batch size and the backend alone.
    The states of the model's seed generators are put back.

    Args:
        model: built Keras model with at least one layer that is random at inference.
        x: array of inputs (n, ...).
        samples: passes over the inputs, a positive integer.
        seed: non-negative integer.
        batch_size: examples at once.

    Returns:
        Array (n, ...) of mean outputs, float64; the standard error falls as 1 / sqrt(samples).

    Raises:
        ValueError: if no layer of the model is random at inference.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo import operators
    >>> from dynzoo.layers import ConvectionDiffusionFlow, feynman_kac_mean
    >>> flow = ConvectionDiffusionFlow(operators.Dense(4), inference="random")
    >>> model = keras.Sequential([keras.Input((4,)), flow, keras.layers.Dense(3)])
    >>> tuple(feynman_kac_mean(model, np.ones((5, 4)), samples=32).shape)
    (5, 3)
    """
    integer("samples", samples)
    integer("batch_size", batch_size)
    if not random_layers(model):
        raise ValueError(
            "`model` must have a layer that is random at inference, such as "
            "ConvectionDiffusionFlow(..., inference='random'): the mean of others is one pass."
        )
    run = backend.without_grad(backend.jit(backend.inference(model)))
    x = np.asarray(x)
    parts = []
    with Draws(model, seed) as draws:
        for start in range(0, len(x), batch_size):
            batch = ops.convert_to_tensor(x[start : start + batch_size], dtype="float32")
            total = np.zeros(())
            for sample in range(samples):
                draws.fresh(sample, start)
                outputs = run(backend.weights_of(model), batch)
                total = total + backend.to_numpy(ops.cast(outputs, "float32")).astype(np.float64)
            parts.append(total / samples)
    return np.concatenate(parts)
