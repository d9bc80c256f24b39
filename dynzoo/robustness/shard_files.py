"""The files of an evaluation in parts: one a part, and what they have in common, in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.utils import strict_json
from dynzoo.utils.files import write_atomically

__all__ = ["missing", "read_plan", "save_plan", "shard_file"]

_PLAN, _FORMAT = "plan.json", 1


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


def save_plan(folder: Path, options: dict[str, Any], shards: int) -> None:
    """Writes the plan, or checks that the one that is there is the same.

    Raises:
        ValueError: if the folder holds parts of another evaluation.
    """
    plan = {"format": _FORMAT, "shards": shards, "options": options}
    path = folder / _PLAN
    if path.exists():
        before = _read(path)
        old = {"shards": before["shards"], **before["options"]}
        new = {"shards": shards, **options}
        other = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if other:
            raise ValueError(
                f"{folder} holds parts of an evaluation with other {', '.join(other)}: choose "
                "another --checkpoint"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(plan, indent=1) + "\n").encode())


def read_plan(folder: Path) -> tuple[dict[str, Any], int]:
    """Options of `dynzoo evaluate` that all parts in a folder have in common, and their number.

    Raises:
        ValueError: if there is no plan, or it is damaged.
    """
    path = folder / _PLAN
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {_PLAN}: it is the folder that `dynzoo evaluate --shard K/N "
            "--checkpoint FOLDER` fills"
        )
    plan = _read(path)
    return plan["options"], plan["shards"]


def _read(path: Path) -> dict[str, Any]:
    try:
        plan = strict_json.read(path)
        good = plan["format"] == _FORMAT and isinstance(plan["options"], dict)
        good = good and isinstance(plan["shards"], int) and plan["shards"] >= 1
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    if not good:
        raise ValueError(f"{path} is of another version of dynzoo, or damaged")
    return plan
