"""The official files of CIFAR-10-C and its relatives, mapped into memory and checked."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

__all__ = ["OfficialFiles"]

_SEVERITIES = 5


class OfficialFiles:
    """A folder with ``labels.npy`` and a file ``NAME.npy`` for each corruption.

    Each file is uint8 of shape (5 m, h, w, channels), the severities one after another, m images
    each (10,000 in CIFAR-10-C) in the order of the test set.

    Args:
        folder: the folder.
        names: the corruptions whose files are needed.
        x: the first n <= m clean images of the test set, for their shape.
        y: their labels, integers of shape (n,).

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file has another shape or type, or the labels are not ``y``.

    Example:

    >>> files = OfficialFiles("CIFAR-10-C", ["fog"], x, y)  # doctest: +SKIP
    >>> files("fog", 3, slice(0, 256)).shape  # doctest: +SKIP
    (256, 32, 32, 3)

    Reference: Hendrycks and Dietterich (ICLR 2019); https://zenodo.org/record/2535967.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        names: tuple[str, ...] | list[str],
        x: np.ndarray,
        y: np.ndarray,
    ):
        self.folder = Path(folder)
        labels = self._load("labels")
        if (
            labels.ndim != 1
            or labels.dtype.kind not in "iu"
            or len(labels) % _SEVERITIES
            or len(y) > len(labels) // _SEVERITIES
        ):
            raise ValueError(
                f"`official`: {self.folder / 'labels.npy'} must hold 5 m integers, m >= {len(y)} "
                f"images. Received: shape {labels.shape}, dtype {labels.dtype}"
            )
        self.each = len(labels) // _SEVERITIES
        if (labels.reshape(_SEVERITIES, self.each)[:, : len(y)] != y).any():
            raise ValueError(
                "`official`: its labels are not those of `y`. `x` and `y` must be the first images "
                "of the test set, in its order."
            )
        shape = (len(labels), *x.shape[1:])
        self.files = {name: self._load(name) for name in names}
        for name, file in self.files.items():
            if file.shape != shape or file.dtype != np.uint8:
                raise ValueError(
                    f"`official`: {self.folder / name}.npy must be uint8 of shape {shape}. "
                    f"Received: shape {file.shape}, dtype {file.dtype}"
                )

    def _load(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"`official`: there is no file {path}")
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"`official`: {path} is not a file of numbers: {error}") from error

    def __call__(self, name: str, severity: int, rows: slice) -> np.ndarray:
        """Float32 images of one severity, 1 to 5, in [0, 1]."""
        block = self.files[name][(severity - 1) * self.each : severity * self.each]
        return np.divide(block[rows], np.float32(255), dtype=np.float32)
