"""The held-out images, and what a model in training is judged by: its accuracies on them."""

from __future__ import annotations

import math

import keras
import numpy as np

from dynzoo.data import datasets as data
from dynzoo.inference.answers import answers
from dynzoo.inference.label_checks import count_classes
from dynzoo.inference.model_layers import mixing_layers, random_layers
from dynzoo.inference.streamed_images import StreamedImages, chunks
from dynzoo.training import recipes

__all__ = ["held_out_accuracy", "hold_out", "l2_radius", "labels_and_radii"]


def hold_out(recipe: dict, source=None, log=print) -> tuple[tuple, int]:
    """The images that a recipe trains on and those that it holds out, the test set left alone.

    Args:
        recipe: a complete recipe. The held-out part does not depend on its seed: seeds stay
            comparable.
        source: a data set in place of the recipe's: a name, a file, or what `dynzoo.data.load`
            gave of it as bytes.
        log: called with a line on what a folder holds; `None` for silence.

    Returns:
        `((x, y), (x_held_out, y_held_out))` as bytes (floats in [0, 1] where
        they are no bytes), and the number of classes. What a folder holds beyond 1 GiB (as floats)
        stays in its files.

    Raises:
        RecipeError: if the data have no more images than are to be held out.
    """
    section = recipe["data"]
    if isinstance(source, tuple):
        (x, y), _ = source
    else:
        # what is resident goes to the device as a whole
        stream = False if recipe.get("training", {}).get("resident") else None
        (x, y), _ = data.load_exact(str(source) if source else section["name"], stream, log)
    if section["validation"] >= len(x):
        raise recipes.RecipeError(
            f"`data.validation` must be below {len(x)}, the training images. "
            f"Received: {section['validation']}"
        )
    return data.split_validation(x, y, section["validation"], seed=0), count_classes(
        y, "the training labels"
    )


def l2_radius(evaluation: dict, shape: tuple[int, ...]) -> float:
    """L2 radius that a certificate needs for the first radius of a recipe's ``evaluation``.

    The ball of the maximum norm lies in the L2 ball that is larger by the root of the number of
    entries of an image, whose shape is ``shape``.
    """
    eps = float(evaluation["eps"][0])
    return eps * math.sqrt(math.prod(shape)) if evaluation["norm"] == "linf" else eps


def held_out_accuracy(model: keras.Model, held_out, eps: float) -> tuple[float, float | None]:
    """Shares of images that are right, and that are right with a certified radius above `eps`.

    Args:
        model: model in float32.
        held_out: images (n, h, w, c) as bytes or in [0, 1], and labels (n,).
        eps: L2 radius, in units of the pixel range [0, 1].

    Returns:
        Both shares in [0, 1]; `None` for the second where the model has no certificate.
    """
    x, y = held_out
    labels, radii = labels_and_radii(model, data.to_float(x))
    correct = labels == y
    certified = None if radii is None else float((correct & (radii > eps)).mean())
    return float(correct.mean()), certified


def labels_and_radii(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels of images in [0, 1], -1 for NaN, and certified radii where there is a certificate."""
    from dynzoo import certificates
    from dynzoo.inference.passes import predict_logits

    parts = list(chunks(len(x))) if isinstance(x, StreamedImages) else [slice(None)]
    if not (random_layers(model) or mixing_layers(model)):
        try:
            certificate = certificates.certify(model)
            found = [certificate.radii(x[part]) for part in parts]
            labels, radii = (np.concatenate(each) for each in zip(*found, strict=True))
            return labels, radii
        except certificates.UncertifiableLayerError:
            pass
    return answers(np.concatenate([predict_logits(model, x[part]) for part in parts])), None
