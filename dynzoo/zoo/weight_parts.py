"""Weights as parts of arrays in small files: for arrays larger than a file may be, and float16.

Keras writes an array whole and in the type that it has. Here an array is cut along its first axis:
part p of weight w (in the order of `model.variables`) is the HDF5 array `w_p`, as `0007_00`, in one
of the files weights_00.h5, weights_01.h5, ...
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from dynzoo import backend
from dynzoo.utils.strict_json import short
from dynzoo.zoo.weights_file import Stored

__all__ = ["check_fit", "read", "write"]

_LARGE = 100_000  # entries from which an array is worth the smaller type
_HEADERS = 64 * 2**10  # bytes of a file beside its arrays
_ARRAY = re.compile(r"/(\d{4})_(\d{2})")


def write(model: keras.Model, folder: Path, limit: int, dtype: str = "float32") -> None:
    """Writes the weights of a model as files of at most so many bytes.

    Args:
        model: a built model whose floating weights are float32.
        folder: where to.
        limit: largest size of a file in bytes.
        dtype: of arrays with more than 100,000 entries, `"float32"` or `"float16"`.

    Raises:
        ValueError: naming a weight of another type, or one too large for float16.
    """
    files: list[list[tuple[str, np.ndarray]]] = [[]]
    room = limit - _HEADERS
    for index, variable in _floats(model):
        array = _stored_array(variable, dtype)
        for part, rows in enumerate(_parts(array, limit - _HEADERS)):
            if rows.nbytes > room:
                files.append([])
                room = limit - _HEADERS
            files[-1].append((f"{index:04d}_{part:02d}", rows))
            room -= rows.nbytes
    for number, arrays in enumerate(files):
        with h5py.File(folder / f"weights_{number:02d}.h5", "w") as file:
            for name, rows in arrays:
                file.create_dataset(name, data=rows)


def check_fit(stored: Sequence[Stored], model: keras.Model, weights: Path, config: Path) -> None:
    """Refuse files whose parts, put together, are not the weights that the model declares.

    Args:
        stored: what `dynzoo.zoo.weights_file.headers` returned.
        model: the model, whose weights need no values yet.
        weights: the file to name.
        config: the file that declares them.

    Raises:
        ValueError: naming a part too many, or a weight that is not whole.
    """
    start = f"{weights} does not fit {config.name}: "
    parts: dict[int, dict[int, Stored]] = defaultdict(dict)
    for s in stored:
        name = _ARRAY.fullmatch(s.path)
        if name is None or s.dtype not in ("float16", "float32"):
            raise ValueError(f"{start}{short(s.path, 80)} ({s.dtype}) is no part of a weight.")
        parts[int(name[1])][int(name[2])] = s
    for index, variable in _floats(model):
        here = parts.pop(index, {})
        shapes = [here[p].shape for p in sorted(here)]
        shape = tuple(variable.shape)
        whole = bool(shapes) and sorted(here) == list(range(len(here)))
        if whole and shape:
            rows = sum(s[0] if s else 0 for s in shapes)
            whole = rows == shape[0] and all(s[1:] == shape[1:] for s in shapes)
        elif whole:
            whole = shapes == [()]
        if not whole:
            raise ValueError(
                f"{start}the weight {short(variable.path, 80)} of shape {short(str(shape), 60)} "
                f"is not whole: its parts have the shapes {short(str(shapes), 80)}."
            )
    if parts:
        extra = next(iter(parts[min(parts)].values()))
        raise ValueError(f"{start}the model has no weight for {short(extra.path, 80)}.")


def read(model: keras.Model, files: Iterable[Path]) -> None:
    """Gives a model the weights that `write` wrote, checked by `check_fit` before."""
    arrays: dict[str, np.ndarray] = {}
    for path in files:
        with h5py.File(path, "r") as file:
            arrays |= {name: file[name][()] for name in file}
    for index, variable in _floats(model):
        parts = [arrays[name] for name in sorted(arrays) if name.startswith(f"{index:04d}_")]
        value = np.concatenate(parts) if variable.shape else parts[0]
        variable.assign(value.astype("float32"))


def _floats(model: keras.Model) -> list[tuple[int, Any]]:
    """The weights that are stored, with their places; the states of random generators are not."""
    whole = ("int", "uint")
    return [(k, v) for k, v in enumerate(model.variables) if not v.dtype.startswith(whole)]


def _stored_array(variable: Any, dtype: str) -> np.ndarray:
    if variable.dtype != "float32":
        raise ValueError(
            f"`weights_dtype={dtype!r}` needs weights in float32. "
            f"Received: {variable.path} in {variable.dtype}"
        )
    array = backend.value_of(variable)
    if dtype == "float32" or array.size <= _LARGE:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(
            f"`weights_dtype='float16'` holds numbers up to 65504. Received: {variable.path} with "
            f"{np.abs(array).max():.4g}"
        )
    return half


def _parts(array: np.ndarray, limit: int) -> list[np.ndarray]:
    if array.nbytes <= limit:
        return [array]
    rows = max(1, int(limit // (array.nbytes / len(array))))
    return [array[k : k + rows] for k in range(0, len(array), rows)]
