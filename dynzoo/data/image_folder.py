"""Folders of images, a subfolder a class, as arrays; needs no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.data.folder_contents import FolderContents, survey
from dynzoo.inference.image_files import MODES, read_image, told_apart
from dynzoo.inference.streamed_images import StreamedImages

__all__ = ["class_folders", "load_image_folder"]

Split = tuple[np.ndarray, np.ndarray]
Files = list[tuple[Path, int]]
_TEST_SHARE = 0.2
_IN_MEMORY = 2**30  # bytes of float32 images, beyond which they are streamed


def class_folders(path: str | Path) -> list[str]:
    """Names of the classes of a folder of images, in the order of their labels.

    Raises:
        ValueError: if there are not two class folders at least.

    Example:

    >>> class_folders("photos")
    ['cat', 'dog']
    """
    return survey(path).classes


def load_image_folder(
    path: str | Path,
    image_shape: tuple[int, ...] | None = None,
    seed: int = 0,
    log: Callable[[str], object] | None = print,
    stream: bool | None = False,
) -> tuple[Split, Split]:
    """Load ``(x_train, y_train), (x_test, y_test)`` from ``train/CLASS/*`` and ``test/CLASS/*``.

    Without a test folder, a fifth of the images of each class in ``CLASS/*`` is held out as the
    test set, the same ones every time. ``val`` (or ``valid``, ``validation``, in any capitals) is
    the test set where there is no other, and else belongs to the training images. The order is
    mixed. Images are turned as their camera held them, scaled with antialiasing and cut in the
    middle, so that nothing is stretched; 16 bits of gray become 8. What a certificate says of such
    an image it says of the scaled one. Hidden folders and those of file systems (``__MACOSX``,
    ``@eaDir``), empty folders and files of other kinds are left out, and a line says how many.

    Args:
        path: the folder; class names in alphabetical order are the labels 0, 1, ...
        image_shape: (height, width, channels) to bring the images to, 1 or 3 channels; ``None``
            takes them as they are, in colour, if all have one size.
        seed: seed of the order, and of the choice of held-out images.
        log: called with the line that says what was read and left out; ``None`` for silence.
        stream: ``True`` leaves the images in their files until they are asked for
            (``StreamedImages``), each brought to the size of the first one if there is no
            ``image_shape``; ``None`` does so where they would take more than 1 GiB as floats.

    Returns:
        uint8 images (n, height, width, channels) and int64 labels (n,), each twice.

    Raises:
        ValueError: naming the folder or file that is missing, unreadable, of another size, or
            without a range of gray values that its type tells.

    Example:

    >>> from pathlib import Path
    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.data import load_image_folder
    >>> for label in ("cat", "dog"):
    ...     folder = Path("photos") / label
    ...     folder.mkdir(parents=True)
    ...     for i in range(5):
    ...         keras.utils.save_img(folder / f"{i}.png", np.full((40, 50, 3), 50 * i), scale=False)
    >>> (x_train, y_train), (x_test, y_test) = load_image_folder("photos", (32, 32, 3), log=None)
    >>> x_train.shape, x_test.shape
    ((8, 32, 32, 3), (2, 32, 32, 3))
    """
    contents = survey(path)
    if image_shape is not None and (len(image_shape) != 3 or image_shape[2] not in MODES):
        raise ValueError(
            "`image_shape` must be (height, width, channels) with 1 or 3 channels. "
            f"Received: image_shape={image_shape}"
        )
    train, test = contents.train, contents.test
    if test is None:
        train, test = _held_out(train, seed)
    for part, files in (("training", train), ("test", test)):
        if not files:
            raise ValueError(f"{contents.root} holds no {part} images")
    rng = np.random.default_rng(seed)
    train, test = ([part[i] for i in rng.permutation(len(part))] for part in (train, test))
    with told_apart():
        shape = tuple(image_shape or read_image(train[0][0]).shape)
        if stream is None:
            stream = 4 * (len(train) + len(test)) * math.prod(shape) > _IN_MEMORY
        if stream:
            splits = _streamed(train, shape), _streamed(test, shape)
        else:
            splits = _read(train, image_shape), _read(test, image_shape)
    if log is not None:
        log(_summary(contents, len(train), len(test), bool(stream)))
    return splits


def _streamed(files: Files, shape: tuple[int, ...]) -> Split:
    images: Any = StreamedImages([file for file, _ in files], shape, "uint8")
    return images, np.array([label for _, label in files], np.int64)


def _summary(contents: FolderContents, train: int, test: int, stream: bool) -> str:
    how = "found, read when needed" if stream else "read"
    text = (
        f"{contents.root}: {train + test} images of {len(contents.classes)} classes {how}, "
        f"{train} for training, {test} for the test"
    )
    if contents.joined:
        text += f" ({contents.joined} counts as training images)"
    left = ", ".join(f"{n} {why}" for why, n in sorted(contents.left_out.items()))
    return text + (f"; left out: {left}" if left else "")


def _held_out(files: Files, seed: int) -> tuple[Files, Files]:
    """A fifth of each class, at least one image where there are two."""
    rng = np.random.default_rng(seed)
    train: Files = []
    test: Files = []
    for label in sorted({label for _, label in files}):
        own = [item for item in files if item[1] == label]
        held = max(1, round(_TEST_SHARE * len(own))) if len(own) > 1 else 0
        chosen = set(rng.permutation(len(own))[:held].tolist())
        for i, item in enumerate(own):
            (test if i in chosen else train).append(item)
    return train, test


def _read(files: Files, image_shape: tuple[int, ...] | None) -> Split:
    first = read_image(files[0][0], image_shape)
    x = np.empty((len(files), *first.shape), np.uint8)
    for row, (file, _) in enumerate(files):
        image = read_image(file, image_shape)
        if image.shape != first.shape:
            raise ValueError(
                f"images must be of one size, or `image_shape` given to bring them to one. "
                f"Received: {files[0][0].name} {first.shape[:2]}, {file.name} {image.shape[:2]}"
            )
        x[row] = image
    return x, np.array([label for _, label in files], np.int64)
