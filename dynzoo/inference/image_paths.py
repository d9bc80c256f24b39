"""Picture files by name or by folder. Needs no Keras: the command asks before it loads anything."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["image_paths"]


def image_paths(path: str | os.PathLike[str]) -> list[Path]:
    """A file itself, or the images in a folder, by name.

    Raises:
        ValueError: if there is no such file, or no image in the folder.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise ValueError(f"There is no file {path}.")
        return [path]
    # NumPy and Pillow: only where a folder is looked through
    from dynzoo.inference.image_files import endings

    found = sorted(
        f for f in path.iterdir() if f.suffix.lower() in endings() and not f.name.startswith(".")
    )
    if not found:
        raise ValueError(f"{path} holds no images. Known endings: {', '.join(sorted(endings()))}")
    return found
