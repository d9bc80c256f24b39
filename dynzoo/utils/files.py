"""Files that are whole or not there: atomic writes, hashes, JSON."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynzoo.utils import interruption

__all__ = [
    "check_output",
    "check_place",
    "folder_of",
    "move_into_place",
    "sha256",
    "to_json",
    "write_atomically",
]


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file so that at every moment either the old or the new content is there.

    Nothing else is left behind where it fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with interruption.writing():
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str], endings: Sequence[str] = (".csv", ".json")) -> Path:
    """The path, if its name ends as what is written there does.

    Raises:
        ValueError: naming the endings.
    """
    path = Path(path)
    if path.suffix not in endings:
        raise ValueError(f"The name must end in {' or '.join(endings)}. Received: {path}")
    return path


def check_place(path: str | os.PathLike[str], folder: bool = False) -> Path:
    """The path, if a file can be written there; nothing is made.

    Asked before long work, whose result would have no place at its end.

    Args:
        path: what is to be written, new or in the place of an old one.
        folder: whether it is a folder, and files in it.

    Raises:
        OSError: naming the path and what is in the way.
    """
    path = Path(path)
    if path.is_dir() and not folder:
        raise IsADirectoryError(f"{path} is a folder: choose the name of a file")
    if folder and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: choose another folder")
    place = path if folder else path.parent
    above = next(each for each in (place, *place.absolute().parents) if os.path.lexists(each))
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: {above} may not be written to")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def to_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as JSON text; NumPy numbers become plain ones, NaN is refused."""

    def plain(value: Any) -> Any:
        import numpy as np  # half of the time of ``dynzoo list``, which writes nothing

        if isinstance(value, (np.generic, np.ndarray)):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} {value!r}")

    try:
        return json.dumps(metadata, indent=2, default=plain, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"`metadata` must be what JSON can hold. Received: {error}") from error


def folder_of(path: Any) -> Path:
    """The absolute path of a folder to write, or a ValueError that names the argument.

    The working directory is no such folder: what is moved into its place is another one, in which
    the process, and the shell that began it, would no longer be.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ValueError(f"`path` must be the path of a folder. Received: path={path!r}")
    target = Path(path).absolute()
    if target.is_dir() and any(target.samefile(p) for p in (Path.cwd(), *Path.cwd().parents)):
        raise ValueError(
            "`path` must be a folder that the working directory is not in: it is written anew. "
            f"Received: path={str(path)!r}"
        )
    return target


def move_into_place(work: Path, target: Path) -> None:
    """Renames only: at every moment the target is the old preset, or the new one, or absent."""
    old = work.with_suffix(".old")
    with interruption.writing():
        if target.exists():
            target.rename(old)
        try:
            work.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
    shutil.rmtree(old, ignore_errors=True)
