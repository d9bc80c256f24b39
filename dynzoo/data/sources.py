"""Names, files and folders of data, checked without NumPy or Keras: the command asks first."""

from __future__ import annotations

import os
from pathlib import Path

from dynzoo.inference.class_names import CLASSES

__all__ = ["check_source"]


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
    elif key not in CLASSES and not Path(key).is_dir():
        raise ValueError(
            f"`name` must be one of {sorted(CLASSES)}, the path of an '.npz' file or a folder of "
            f"images. Received: name={key!r}"
        )
    return key
