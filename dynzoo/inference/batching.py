"""Batches of few distinct shapes, and how they shrink as images fall."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from dynzoo import backend

# Numbers in the images of a batch, for each core, up to which a network's features stay in the
# caches: of JAX's code, which works through a layer at once, and of PyTorch's.
_IN_CACHE = {"jax": 2**16, "torch": 2**18}
# A batch of fewer rows is not worth a trace of its own, which may take longer than a whole attack.
_FEW = 16


def fastest(batch_size: int, shape: Sequence[int]) -> int:
    """The batch length, at most ``batch_size``, at which an image of this shape takes least time.

    What XLA makes of a network for a CPU is slower by half where the features of a batch do not fit
    in the caches, and what PyTorch does by a fifth; TensorFlow does not mind.
    """
    if backend.name() not in _IN_CACHE or backend.accelerator() is not None:
        return batch_size
    fitting = _IN_CACHE[backend.name()] * _cores() // math.prod(shape)
    return min(batch_size, 1 << (max(fitting, _FEW).bit_length() - 1))  # a power of two


def _cores() -> int:
    if backend.name() == "torch":
        return backend.threads()
    if hasattr(os, "sched_getaffinity"):  # the cores that this process may use; not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sizes(batch_size: int) -> list[int]:
    """Batch lengths that a compiling backend sees: ``batch_size``, a quarter, a sixteenth of it.

    None below 16, unless ``batch_size`` is.
    """
    return sorted({max(min(_FEW, batch_size), batch_size // part) for part in (1, 4, 16)})


def batches(count: int, batch_size: int) -> list[tuple[np.ndarray, int]]:
    """Row numbers of each batch, padded to a few fixed sizes, and how many of them are real.

    A compiled function is traced once for each shape. What is left after the full batches is cut
    into batches of the smaller ``sizes``, unless a padded one would be over three quarters full:
    130 rows in batches of 256 become 64, 64 and 2 rows in 16. Padding repeats the batch's first
    row.
    """
    smallest, *larger = sizes(batch_size)
    result = []
    start = 0
    while start < count:
        size = real = min(count - start, batch_size)
        if backend.compiles():
            size = max([smallest, *(s for s in larger if real > 0.75 * s)])
            real = min(real, size)
        rows = np.concatenate([np.arange(start, start + real), np.full(size - real, start)])
        result.append((rows, real))
        start += real
    return result


class Pool:
    """The rows of one padded batch that still resist, packed together as the others fall.

    A search holds its state in tensors with one row for each image, the first ``outputs`` of which
    are its results. ``pack`` drops the rows that have fallen and remembers their results, so that
    the model is not run on images that need no more attack. Each look at ``fallen`` waits for the
    device: call it every few steps, not at each.

    Args:
        real: number of images; the rest of the batch is padding.
        size: length of the batch, padding included.
        outputs: how many of the leading tensors are results.
        batch_size: batch size of the attack: compiling backends see only its ``sizes``.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> pool = Pool(real=3, size=3, outputs=1, batch_size=3)
    >>> best, other = ops.arange(3), ops.arange(3)
    >>> best, other = pool.pack(ops.convert_to_tensor([True, False, True]), [best, other])
    >>> pool.open, pool.results([best + 10, other])[0].tolist()
    (1, [0, 11, 2])
    """

    def __init__(self, real: int, size: int, outputs: int, batch_size: int) -> None:
        self.open = real  # how many images still resisted at the last look
        self._rows = np.arange(real)  # which image each present row is; the rows after are padding
        self._size = self._full = size
        self._outputs = outputs
        self._batch_size = batch_size
        self._stored: list[np.ndarray] = []

    def pack(self, fallen: Any, state: Sequence[Any]) -> list[Any]:
        """The state without the rows that have fallen, where that makes the batch smaller."""
        standing = np.flatnonzero(~backend.to_numpy(fallen)[: len(self._rows)].astype(bool))
        self.open = size = len(standing)
        if size and backend.compiles():
            fitting = [s for s in sizes(self._batch_size) if s >= size]
            size = min([self._size, *fitting])
        if self.open and size == self._size:
            return list(state)
        self._store(state)
        self._rows = self._rows[standing]
        if not self.open:
            return list(state)
        self._size = size
        rows = np.concatenate([standing, np.full(size - len(standing), standing[0])])
        picks = ops.convert_to_tensor(rows.astype("int32"))
        return [ops.take(tensor, picks, axis=0) for tensor in state]

    def results(self, state: Sequence[Any]) -> list[np.ndarray]:
        """The outputs of every image of the batch, in its order; rows of padding hold nothing."""
        self._store(state)
        return self._stored

    def _store(self, state: Sequence[Any]) -> None:
        for number, tensor in enumerate(state[: self._outputs]):
            values = backend.to_numpy(tensor)
            if len(self._stored) <= number:
                self._stored.append(np.zeros((self._full, *values.shape[1:]), values.dtype))
            self._stored[number][self._rows] = values[: len(self._rows)]
