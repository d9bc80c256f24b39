"""Training images in several files, for machines that take only small ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

__all__ = ["images_sha256", "load_parts"]


def load_parts(paths: Iterable[str | Path]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all files, one after the other.

    Args:
        paths: ``.npz`` files with ``x_train`` and ``y_train``, or ``x`` and ``y``; or ``.npy``
            files of images, each with its labels in ``NAME.labels.npy`` beside it.

    Returns:
        Images (n, h, w, c) as bytes and labels (n,) as int64.

    Raises:
        ValueError: naming the file, if it is not one of these, or its images are no bytes.
        FileNotFoundError: naming the file.

    Example:

    >>> x, y = load_parts(["images_0.npz", "images_1.npz"])
    """
    parts = [_part(Path(path)) for path in paths]
    if not parts:
        raise ValueError("`paths` must name at least one file of images. Received: none")
    shapes = {x.shape[1:] for x, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"`paths`: the images have different shapes: {sorted(shapes)}")
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def images_sha256(x: np.ndarray) -> str:
    """SHA-256 of the bytes of images, in hexadecimal: whether two machines have the same."""
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def _part(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(f"{path}: images must be in .npz or .npy files")
    if not path.is_file():
        raise FileNotFoundError(f"There is no data file {path}.")
    try:
        x, y = _arrays(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and NumPy raise some ten kinds over a damaged archive
        raise ValueError(f"{path} is not readable: {str(error) or type(error).__name__}") from None
    if x.dtype != np.uint8 or x.ndim != 4:
        raise ValueError(
            f"{path}: images must be bytes (n, height, width, channels). "
            f"Received: {x.dtype} {x.shape}"
        )
    y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: {len(x)} images need as many whole labels. Received: {y.dtype} {y.shape}"
        )
    return x, y.astype(np.int64)


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if path.suffix == ".npy":
        labels = path.with_suffix(".labels.npy")
        if not labels.is_file():
            raise FileNotFoundError(f"There is no file {labels} with the labels of {path}.")
        return np.load(path, allow_pickle=False), np.load(labels, allow_pickle=False)
    with np.load(path, allow_pickle=False) as file:
        end = "_train" if "x_train" in file.files else ""
        missing = {f"x{end}", f"y{end}"} - set(file.files)
        if missing:
            raise ValueError(f"it lacks the keys {sorted(missing)}; it has {file.files}")
        return file[f"x{end}"], file[f"y{end}"]
