"""One shard: a file with images and labels of which any image can be read without the others.

Rows are read at their place in the file and not mapped into memory: what was read does not count
as memory of the process, and a file that became shorter is an error and no signal.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.inference.image_files import read_image

__all__ = ["ArrayShard", "RecordShard", "Shard", "kind_of", "open_shard"]

_IMAGES = ("image", "image/encoded")  # of TensorFlow Datasets, and of older conventions
_LABELS = ("label", "image/class/label")


@dataclass(frozen=True)
class Shard:
    """Images of one file, and their labels.

    Args:
        path: the file.
        labels: int64 (n,), one an image.
        image_shape: (height, width, channels).
        dtype: of the pixels as they are kept, uint8 or a float type.
    """

    path: Path
    labels: np.ndarray
    image_shape: tuple[int, ...]
    dtype: np.dtype

    apart = True  # whether one image can be read without the others

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these places, bytes or float32 in [0, 1]."""
        raise NotImplementedError


@dataclass(frozen=True)
class ArrayShard(Shard):
    """A NumPy array in a file.

    Args:
        offset: where its first byte is; ``None`` where the array is compressed.
        key: its name in an ``.npz`` file.
    """

    offset: int | None = 0
    key: str = ""

    @property
    def apart(self) -> bool:  # type: ignore[override]
        return self.offset is not None

    def read(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.image_shape), self.dtype)
        if self.offset is None:
            with np.load(self.path, allow_pickle=False) as file:
                out[:] = file[self.key].reshape(-1, *self.image_shape)[rows]
        else:
            self._fill(out, rows, self.offset)
        if self.dtype == np.uint8:
            return out
        out = out.astype(np.float32)
        if not (np.isfinite(out).all() and out.min(initial=0) >= 0 and out.max(initial=0) <= 1):
            raise ValueError(f"{self.path} is float, so its values must be in [0, 1]")
        return out

    def _fill(self, out: np.ndarray, rows: np.ndarray, offset: int) -> None:
        size = int(np.prod(self.image_shape)) * self.dtype.itemsize
        flat = out.reshape(-1).view(np.uint8)
        ends = np.flatnonzero(np.diff(rows) != 1) + 1  # neighbours are read at once
        with self.path.open("rb", buffering=0) as file:
            for run in np.split(np.arange(len(rows)), ends):
                file.seek(offset + int(rows[run[0]]) * size)
                target = flat[run[0] * size : (run[-1] + 1) * size].data
                while len(target):
                    got = file.readinto(target)
                    if not got:
                        raise ValueError(f"{self.path} is shorter than when it was opened")
                    target = target[got:]


@dataclass(frozen=True)
class RecordShard(Shard):
    """TFRecords of encoded images; each is decoded when it is read, and brought to one size.

    Args:
        offsets: where each record begins.
        lengths: bytes of each.
    """

    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def read(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.image_shape), np.uint8)
        example = _tensorflow(self.path).train.Example
        with self.path.open("rb") as file:
            for place, row in enumerate(rows):
                file.seek(int(self.offsets[row]))
                data = file.read(int(self.lengths[row]))
                if len(data) < self.lengths[row]:
                    raise ValueError(f"{self.path} is shorter than when it was opened")
                features = example.FromString(data).features.feature
                out[place] = _decoded(features, self.path, int(row), self.image_shape)
        return out


def kind_of(path: Path) -> str | None:
    """``"npy"``, ``"npz"`` or ``"tfrecord"``, by the name; ``None`` for what is no shard."""
    name = path.name.lower()
    if name.startswith(".") or name.endswith(".labels.npy"):
        return None
    if any(part in ("tfrecord", "tfrecords") for part in name.replace("-", ".").split(".")[1:]):
        return "tfrecord"
    return path.suffix[1:].lower() if path.suffix.lower() in (".npy", ".npz") else None


def open_shard(path: Path, image_shape: tuple[int, ...] | None = None) -> Shard:
    """Reads what a shard holds, labels and sizes, and leaves its images where they are.

    Args:
        path: ``NAME.npy`` of images with ``NAME.labels.npy`` beside it, an ``.npz`` file with
            ``x`` and ``y`` (or ``x_train`` and ``y_train``), or a TFRecord file of examples with
            ``image`` and ``label``, for which TensorFlow must be installed.
        image_shape: (height, width, channels) for images of TFRecords; default: that of the first.

    Raises:
        ValueError: naming the file, whatever is wrong with it.
        FileNotFoundError: naming the file of labels that is not there.

    Example:

    >>> shard = open_shard(Path("shards/train-00000-of-00010.npy"))
    >>> shard.read(np.array([5, 7])).shape
    (2, 224, 224, 3)
    """
    opened = {"npy": _npy, "npz": _npz, "tfrecord": _records}[kind_of(path) or "npy"]
    try:
        shard = opened(path, image_shape)
    except (FileNotFoundError, _Missing):
        raise
    except Exception as error:  # zip, npy, protobuf: damaged files have as many errors as formats
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a usable shard: {reason}") from None
    return shard


