"""The mean of a model over the noise of its layers: the Feynman-Kac formula for whole models."""

from __future__ import annotations

import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.layers.arguments import positive_integer

__all__ = ["feynman_kac_mean"]


def feynman_kac_mean(model, x, samples=16, seed=0, batch_size=256) -> np.ndarray:
    r"""Monte-Carlo mean of a model's outputs over the noise of its layers, $u(x) = E f(X_T)$.

    The noise is that of the layers that draw in inference mode, such as `ConvectionDiffusionFlow`
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

    >>> flow = ConvectionDiffusionFlow(operators.Dense(4), inference="random")
    >>> model = keras.Sequential([keras.Input((4,)), flow, keras.layers.Dense(3)])
    >>> feynman_kac_mean(model, np.ones((5, 4)), samples=32).shape
    (5, 3)
    """
    positive_integer("samples", samples)
    positive_integer("batch_size", batch_size)
    if not any(getattr(layer, "random_at_inference", False) for layer in model._flatten_layers()):
        raise ValueError(
            "`model` must have a layer that is random at inference, such as "
            "ConvectionDiffusionFlow(..., inference='random'): the mean of others is one pass."
        )
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    before = [backend.to_numpy(v.value) for v in states]
    run = backend.without_grad(backend.jit(backend.inference(model)))
    x = np.asarray(x)
    parts = []
    try:
        for start in range(0, len(x), batch_size):
            batch = ops.convert_to_tensor(x[start : start + batch_size], dtype="float32")
            total = np.zeros(())
            for sample in range(samples):
                rng = np.random.default_rng([seed, sample, start])
                for state in states:
                    # below 2^31, for backends whose seeds are signed
                    state.assign(rng.integers(0, 2**31 - 1, size=2).astype("int64"))
                outputs = run(backend.weights_of(model), batch)
                total = total + backend.to_numpy(ops.cast(outputs, "float32")).astype(np.float64)
            parts.append(total / samples)
    finally:
        for state, value in zip(states, before, strict=True):
            state.assign(value)
    return np.concatenate(parts)
