"""The seed generators of a model, whose draws make it no fixed function of one image."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo import backend

__all__ = ["Draws", "seed_states"]


def seed_states(model: Any) -> list[Any]:
    """States of the seed generators of a model: the variables that every draw moves."""
    variables = getattr(model, "variables", [])
    return [v for v in variables if v.name == "seed_generator_state"]


class Draws:
    """The seed generators of a model, in one hand: fresh draws on request, put back at the end.

    Without it a compiled pass repeats its draw on JAX, for which the states are arguments, and
    goes on from where the last user stopped on the others.

    Args:
        model: built Keras model.
        seed: non-negative integer; the n-th request gives the same draws whatever came before.
        first: number of the first request, where another process has made those before.

    Example:

    >>> with Draws(model, seed=0) as draws:
    ...     draws.fresh()
    ...     first = model(x)
    """

    def __init__(self, model: Any, seed: int, first: int = 0):
        self._states = seed_states(model)
        self._seed, self._count = seed, first

    def fresh(self, *key: int) -> None:
        """Sets the states to those of this key, or of the next number."""
        if not key:
            key = (self._count,)
            self._count += 1
        rng = np.random.default_rng([self._seed, *key])
        for state in self._states:
            # below 2^31, for backends whose seeds are signed
            state.assign(rng.integers(0, 2**31 - 1, size=2).astype("int64"))

    def __enter__(self) -> Draws:
        self._before = [backend.to_numpy(v.value) for v in self._states]
        return self

    def __exit__(self, *_: Any) -> None:
        for state, value in zip(self._states, self._before, strict=True):
            state.assign(value)
