"""Where recipes are. Needs no Keras, so that the command asks here before it loads anything."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["RecipeError", "find", "names"]


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the key."""


def find(name_or_path: str | os.PathLike[str], kind: str = "") -> Path:
    """Path of a recipe: a file, or the name of one that ships in ``zoo_configs/``.

    Args:
        name_or_path: what is looked for.
        kind: the folder in ``zoo_configs/`` for what is not a preset's recipe: ``"search"``.

    Raises:
        RecipeError: if there is none, listing those that ship.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = names(kind)
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    what, those = (f"{kind} file", "Those") if kind else ("recipe file", "Recipes")
    raise RecipeError(
        f"there is no {what} {str(name_or_path)!r}. {those} that ship: "
        f"{', '.join(sorted(shipped)) or 'none'}"
    )


def names(kind: str = "") -> dict[str, Path]:
    """Name -> file of each recipe that ships.

    Args:
        kind: as for ``find``.
    """
    package = Path(__file__).resolve().parents[1]
    shipped: dict[str, Path] = {}
    for folder in (package / "_zoo_configs" / kind, package.parent / "zoo_configs" / kind):
        if folder.is_dir():
            shipped.update({p.stem: p for p in sorted(folder.glob("*.yaml"))})
    return shipped
