"""Folders of images, a subfolder a class, as arrays; needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["class_folders", "load_image_folder"]

Split = tuple[np.ndarray, np.ndarray]
_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}
_TEST_SHARE = 0.2


def class_folders(path: str | Path) -> list[str]:
    """Names of the classes of a folder of images, in the order of their labels.

    Raises:
        ValueError: if there are not two class folders at least.

    Example:

    >>> class_folders("photos")
    ['cat', 'dog']
    """
    root = Path(path)
    names = _subfolders(root / "train" if _is_split(root) else root)
    if len(names) < 2:
        raise ValueError(
            f"{root} must hold a folder of images for each of at least two classes, or two "
            f"folders `train` and `test` that do. Received: {', '.join(names) or 'no folders'}"
        )
    return names


def load_image_folder(
    path: str | Path, image_shape: tuple[int, ...] | None = None, seed: int = 0
) -> tuple[Split, Split]:
    """Load `(x_train, y_train), (x_test, y_test)` from `train/CLASS/*` and `test/CLASS/*`.

    Without these two folders, a fifth of the images of each class in `CLASS/*` is held out as the
    test set, the same ones every time. The order is mixed. Images are turned as their camera held
    them, scaled with antialiasing and cut in the middle, so that nothing is stretched. What a
    certificate says of such an image it says of the scaled one.

    Args:
        path: the folder; class names in alphabetical order are the labels 0, 1, ...
        image_shape: (height, width, channels) to bring the images to, 1 or 3 channels; `None`
            takes them as they are, in colour, if all have one size.
        seed: seed of the order, and of the choice of held-out images.

    Returns:
        uint8 images (n, height, width, channels) and int64 labels (n,), each twice.

    Raises:
        ValueError: naming the folder or file that is missing, unreadable or of another size.

    Example:

    >>> (x_train, y_train), (x_test, y_test) = load_image_folder("photos", (32, 32, 3))
    """
    root, names = Path(path), class_folders(path)
    if image_shape is not None and (len(image_shape) != 3 or image_shape[2] not in _MODES):
        raise ValueError(
            "`image_shape` must be (height, width, channels) with 1 or 3 channels. "
            f"Received: image_shape={image_shape}"
        )
    if _is_split(root):
        unknown = sorted(set(_subfolders(root / "test")) - set(names))
        if unknown:
            raise ValueError(
                f"{root / 'test'} has classes that `train` lacks: {', '.join(unknown)}"
            )
        train, test = (_files(root / part, names) for part in ("train", "test"))
    else:
        train, test = _held_out(_files(root, names), seed)
    for part, files in (("training", train), ("test", test)):
        if not files:
            raise ValueError(f"{root} holds no {part} images (endings: {', '.join(_ENDINGS)})")
    rng = np.random.default_rng(seed)
    train, test = ([part[i] for i in rng.permutation(len(part))] for part in (train, test))
    return _read(train, image_shape), _read(test, image_shape)


def _is_split(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "test").is_dir()


def _subfolders(root: Path) -> list[str]:
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(root: Path, names: Iterable[str]) -> list[tuple[Path, int]]:
    """All image files with their labels, in alphabetical order within each class."""
    return [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in _ENDINGS and not file.name.startswith(".")
    ]


def _held_out(files: list[tuple[Path, int]], seed: int):
    """A fifth of each class, at least one image where there are two."""
    rng = np.random.default_rng(seed)
    train: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    for label in sorted({label for _, label in files}):
        own = [item for item in files if item[1] == label]
        held = max(1, round(_TEST_SHARE * len(own))) if len(own) > 1 else 0
        chosen = set(rng.permutation(len(own))[:held].tolist())
        for i, item in enumerate(own):
            (test if i in chosen else train).append(item)
    return train, test


def _read(files: list[tuple[Path, int]], image_shape: tuple[int, ...] | None) -> Split:
    first = _image(files[0][0], image_shape)
    x = np.empty((len(files), *first.shape), np.uint8)
    for row, (file, _) in enumerate(files):
        image = _image(file, image_shape)
        if image.shape != first.shape:
            raise ValueError(
                f"images must be of one size, or `image_shape` given to bring them to one. "
                f"Received: {files[0][0].name} {first.shape[:2]}, {file.name} {image.shape[:2]}"
            )
        x[row] = image
    return x, np.array([label for _, label in files], np.int64)


def _image(file: Path, image_shape: tuple[int, ...] | None) -> np.ndarray:
    height, width, channels = image_shape or (0, 0, 3)
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert(_MODES[channels])
            if image_shape is not None and image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{file} is not a readable image ({error})") from None
    return np.asarray(image).reshape(image.height, image.width, channels)
