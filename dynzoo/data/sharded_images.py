"""Data sets in shards: folders of files that together are larger than memory, and their writer."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.data.shards import Shard, kind_of, open_shard
from dynzoo.inference.streamed_images import StreamedImages, chunks

__all__ = ["ShardedImages", "is_sharded", "load_shards", "shard_classes", "write_shards"]

Split = tuple[np.ndarray, np.ndarray]
_TEST_SHARE = 0.2
_IN_MEMORY = 2**30  # bytes of float32 images, beyond which they stay in their files
_VALIDATION = ("val", "valid", "validation")
_CLASSES = ("class_names.txt", "labels.txt", "label.labels.txt")  # the last by TensorFlow Datasets


class ShardedImages(StreamedImages):
    """Images in shards, that can be indexed as an array (n, height, width, channels).

    ``x[rows]`` reads these images and no others; ``x.take(rows)`` reads nothing.

    Args:
        shards: what ``dynzoo.data.shards.open_shard`` gives, all of one shape and type.
        rows: places of the images among those of all shards, one after the other; default: all.
        dtype: ``"float32"`` for images in [0, 1], ``"uint8"`` for bytes.

    Raises:
        ValueError: if bytes are asked of shards of floats.

    Example:

    >>> (x, y), _ = dynzoo.data.load("shards", stream=True)
    >>> batches = dynzoo.augmentation.Augmented(x.astype(x.stored), y, batch_size=64)
    >>> model.fit(batches, epochs=3, callbacks=[batches.follow_epochs()])
    """

    def __init__(
        self, shards: Sequence[Shard], rows: np.ndarray | None = None, dtype: str = "uint8"
    ):
        super().__init__([shard.path for shard in shards], shards[0].image_shape, dtype)
        self.shards = list(shards)
        self._ends = np.cumsum([len(shard) for shard in shards])
        self.rows = np.arange(self._ends[-1]) if rows is None else np.asarray(rows, np.int64)
        if self.dtype == np.uint8 and self.stored != np.uint8:
            raise ValueError(
                "`dtype='uint8'` needs images that are bytes; these shards hold floats. "
                "Load them with dtype='float32'."
            )

    @property
    def stored(self) -> np.dtype:
        """Type in which the images go into a training: bytes, or float32."""
        return np.dtype(np.uint8 if self.shards[0].dtype == np.uint8 else np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Any) -> ShardedImages:
        """Those at these places, still in their files."""
        return ShardedImages(self.shards, self.rows[rows], str(self.dtype))

    def astype(self, dtype: Any, copy: bool = True) -> ShardedImages:
        """The same images as another type, float32 in [0, 1] or bytes."""
        return ShardedImages(self.shards, self.rows, str(np.dtype(dtype)))

    def sha256(self) -> str:
        """Hash of the images, all of which are read."""
        digest = hashlib.sha256(f"{self.shape} {self.dtype}".encode())
        for part in chunks(len(self)):
            digest.update(self[part].tobytes())
        return digest.hexdigest()

    def _read(self, places: list[int]) -> np.ndarray:
        out = np.empty((len(places), *self.image_shape), self.dtype)
        rows = self.rows[places]
        owners = np.searchsorted(self._ends, rows, side="right")
        for owner in np.unique(owners):
            shard = self.shards[owner]
            mine = np.flatnonzero(owners == owner)
            mine = mine[np.argsort(rows[mine], kind="stable")]  # in the order of the file
            images = shard.read(rows[mine] - (self._ends[owner] - len(shard)))
            if images.dtype == np.uint8 and self.dtype == np.float32:
                images = np.divide(images, np.float32(255), dtype=np.float32)
            out[mine] = images
        return out


def is_sharded(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds shards, itself or in ``train`` and ``test``, and no class folders."""
    root = Path(path)
    folders = [f for f in (root, root / "train", root / "test") if f.is_dir()]
    inside = [file for folder in folders for file in folder.iterdir() if file not in folders]
    classes = [file for file in inside if file.is_dir() and not file.name.startswith(".")]
    return len(classes) < 2 and any(kind_of(file) for file in inside if file.is_file())


def shard_classes(path: str | os.PathLike[str]) -> list[str] | None:
    """Names of the classes, a line each in ``class_names.txt`` or ``labels.txt``, if it is there.

    Example:

    >>> shard_classes("shards")
    ['cat', 'dog']
    """
    for name in _CLASSES:
        file = Path(path) / name
        if file.is_file():
            return file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return None