class _Missing(RuntimeError):
    """No TensorFlow, which is not the file's fault."""


def _npy(path: Path, image_shape: Any) -> Shard:
    beside = path.with_suffix(".labels.npy")
    if not beside.is_file():
        raise FileNotFoundError(f"There is no file {beside} with the labels of {path}.")
    try:
        labels = np.load(beside, allow_pickle=False)
    except Exception as error:
        raise ValueError(f"its labels in {beside.name}: {error}") from None
    with path.open("rb") as file:
        return _array(path, file, labels, path.stat().st_size)


def _npz(path: Path, image_shape: Any) -> Shard:
    with np.load(path, allow_pickle=False) as file:
        end = "_train" if "x_train" in file.files else ""
        if {f"x{end}", f"y{end}"} - set(file.files):
            raise ValueError(f"it lacks the keys x and y; it has {file.files}")
        labels = file[f"y{end}"]
        member = next(i for i in file.zip.infolist() if i.filename in (f"x{end}.npy", f"x{end}"))
        if member.compress_type != zipfile.ZIP_STORED:
            with file.zip.open(member) as stream:
                found = _array(path, stream, labels, None, key=f"x{end}")
            return found
    with path.open("rb") as file:
        # the local header: 30 bytes, of which the last four are the lengths of what follows
        file.seek(member.header_offset + 26)
        start = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        file.seek(start)
        return _array(path, file, labels, start + member.file_size)


def _array(path: Path, file: Any, labels: np.ndarray, end: int | None, key: str = "") -> Shard:
    """The shard whose array begins here; ``end``: the place after it, ``None`` if compressed."""
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, columns_first, dtype = read[np.lib.format.read_magic(file)[0]](file)
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"images must be (n, height, width, channels), not {shape}")
    if columns_first:
        raise ValueError("images must be in C order, not in Fortran order")
    if dtype != np.uint8 and dtype.kind != "f":
        raise ValueError(f"images must be uint8 or float, not {dtype}")
    offset = None if end is None else file.tell()
    if offset is not None and offset + int(np.prod(shape)) * dtype.itemsize > end:
        raise ValueError(f"it is cut short: {shape[0]} images of {shape[1:]} do not fit into it")
    return ArrayShard(path, _labels(labels, shape[0]), shape[1:], dtype, offset, key)


def _labels(labels: np.ndarray, images: int) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (images,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{images} images need as many whole labels, not {labels.dtype} {labels.shape}"
        )
    return labels.astype(np.int64)


def _tensorflow(path: Path) -> Any:
    try:
        import tensorflow as tf
    except ImportError:
        raise _Missing(
            f"{path} holds TFRecords, which need TensorFlow: pip install 'dynzoo[tensorflow]', or "
            "write .npy shards (dynzoo.data.write_shards)"
        ) from None
    return tf


def _records(path: Path, image_shape: tuple[int, ...] | None) -> Shard:
    """Reads all records once, whose checksums TensorFlow compares, for their labels and places."""
    tf = _tensorflow(path)
    lengths: list[int] = []
    labels: list[int] = []
    try:
        # NumPy's iterator, on the CPU: another backend may hold the accelerator
        with tf.device("CPU"):
            for data in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
                features = tf.train.Example.FromString(data).features.feature
                labels.append(int(_feature(features, _LABELS, "int64_list")[0]))
                if image_shape is None:
                    image_shape = _decoded(features, path, 0, None).shape
                lengths.append(len(data))
    except tf.errors.DataLossError:
        raise ValueError(f"record {len(lengths)} is damaged or cut short") from None
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"record {len(lengths)}: {str(error).strip(chr(39))}") from None
    if not lengths:
        raise ValueError("it holds no record")
    sizes = np.array(lengths, np.int64)
    # before each record its length and a checksum of that, 12 bytes; after it one of 4 bytes
    offsets = np.concatenate([[0], np.cumsum(sizes + 16)[:-1]]) + 12
    assert image_shape is not None
    shape = tuple(image_shape)
    return RecordShard(path, np.array(labels, np.int64), shape, np.dtype(np.uint8), offsets, sizes)


def _feature(features: Any, names: Sequence[str], kind: str) -> Any:
    name = next((name for name in names if name in features), None)
    if name is None:
        raise KeyError(f"it has no feature {' or '.join(names)}, but {sorted(features)}")
    values = getattr(features[name], kind).value
    if len(values) != 1:
        raise ValueError(f"its feature {name} must be one {kind.removesuffix('_list')}")
    return values


def _decoded(features: Any, path: Path, row: int, shape: tuple[int, ...] | None) -> np.ndarray:
    data = io.BytesIO(_feature(features, _IMAGES, "bytes_list")[0])
    return read_image(data, shape, name=f"{path}, record {row},")
