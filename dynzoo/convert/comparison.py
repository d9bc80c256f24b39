"""Whether a converted network computes what the original does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.convert.errors import ConversionError

__all__ = ["IMAGES", "TOLERANCE", "check", "random_images"]

IMAGES = 100
# Of the largest logit.
TOLERANCE = 1e-5
_BATCH = 20


def random_images(shape: tuple[int, ...]) -> np.ndarray:
    """As many images as are compared, evenly spread over [0, 1]."""
    return np.random.default_rng(0).random((IMAGES, *shape), dtype="float32")


def check(model: keras.Model, original: Callable[[np.ndarray], Any], place: str, kind: str) -> None:
    """Compares logits on random images.

    Args:
        model: what was made.
        original: images as the model takes them -> outputs of the original.
        place: of the original, for the error.
        kind: its type.

    Raises:
        ConversionError: if a logit is off by more than `TOLERANCE` of the largest.
    """
    largest = difference = 0.0
    images = random_images(tuple(model.input_shape[1:]))
    for start in range(0, IMAGES, _BATCH):
        x = images[start : start + _BATCH]
        theirs = np.asarray(original(x), np.float64)
        ours = backend.to_numpy(model(x, training=False)).astype(np.float64)
        if ours.ndim > 2:
            ours = np.moveaxis(ours, -1, 1)
        if ours.shape != theirs.shape:
            raise ConversionError(
                place, kind, f"its output has the shape {theirs.shape}, in Keras {ours.shape}."
            )
        if not (np.all(np.isfinite(theirs)) and np.all(np.isfinite(ours))):
            raise ConversionError(place, kind, "its output is not finite on random images.")
        largest = max(largest, float(np.max(np.abs(theirs))))
        difference = max(difference, float(np.max(np.abs(ours - theirs))))
    if difference > TOLERANCE * largest:
        raise ConversionError(
            place,
            kind,
            f"on {IMAGES} random images its outputs are up to {largest:.3g} and those of the Keras "
            f"model differ by up to {difference:.3g}; at most {TOLERANCE:g} of that is allowed.",
        )