def load_shards(
    path: str | os.PathLike[str],
    image_shape: tuple[int, ...] | None = None,
    log: Callable[[str], object] | None = print,
    stream: bool | None = True,
) -> tuple[Split, Split]:
    """Load ``(x_train, y_train), (x_test, y_test)`` from a folder of shards.

    A shard is ``NAME.npy`` with its labels in ``NAME.labels.npy``, ``NAME.npz`` with ``x`` and
    ``y``, or ``NAME.tfrecord`` with ``image`` and ``label`` (as TensorFlow Datasets writes them;
    TensorFlow reads them). It belongs to the test images if its name has the word ``test``
    (``test-00000-of-00004.npy``), or its folder is ``test``; one with ``val`` where there is no
    other test shard, and else to the training images. Without either a fifth of the images is held
    out, the same ones every time. The images are in the order of the names, numbers by their size.

    Args:
        path: the folder.
        image_shape: (height, width, channels) to which images of TFRecords are brought; arrays
            are of their own shape.
        log: called with a line that says what was found; ``None`` for silence.
        stream: ``True`` leaves the images in their shards until they are asked for
            (``ShardedImages``), ``False`` reads them, ``None`` reads them unless they would take
            more than 1 GiB as floats.

    Returns:
        Images (n, height, width, channels), bytes or float32 in [0, 1], and int64 labels (n,),
        each twice.

    Raises:
        ValueError: naming the shard that is damaged, missing, of another shape or type than the
            first, or has a label that no class has.
        FileNotFoundError: naming the file of labels that is not there.

    Example:

    >>> import numpy as np
    >>> from dynzoo.data import load_shards, write_shards
    >>> x, y = np.zeros((10, 8, 8, 3), "uint8"), np.arange(10) % 2
    >>> files = write_shards("shards", [(x, y)]) + write_shards("shards", [(x, y)], "test")
    >>> (x_train, y_train), (x_test, y_test) = load_shards("shards", log=None)
    >>> x_train.shape, x_train[[7, 2]].dtype
    ((10, 8, 8, 3), dtype('uint8'))
    """
    root = Path(path)
    files = _splits(root)
    opened: dict[str, list[Shard]] = {"train": [], "test": []}
    first: Shard | None = None
    for split, paths in files.items():
        for file in paths:
            shard = open_shard(file, image_shape or (first.image_shape if first else None))
            first = first or shard
            _check_alike(shard, first)
            opened[split].append(shard)
    assert first is not None
    _check_labels(root, opened)
    splits = [_split(part) for part in opened.values() if part]
    if len(splits) == 1:
        x, y = splits[0]
        held = np.zeros(len(y), bool)
        held[np.random.default_rng(0).permutation(len(y))[: round(_TEST_SHARE * len(y))]] = True
        splits = [(x.take(part), y[part]) for part in (~held, held)]
    if not all(len(y) for _, y in splits):
        raise ValueError(f"{root} holds too few images to hold some out for a test")
    if stream is None:
        stream = 4 * sum(int(np.prod(x.shape)) for x, _ in splits) > _IN_MEMORY
    whole = [shard.path for part in opened.values() for shard in part if not shard.apart]
    if stream and whole:
        raise ValueError(
            f"{whole[0]} is compressed, so that no image can be read alone: write it by np.savez, "
            "or by dynzoo.data.write_shards"
        )
    if log is not None:
        trained, tested = (len(y) for _, y in splits)
        log(
            f"{root}: {trained + tested} images in {sum(map(len, files.values()))} shards "
            f"{'found, read when needed' if stream else 'read'}, {trained} for training, {tested} "
            "for the test"
        )
    train, test = [(x if stream else x[:], y) for x, y in splits]
    return train, test


def _split(shards: list[Shard]) -> tuple[Any, np.ndarray]:
    kept = "uint8" if shards[0].dtype == np.uint8 else "float32"
    return ShardedImages(shards, dtype=kept), np.concatenate([s.labels for s in shards])


def _splits(root: Path) -> dict[str, list[Path]]:
    """The files of each split, in order; none of a numbered row may be missing."""
    found: dict[str, list[Path]] = {"train": [], "test": [], "validation": []}
    for folder in (root, root / "train", root / "test"):
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            if kind_of(file) and file.is_file():
                words = re.split(r"[-_.\s]", file.name.lower())
                split = "train" if folder == root else folder.name
                if folder == root and "test" in words:
                    split = "test"
                elif folder == root and set(words) & set(_VALIDATION):
                    split = "validation"
                found[split].append(file)
    found["train" if found["test"] else "test"] += found.pop("validation")
    if not found["train"]:
        raise ValueError(f"{root} holds no training shards")
    for split, files in found.items():
        kinds = {kind_of(file) for file in files}
        if len(kinds) > 1:
            several = ", ".join(sorted(map(str, kinds)))
            raise ValueError(f"{root} holds {split} shards of several kinds: {several}")
        _check_complete(files)
        files.sort(key=lambda file: [int(p) if p.isdigit() else p for p in _parts(file)])
    return found


def _parts(file: Path) -> list[str]:
    return re.split(r"(\d+)", file.name)


