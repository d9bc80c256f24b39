"""What images may be, and the range of pixels that a model was made for."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from dynzoo.backend import to_numpy
from dynzoo.inference.model_layers import flat_layers
from dynzoo.inference.streamed_images import StreamedImages, read_whole

__all__ = [
    "InputRangeWarning",
    "check_range",
    "check_unit_range",
    "declare_range",
    "fitting_images",
    "input_range",
    "unit_images",
    "unit_images_or_stream",
]

_RANGES: weakref.WeakKeyDictionary[Any, tuple[float, float]] = weakref.WeakKeyDictionary()
# Layers that take pixels in a scale of their own to another one.
_RESCALING = ("Rescaling", "Normalization")
_TOLERANCE = 1e-5
_BYTES = "They look like bytes: divide them by 255."


class InputRangeWarning(UserWarning):
    """Images that look like bytes were given to a model whose range of pixels is not known."""


def declare_range(model: Any, metadata: Mapping[str, Any]) -> None:
    """Note in which range a preset takes its pixels: [0, 1], or what its metadata say.

    A preset that rescales its input itself has no known range, unless its metadata say one.
    """
    known = metadata.get("input_range")
    if isinstance(known, (list, tuple)) and len(known) == 2:
        _RANGES[model] = (float(known[0]), float(known[1]))
    elif known is None and not _rescales(model):
        _RANGES[model] = (0.0, 1.0)


def input_range(model: Any) -> tuple[float, float] | None:
    """The range of the pixels that a model takes, or `None` where nobody said.

    Example:

    >>> input_range(dynzoo.from_preset("isometric_small_cifar10"))
    (0.0, 1.0)
    """
    try:
        return _RANGES.get(model)
    except TypeError:  # not a thing that can be remembered, so nobody did
        return None


def check_range(x: np.ndarray, model: Any, refuse_bytes: bool = False) -> None:
    """Refuse images outside the range that a model takes; warn of bytes where it is not known.

    Images of a model without a known range look like bytes if they are pictures with values in
    [0, 255] that are all whole numbers, or reach beyond 128 as resized bytes do, and no layer
    rescales them. What is not finite is left to others.

    Args:
        x: array (n, ...).
        model: a Keras model.
        refuse_bytes: raise where else there would be the warning.

    Raises:
        ValueError: naming the range and what was received.
    """
    if not x.size:
        return
    low, high = _extent(x)
    known = input_range(model)
    if known is not None:
        if low < known[0] - _TOLERANCE or high > known[1] + _TOLERANCE:
            hint = f". {_BYTES}" if known == (0.0, 1.0) and _like_bytes(x, low, high) else ""
            raise ValueError(
                f"`x` must lie in [{known[0]:g}, {known[1]:g}], the range of pixels of this "
                f"preset. Received: values from {low:g} to {high:g}{hint}"
            )
        if known == (0.0, 255.0) and high <= 1.0 and np.any(x != np.rint(x)):
            raise ValueError(
                "`x` must lie in [0, 255], the range of pixels of this preset. "
                f"Received: values from {low:g} to {high:g}. They look like [0, 1]: multiply them "
                "by 255."
            )
    elif x.ndim >= 4 and _like_bytes(x, low, high) and not _rescales(model):
        text = (
            f"`x` has values from {low:g} to {high:g}. Models of dynzoo take images in [0, 1], and "
            f"radii are in the units of x. {_BYTES}"
        )
        if refuse_bytes:
            raise ValueError(text)
        warnings.warn(text, InputRangeWarning, stacklevel=4)


def check_unit_range(model: Any) -> None:
    """Refuse a model of other pixels than [0, 1], for which attacks and radii are meant.

    Raises:
        ValueError: naming the range that the model takes.
    """
    known = input_range(model)
    if known is not None and known != (0.0, 1.0):
        raise ValueError(
            "`model` must take images in [0, 1]: load it without `preprocess=True`. "
            f"Received: a model of images in [{known[0]:g}, {known[1]:g}]"
        )


def unit_images(x: Any) -> np.ndarray:
    """Images in [0, 1] as float32, float64 if they are that.

    Raises:
        ValueError: if they are not an array (n, ...) of finite numbers in [0, 1], or empty.
    """
    x = read_whole(x)
    x = x if isinstance(x, np.ndarray) else to_numpy(x)
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        raise ValueError(
            "`x` must be a numeric array of shape (n, ...) with values in [0, 1]. "
            f"Received: shape {x.shape}, dtype {x.dtype}"
        )
    if x.dtype != np.float64:
        x = x.astype(np.float32, copy=False)
    if not len(x):
        raise ValueError("`x` must hold at least one image. Received: an empty array")
    low, high = float(x.min()), float(x.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("`x` must be finite. Received: an array with NaN or infinity")
    if low < 0.0 or high > 1.0:
        hint = f". {_BYTES}" if _like_bytes(x, low, high) else ""
        raise ValueError(f"`x` must lie in [0, 1]. Received: values from {low} to {high}{hint}")
    return x


def unit_images_or_stream(x: Any) -> Any:
    """What `unit_images` gives, but images in files stay there, as floats in [0, 1].

    Raises:
        ValueError: as `unit_images`.
    """
    if not isinstance(x, StreamedImages):
        return unit_images(x)
    if not len(x):
        raise ValueError("`x` must hold at least one image. Received: no files")
    return x.astype("float32")


def fitting_images(x: Any, model: Any) -> np.ndarray:
    """Images for a model, in the range that it takes; uint8 ones are divided by 255.

    Args:
        x: array (n, ...) of the shape of the model's input.
        model: built Keras model.

    Returns:
        Float32 (n, ...).

    Raises:
        ValueError: if they have another shape, are not finite, or are in another range than the
            model takes, such as float images that are bytes.
    """
    x = read_whole(x)
    x = x if isinstance(x, np.ndarray) else to_numpy(x)
    if x.ndim < 2 or not len(x) or x.dtype.kind not in "fiub":
        raise ValueError(
            "`x` must be a numeric array of shape (n, ...) with at least one image. "
            f"Received: shape {x.shape}, dtype {x.dtype}"
        )
    check_shape(x, model)
    known = input_range(model)
    if x.dtype == np.uint8 and (known == (0.0, 1.0) or (known is None and not _rescales(model))):
        x = np.divide(x, np.float32(255), dtype=np.float32)
    x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise ValueError("`x` must be finite. Received: an array with NaN or infinity")
    check_range(x, model, refuse_bytes=True)
    return x


def check_shape(x: np.ndarray, model: Any) -> None:
    """A ValueError where images do not fit the model, before a backend says so in its way."""
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or any(isinstance(part, (tuple, list)) for part in shape):
        return
    fits = len(shape) == x.ndim and all(
        want in (None, have) for want, have in zip(shape[1:], x.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            "`x` must have the shape of the model's input, "
            f"{('n', *shape[1:])}. Received: shape {x.shape}"
        )


def _extent(x: np.ndarray) -> tuple[float, float]:
    low, high = float(x.min()), float(x.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    finite = x[np.isfinite(x)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _like_bytes(x: np.ndarray, low: float, high: float) -> bool:
    if not (low >= 0.0 and 1.0 < high <= 255.5):
        return False
    with np.errstate(invalid="ignore"):
        return high > 128.0 or bool(np.nanmax(np.abs(x - np.rint(x))) < 1e-3)


def _rescales(model: Any) -> bool:
    return any(type(layer).__name__ in _RESCALING for layer in flat_layers(model))
