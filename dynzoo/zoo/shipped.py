"""Which presets come with dynzoo, and where. Needs no Keras: `dynzoo list` reads no more."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dynzoo.zoo import files

__all__ = ["find", "folders", "presets", "root"]


def presets(pattern: str = "*") -> dict[str, dict[str, Any]]:
    """Presets that come with dynzoo: name -> metadata.

    Args:
        pattern: which names, with ``*`` and ``?`` as in a shell: ``"*cifar10*"``.

    Example:

    >>> import dynzoo
    >>> for name, about in dynzoo.presets("isometric_tiny*").items():
    ...     print(name, about["dataset"], about["parameters"])
    isometric_tiny_cifar10 cifar10 1502986
    """
    found = {name: place for name, place in folders().items() if fnmatchcase(name, pattern)}
    return {name: files.read_metadata(folder) for name, folder in found.items()}


def find(name: str) -> Path:
    """The folder of a preset, by its name or its path.

    Raises:
        ValueError: if there is none, listing those that ship.
    """
    known = folders()
    if name in known:
        return known[name]
    if Path(name).is_dir():
        return Path(name)
    raise ValueError(
        f"There is no preset {name!r}, nor a folder of that name. "
        f"Presets: {', '.join(known) or 'none'}."
    )


def folders() -> dict[str, Path]:
    """Name -> folder of each preset that ships."""
    place = root()
    found = sorted(place.iterdir()) if place.is_dir() else []
    return {f.name: f for f in found if (f / "metadata.json").is_file()}


def root() -> Path:
    """Where the presets are: in the installed package, or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_pretrained"
    return installed if installed.is_dir() else package.parent / "pretrained"  # a checkout