def _check_complete(files: list[Path]) -> None:
    """Names that count from 0 or 1, or that say how many there are, must have no gap."""
    rows: dict[tuple[Path, str], dict[int, re.Match[str]]] = {}
    pattern = re.compile(r"(?P<start>.*?)(?P<number>\d+)(?P<of>-of-(?P<count>\d+))?(?P<end>\D*)")
    for file in files:
        match = pattern.fullmatch(file.name)
        if match is not None:
            key = match["start"] + str(match["of"]) + match["end"]
            rows.setdefault((file.parent, key), {})[int(match["number"])] = match
    for (folder, _), row in rows.items():
        sample = next(iter(row.values()))
        first = min(1, min(row))
        expected = range(first, max(row) + 1)
        if sample["count"]:
            expected = range(int(sample["count"]))
        elif min(row) > 1:
            continue  # numbers that count something else, such as years
        gap = next((n for n in expected if n not in row), None)
        if gap is not None:
            number = str(gap).zfill(len(sample["number"]))
            name = f"{sample['start']}{number}{sample['of'] or ''}{sample['end']}"
            raise ValueError(f"{folder / name} is missing: {len(row)} of {len(expected)} are there")


def _check_alike(shard: Shard, first: Shard) -> None:
    for what, own, theirs in (
        ("images of shape", shard.image_shape, first.image_shape),
        ("pixels of type", shard.dtype, first.dtype),
    ):
        if own != theirs:
            raise ValueError(
                f"{shard.path} has {what} {own}, but {first.path.name} has {theirs}: shards of one "
                "data set must be alike"
            )


def _check_labels(root: Path, opened: dict[str, list[Shard]]) -> None:
    names = shard_classes(root)
    known = max(int(shard.labels.max()) for shard in opened["train"]) + 1
    classes, what = (len(names), "the names of") if names else (known, "training labels of")
    for split, shards in opened.items():
        for shard in shards:
            wrong = np.flatnonzero((shard.labels < 0) | (shard.labels >= classes))
            if len(wrong) and (names or split == "test" or shard.labels[wrong[0]] < 0):
                raise ValueError(
                    f"{shard.path}: image {wrong[0]} has the label {shard.labels[wrong[0]]}, but "
                    f"there are {what} {classes} classes, 0 to {classes - 1}"
                )


def write_shards(
    path: str | os.PathLike[str],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    split: str = "train",
    shard_bytes: int = 2**28,
) -> list[Path]:
    """Writes ``.npy`` shards, one after the other, of images that need not be in memory together.

    Args:
        path: the folder, made if it is not there.
        batches: images (n, h, w, c), bytes or floats in [0, 1], with labels (n,), as many times as
            wanted.
        split: ``"train"`` or ``"test"``.
        shard_bytes: about how large a shard may be; so much is held in memory.

    Returns:
        The files of images, ``SPLIT-00000-of-00010.npy`` and so on, each with its labels beside.

    Raises:
        ValueError: for images and labels of different lengths, or none at all, or where the folder
            holds shards of this split.

    Example:

    >>> import numpy as np
    >>> from dynzoo.data import write_shards
    >>> x, y = np.zeros((10, 8, 8, 3), "uint8"), np.arange(10) % 2
    >>> [file.name for file in write_shards("photos", [(x, y)], shard_bytes=1000)]
    ['train-00000-of-00002.npy', 'train-00001-of-00002.npy']
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test'. Received: split={split!r}")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    there = [file.name for file in folder.glob(f"{split}-*.np[yz]")]
    if there:
        raise ValueError(f"{folder} holds {split} shards already: {there[0]}")
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    written: list[Path] = []

    def write() -> None:
        x, y = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        place = folder / f".{split}-{len(written):05}"
        np.save(f"{place}.npy", np.ascontiguousarray(x))
        np.save(f"{place}.labels.npy", y.astype(np.int64))
        written.append(place)
        waiting.clear()

    for x, y in batches:
        if len(x) != len(y):
            raise ValueError(f"images and labels must be as many. Received: {len(x)} and {len(y)}")
        for part in chunks(len(x), max(1, shard_bytes // max(1, x[:1].nbytes))):
            held = sum(images.nbytes for images, _ in waiting)
            if waiting and held + x[part].nbytes > shard_bytes:
                write()
            waiting.append((x[part], y[part]))
    if waiting:
        write()
    if not written:
        raise ValueError("`batches` must give at least one image. Received: none")
    # their names say how many there are, which is known now
    named = [folder / f"{place.name[1:]}-of-{len(written):05}.npy" for place in written]
    for place, name in zip(written, named, strict=True):
        os.replace(f"{place}.labels.npy", name.with_suffix(".labels.npy"))
        os.replace(f"{place}.npy", name)
    return named
