"""Images that stay in their files until they are asked for: folders larger than memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.inference.image_files import read_image, told_apart

__all__ = ["StreamedImages", "chunks", "read_whole"]

_CHUNK = 256
_THREADS = 8


class StreamedImages:
    """Images in files, that can be indexed as an array (n, height, width, channels).

    ``x[rows]`` reads these images and gives an array; ``x.part(0, 1000)`` reads nothing. Only what
    is indexed is in memory: an image of 224 x 224 takes 0.15 MB as bytes, 0.6 MB as floats.

    Args:
        files: image files.
        image_shape: (height, width, channels) to bring each to, with 1 or 3 channels.
        dtype: ``"float32"`` for images in [0, 1], ``"uint8"`` for bytes.

    Example:

    >>> (x, y), _ = dynzoo.data.load("photos", image_shape=(224, 224, 3), stream=True)
    >>> batches = dynzoo.augmentation.Augmented(x, y, batch_size=64)  # a keras.utils.PyDataset
    >>> model.fit(batches, epochs=3, callbacks=[batches.follow_epochs()])
    """

    def __init__(self, files: Sequence[Path], image_shape: tuple[int, ...], dtype: str = "float32"):
        if dtype not in ("float32", "uint8"):
            raise ValueError(f"`dtype` must be 'float32' or 'uint8'. Received: dtype={dtype!r}")
        self.files = list(files)
        self.image_shape = tuple(int(n) for n in image_shape)
        self.dtype = np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, channels)."""
        return (len(self), *self.image_shape)

    @property
    def stored(self) -> np.dtype[Any]:
        """Type in which the images go into a training: that of their files."""
        return np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    @property
    def nbytes(self) -> int:
        """What all of them would take in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: Any) -> np.ndarray:
        places = np.arange(len(self))[rows]
        if places.ndim == 0:
            return self._read([int(places)])[0]
        return self._read(places.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError(
            f"{len(self)} streamed images would take {self.nbytes / 2**20:,.0f} MiB as one array: "
            "take some of them, x[:1000], or read them into memory by load(..., stream=False)."
        )

    def part(self, start: int | None, stop: int | None) -> StreamedImages:
        """Those from ``start`` to ``stop``, still in their files."""
        return self.take(np.arange(len(self))[start:stop])

    def take(self, rows: Any) -> StreamedImages:
        """Those at these places, still in their files."""
        files = [self.files[row] for row in np.arange(len(self))[rows]]
        return StreamedImages(files, self.image_shape, str(self.dtype))

    def astype(self, dtype: Any, copy: bool = True) -> StreamedImages:
        """The same images as another type, float32 in [0, 1] or bytes."""
        return StreamedImages(self.files, self.image_shape, str(np.dtype(dtype)))

    def sha256(self) -> str:
        """Hash of the files and of the size to which they are brought."""
        digest = hashlib.sha256(f"{self.shape} {self.dtype}".encode())
        for file in self.files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def _read(self, places: list[int]) -> np.ndarray:
        out = np.empty((len(places), *self.image_shape), self.dtype)

        def fill(row: int) -> None:
            image = read_image(self.files[places[row]], self.image_shape)
            if self.dtype == np.uint8:
                out[row] = image
            else:
                np.divide(image, np.float32(255), out=out[row], dtype=np.float32)

        with told_apart():
            if len(places) < 4:
                for row in range(len(places)):
                    fill(row)
            else:  # Pillow decodes without Python's lock
                with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
                    list(threads.map(fill, range(len(places))))
        return out


def chunks(count: int, size: int = _CHUNK) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``count`` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def read_whole(x: Any) -> Any:
    """Streamed images as an array, all of them; anything else as it is."""
    return x[:] if isinstance(x, StreamedImages) else x
