"""Image files as arrays of bytes, and every reason why one cannot be, with the file's name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

__all__ = ["MODES", "endings", "read_image", "told_apart"]

MODES = {1: "L", 3: "RGB"}
# What Pillow lists and cannot decode by itself, or only with another program.
_NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


@cache
def endings() -> frozenset[str]:
    """Endings of the files that are taken for images: all that Pillow reads, with the dot."""
    known = Image.registered_extensions()
    return frozenset(
        ending for ending, kind in known.items() if kind in Image.OPEN and kind not in _NO_PICTURES
    )


@contextmanager
def told_apart() -> Iterator[None]:
    """No warnings of Pillow's while many files are read: they do not name the file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def read_image(
    file: Path | IO[bytes],
    image_shape: tuple[int, ...] | None = None,
    channels: int = 3,
    name: str | None = None,
) -> np.ndarray:
    """One image as uint8 (height, width, channels).

    Args:
        file: where it is, or its bytes.
        image_shape: (height, width, channels) to bring it to; ``None`` for its own size.
        channels: of an image of its own size, 3 for colour or 1 for gray.
        name: what an error calls it; default: the file.

    Raises:
        ValueError: naming the file.
    """
    height, width, channels = image_shape or (0, 0, channels)
    name = name or str(file)
    try:
        with Image.open(file) as opened:
            image = _eight_bits(ImageOps.exif_transpose(opened), opened.format, name)
            image = image.convert(MODES[channels])
            if image_shape is not None and image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    except _RangeError as error:
        raise ValueError(str(error)) from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is larger than the limit of Pillow ({error}): scale it down, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except Exception as error:  # a damaged file has as many errors as it has formats
        raise ValueError(
            f"{name} is not a readable image ({type(error).__name__}: {error})"
        ) from None
    return np.asarray(image).reshape(image.height, image.width, channels)


class _RangeError(Exception):
    pass


def _eight_bits(image: Image.Image, kind: str | None, name: str) -> Image.Image:
    """The image with 8 bits a channel, by the range that the type of its file tells."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM"))
    if sixteen:
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        bits = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise _RangeError(
            f"{name} has {bits} gray values, whose range its type does not tell: save it with 8 or "
            "16 bits, or bring the images as an .npz file with values in [0, 1]"
        )
    return image
