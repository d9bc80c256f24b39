"""Keras' image layers inside a model: augmentation, which rests at inference, crops and resizing.

``predict`` and ``model(x, training=False)`` hand ``training=False`` to every layer, whatever was
recorded when the graph was built. Without the argument Keras would go on augmenting: that is no
inference.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import keras
import numpy as np

from dynzoo.certificates.rules.linear import Shape, channels_last, refuse, spatial

__all__ = [
    "AUGMENTATION",
    "along_axes",
    "center_crop_forward",
    "center_crop_gain",
    "interpolation",
    "random_crop_gain",
    "resizing_forward",
    "resizing_gain",
    "trains_by_default",
]

kl = keras.layers

# They give back their input at inference, whatever its range: no cast to bytes, no clipping.
AUGMENTATION: tuple[type, ...] = (
    kl.AugMix,
    kl.CutMix,
    kl.MixUp,
    kl.RandAugment,
    kl.RandomBrightness,
    kl.RandomColorDegeneration,
    kl.RandomColorJitter,
    kl.RandomContrast,
    kl.RandomElasticTransform,
    kl.RandomErasing,
    kl.RandomFlip,
    kl.RandomGaussianBlur,
    kl.RandomGrayscale,
    kl.RandomHue,
    kl.RandomInvert,
    kl.RandomPerspective,
    kl.RandomPosterization,
    kl.RandomRotation,
    kl.RandomSaturation,
    kl.RandomSharpness,
    kl.RandomShear,
    kl.RandomTranslation,
    kl.RandomZoom,
    kl.Solarization,
)


def trains_by_default(layer: Any) -> bool:
    """Whether a recorded ``training=True`` may be the default of the layer's ``call``.

    It cannot be told from one that was given, and need not be: both are replaced at inference.
    """
    if type(layer).__module__.split(".")[0] != "keras":
        return False
    training = inspect.signature(type(layer).call).parameters.get("training")
    return training is not None and training.default is True


def random_crop_gain(layer: Any, shape: Shape) -> float:
    """1 where there is nothing to crop; else Keras announces another size than it computes."""
    if spatial(layer, shape) != (layer.height, layer.width):
        raise refuse(
            layer,
            "at inference it gives back the whole image, not one of the size that it announces; "
            "use CenterCrop, or images of that size.",
        )
    return 1.0


# --- crops and resizing ---------------------------------------------------------------------


def center_crop_gain(layer: Any, shape: Shape) -> float:
    """1: a selection of pixels."""
    if any(n < m for n, m in zip(spatial(layer, shape), (layer.height, layer.width), strict=True)):
        raise refuse(layer, "it enlarges images that are smaller than its crop.")
    return 1.0


def center_crop_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """The middle of each image; of an odd rest the smaller half is before it."""

    def crop(images: np.ndarray) -> np.ndarray:
        top = (images.shape[1] - layer.height) // 2
        left = (images.shape[2] - layer.width) // 2
        return images[:, top : top + layer.height, left : left + layer.width]

    return channels_last(layer, x, crop)


def interpolation(method: str, size: int, new: int) -> np.ndarray | None:
    """Matrix (new, size) of a change of size along one axis, or None if it is not known.

    Pixel centres lie at i + 1/2, on all backends. A new centre on the edge between two old pixels
    goes to the upper one; but where the ratio of the sizes is not a whole number, rounding decides
    in the backends, so that such sizes are not known.
    """
    matrix = np.zeros((new, size))
    rows = np.arange(new)
    # The centre of new pixel i lies at (2 i + 1) size / (2 new) of the old axis.
    above, below = (2 * rows + 1) * size, 2 * new
    if method == "nearest":
        if size % new and np.any(above % below == 0):
            return None
        matrix[rows, above // below] = 1.0
        return matrix
    if method != "bilinear":
        return None
    position = np.clip(above / below - 0.5, 0.0, size - 1.0)
    lower = np.minimum(np.floor(position).astype(int), size - 1)
    upper = np.minimum(lower + 1, size - 1)
    np.add.at(matrix, (rows, lower), 1.0 - (position - lower))
    np.add.at(matrix, (rows, upper), position - lower)
    return matrix


def along_axes(images: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    """One matrix along each spatial axis of channels-last arrays."""
    for axis, matrix in enumerate(matrices, start=1):
        images = np.moveaxis(np.tensordot(matrix, images, axes=(1, axis)), 0, axis)
    return images


def _resizing(layer: Any, size: tuple[int, int]) -> list[np.ndarray]:
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio:
        raise refuse(layer, "with a crop or a pad to the aspect ratio it is not known.")
    if layer.antialias and layer.interpolation != "nearest":
        raise refuse(layer, "with antialias=True it is not known; dynzoo.layers.Resize is.")
    matrices = []
    for old, new in zip(size, (layer.height, layer.width), strict=True):
        matrix = interpolation(layer.interpolation, old, new)
        if matrix is None:
            raise refuse(
                layer,
                f"interpolation={layer.interpolation!r} from {old} to {new} pixels is not known.",
            )
        matrices.append(matrix)
    return matrices


def resizing_gain(layer: Any, shape: Shape) -> float:
    """Exact: the map is a tensor product of one matrix for each axis."""
    matrices = _resizing(layer, spatial(layer, shape))
    return math.prod(float(np.linalg.norm(m, ord=2)) for m in matrices) * (1 + 1e-12)


def resizing_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    """Bilinear or nearest-neighbour resizing, without antialiasing."""
    return channels_last(
        layer, x, lambda images: along_axes(images, _resizing(layer, images.shape[1:3]))
    )
