"""What the parts of an evaluation have in common, as a file in the folder of their outcomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynzoo.utils import strict_json
from dynzoo.utils.files import write_atomically

__all__ = ["read_plan", "save_plan"]

_FILE, _FORMAT = "plan.json", 1


def save_plan(folder: Path, options: dict[str, Any], shards: int) -> None:
    """Writes the plan, or checks that the one that is there is the same.

    Raises:
        ValueError: if the folder holds parts of another evaluation.
    """
    plan = {"format": _FORMAT, "shards": shards, "options": options}
    path = folder / _FILE
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
    path = folder / _FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {_FILE}: it is the folder that `dynzoo evaluate --shard K/N "
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
