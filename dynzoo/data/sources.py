"""Names, files and folders of data, checked without NumPy or Keras: the command asks first."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["NAMES", "check_source"]

# Of the data sets that `dynzoo.data.load` knows.
NAMES = ("cifar10", "cifar100", "digits", "mnist")


def check_source(name: str | os.PathLike[str]) -> str:
    """The name as text, if it is that of a data set, a file or a folder, whatever they hold.

    Raises:
        FileNotFoundError: no such `.npz` file.
        ValueError: a name that `dynzoo.data.load` does not know.
    """
    key = os.fspath(name)
    if key.endswith(".npz"):
        if not Path(key).is_file():
            raise FileNotFoundError(f"There is no data file {Path(key)}.")
    elif key not in NAMES and not Path(key).is_dir():
        raise ValueError(
            f"`name` must be one of {list(NAMES)}, the path of an '.npz' file or a folder of "
            f"images. Received: name={key!r}"
        )
    return key
