"""The HDF5 files with a preset's weights, read by their headers before anything is made of them.

Keras' own reader follows the format wherever it leads. A preset needs little of it: plain arrays
in groups. Everything else is refused here, so that an array takes no more memory than its file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dynzoo.utils.strict_json import short

__all__ = ["Stored", "check_fit", "check_values", "headers"]

_MAX_OBJECTS = 65_536
_MAX_DEPTH = 32
_ALLOWED = "A weights file may hold plain uncompressed arrays of numbers in groups, nothing else."


class Stored(NamedTuple):
    """An array in a weights file: where it stands, its shape and the name of its type."""

    file: Path
    path: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def headers(files: Iterable[Path]) -> list[Stored]:
    """All arrays of the files, without reading one.

    Raises:
        ValueError: naming the file and the first thing in it that is not allowed: links of any
            kind, external or virtual storage, compression, types other than numbers, and arrays
            that declare more bytes than the file has.

    Example:

    >>> sum(stored.entries for stored in headers([Path("model.weights.h5")]))
    4664938
    """
    found: list[Stored] = []
    for file in files:
        try:
            with h5py.File(file, "r") as root:
                found.extend(_walk(root, file))
        except _Refused as error:
            raise ValueError(f"{file} is refused: {error}. {_ALLOWED}") from None
        except Exception as error:  # h5py raises some six kinds over a damaged file
            raise ValueError(f"{file} is damaged or no weights file: {short(error)}.") from None
    return found


def check_values(stored: Sequence[Stored]) -> None:
    """Read every array once, and refuse NaN and infinity.

    Raises:
        ValueError: naming the file and the array.
    """
    for file in dict.fromkeys(s.file for s in stored):
        with h5py.File(file, "r") as root:
            for s in stored:
                if s.file != file or s.dtype == "integer":
                    continue
                value = root[s.path][()]
                if s.dtype == "bfloat16":
                    # the upper half of a float32: the exponent of NaN and infinity is all ones
                    bits = np.frombuffer(value.tobytes(), np.uint16)
                    finite = bool(((bits & 0x7F80) != 0x7F80).all())
                else:
                    finite = bool(np.isfinite(value).all())
                if not finite:
                    raise ValueError(
                        f"{file} is refused: {short(s.path, 80)} holds NaN or infinity. "
                        "Weights must be finite numbers."
                    )


def check_fit(
    stored: Sequence[Stored], declared: Sequence[Any], weights: Path, config: Path
) -> None:
    """Refuse arrays that are not one by one the weights that the model declares.

    Shapes and types are compared here as a whole; which array belongs to which weight is Keras'
    to say, and its reader refuses what differs.

    Args:
        stored: what ``headers`` returned.
        declared: the model's variables.
        weights: the file to name.
        config: the file that declares them.

    Raises:
        ValueError: naming an array too many, one that is missing, or one of another type.
    """
    have = Counter((s.shape, s.dtype) for s in stored)
    want = Counter((tuple(v.shape), _kind(keras_dtype(v))) for v in declared)
    extra, missing = have - want, want - have
    for key in [key for key in missing if key[1] == "integer" and not have[key]]:
        del missing[key]  # the states of random generators, which Keras does not store
    if not extra and not missing:
        return
    start = f"{weights} does not fit {config.name}: "
    for shape, dtype in extra:
        other = next((d for s, d in missing if s == shape), None)
        path = short(next(s.path for s in stored if (s.shape, s.dtype) == (shape, dtype)), 80)
        if other is not None:
            raise ValueError(
                f"{start}{path} of shape {_text(shape)} is {dtype}, the model's weight {other}."
            )
        raise ValueError(
            f"{start}{path} has shape {_text(shape)}, for which the model has no weight left. "
            "Allowed are exactly the weights that the model declares."
        )
    shape, dtype = next(iter(missing))
    name = next(v.path for v in declared if tuple(v.shape) == shape)
    raise ValueError(f"{start}it lacks {short(name, 80)}, {dtype} of shape {_text(shape)}.")


def keras_dtype(variable: Any) -> str:
    """The name of a variable's type, ``"float32"`` and the like."""
    return str(variable.dtype)


def _text(shape: tuple[int, ...]) -> str:
    return short(str(shape), 60)


def _kind(dtype: str) -> str:
    # the state of a random generator has another integer type on each backend
    return "integer" if dtype.startswith(("int", "uint")) else dtype


class _Refused(Exception):
    pass


def _walk(root: Any, file: Path) -> list[Stored]:
    size, total = file.stat().st_size, 0
    seen = {_address(root)}
    found: list[Stored] = []
    pending: list[tuple[Any, int]] = [(root, 0)]
    while pending:
        group, depth = pending.pop()
        if depth > _MAX_DEPTH or len(group) + len(seen) > _MAX_OBJECTS:
            raise _Refused("it holds too many groups, one in the other or side by side")
        _check_attributes(group)
        for name in group:
            path = f"{group.name.rstrip('/')}/{name}"
            where = short(path, 80)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _Refused(f"{where} is a link to another place")
            item = group[name]
            if not isinstance(item, (h5py.Group, h5py.Dataset)):
                raise _Refused(f"{where} is neither a group nor an array")
            address = _address(item)
            if address in seen:
                raise _Refused(f"{where} is stored under two names")
            seen.add(address)
            if isinstance(item, h5py.Group):
                pending.append((item, depth + 1))
                continue
            total += _check_array(item, where, size)
            if total > size:
                raise _Refused(f"its arrays declare more bytes than its {size:,}")
            found.append(Stored(file, path, tuple(item.shape), _dtype(item, where)))
    return found


def _address(item: Any) -> int:
    return int(h5py.h5o.get_info(item.id).addr)


def _check_attributes(item: Any) -> None:
    if len(item.attrs) > 16:
        raise _Refused(f"{short(item.name, 80)} has {len(item.attrs)} attributes")
    for i in range(len(item.attrs)):
        attribute = h5py.h5a.open(item.id, index=i)
        if attribute.shape != () or attribute.get_storage_size() > 4096:
            raise _Refused(f"an attribute of {short(item.name, 80)} is more than one short value")


def _check_array(item: Any, where: str, size: int) -> int:
    """The bytes of an array that stands whole in its file."""
    _check_attributes(item)
    plist = item.id.get_create_plist()
    if plist.get_external_count():
        raise _Refused(f"{where} has its values in another file")
    if item.is_virtual:
        raise _Refused(f"{where} is put together from other arrays")
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
        raise _Refused(f"{where} is compressed or stored in pieces")
    if item.shape is None:
        raise _Refused(f"{where} has no shape")
    declared = math.prod(item.shape) * item.dtype.itemsize
    offset = item.id.get_offset()
    if declared and (
        offset is None or item.id.get_storage_size() != declared or offset + declared > size
    ):
        raise _Refused(f"{where} declares {declared:,} bytes that the file does not hold")
    return declared


def _dtype(item: Any, where: str) -> str:
    dtype = item.dtype
    if dtype.kind == "f":
        return str(dtype.name)
    if dtype.kind in "iu":
        return "integer"
    if dtype.kind == "b":
        return "bool"
    # NumPy has no bfloat16: Keras stores its bytes, and says so beside them
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.fields is None:
        if item.attrs.get("dtype") == "bfloat16":
            return "bfloat16"
    raise _Refused(f"{where} is of type {short(str(dtype), 60)}, which is no number")
