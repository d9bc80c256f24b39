"""The files of an evaluation in parts: one a part, in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

__all__ = ["missing", "shard_file"]


def shard_file(folder: str | os.PathLike[str], number: int, shards: int) -> Path:
    """The checkpoint of a part, numbered from 0, in a folder of them."""
    return Path(folder) / f"shard_{number + 1:04d}_of_{shards:04d}.npz"


def missing(folder: str | os.PathLike[str], shards: int) -> list[int]:
    """Numbers, from 1, of the parts of which the folder has no finished file."""
    files = [shard_file(folder, number, shards) for number in range(shards)]
    return [number + 1 for number, file in enumerate(files) if not _finished(file)]


def _finished(file: Path) -> bool:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return bool((arrays["repeated"][:, 0] >= 0).all())
    except Exception:  # none, half a file, or of another program: not done in any case
        return False
