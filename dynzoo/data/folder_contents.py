"""What a folder of images holds: its splits, its classes, their files, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dynzoo.inference.image_files import endings

__all__ = ["FolderContents", "survey"]

Files = list[tuple[Path, int]]
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# Folders that file systems and archive programs leave, of which none holds pictures of its own.
_SYSTEM = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "__pycache__"}


@dataclass
class FolderContents:
    """A folder of images, looked through but not read.

    Attributes:
        root: the folder.
        classes: names in alphabetical order, which are the labels 0, 1, ...
        train: files and labels.
        test: files and labels, ``None`` where there is no such folder.
        joined: name of a validation folder whose files are among the training ones, or "".
        left_out: numbers of files and folders by the reason why they are left out.
    """

    root: Path
    classes: list[str]
    train: Files
    test: Files | None = None
    joined: str = ""
    left_out: Counter[str] = field(default_factory=Counter)


def survey(path: str | Path) -> FolderContents:
    """Look through a folder of images.

    Raises:
        ValueError: if it is none, has fewer than two classes, two folders for one split, a split
            beside classes that it holds as well, test classes that are not trained on, or a class
            none of whose files is an image.
    """
    root, left = Path(path), Counter[str]()
    parts = _splits(root, left)
    if not parts:
        found = _classes(root, left)
        _check_count(root, found)
        return FolderContents(root, list(found), _labelled(found, list(found)), left_out=left)
    if "train" not in parts:
        raise ValueError(
            f"{root} has {' and '.join(p.name for p in parts.values())} but no folder `train`"
        )
    trained = _classes(parts["train"], left)
    _check_count(root, trained)
    names = list(trained)
    others = {}
    for split in parts.keys() - {"train"}:
        others[split] = _classes(parts[split], left)
        unknown = sorted(set(others[split]) - set(names))
        if unknown:
            raise ValueError(f"{parts[split]} has classes that `train` lacks: {', '.join(unknown)}")
    train, joined = _labelled(trained, names), ""
    test = others.get("test")
    if test is None or not any(test.values()):
        test = others.get("val", test)
    elif others.get("val"):
        joined = parts["val"].name
        train += _labelled(others["val"], names)
    return FolderContents(
        root, names, train, None if test is None else _labelled(test, names), joined, left
    )


def _splits(root: Path, left: Counter[str]) -> dict[str, Path]:
    """The folders of the splits, or nothing where the folder's own subfolders are the classes.

    A folder ``train`` beside ``car`` and ``ship``, with images in it, is a class.
    """
    parts: dict[str, Path] = {}
    rest = []
    for folder in _subfolders(root, Counter()):
        split = next((s for s, names in _SPLITS.items() if folder.name.lower() in names), None)
        if split is None:
            rest.append(folder)
        elif split in parts:
            raise ValueError(
                f"{root} has two folders for one split: {parts[split].name} and {folder.name}"
            )
        else:
            parts[split] = folder
    nested = {s for s, p in parts.items() if _subfolders(p, Counter()) and not _has_images(p)}
    if "train" in parts and "train" not in nested:
        return {}
    if "train" not in parts:
        _check_beside({s: parts[s] for s in nested}, rest)
        if rest or not nested:
            return {}
    if len(parts) == 1 and any(_has_images(folder) for folder in rest):
        return {}
    _subfolders(root, left)
    left.update({f"folder {folder.name}" for folder in rest})
    return parts


def _check_beside(nested: dict[str, Path], rest: list[Path]) -> None:
    """Refuses a split of classes that stand beside it: it would count as one class more."""
    names = {folder.name for folder in rest}
    for folder in nested.values():
        both = sorted(names & {inner.name for inner in _subfolders(folder, Counter())})
        if both:
            raise ValueError(
                f"{folder} holds classes that stand beside it as well ({', '.join(both[:5])}): "
                f"move those beside it into a folder `train`"
            )


def _has_images(folder: Path) -> bool:
    return any(f.suffix.lower() in endings() and f.is_file() for f in folder.iterdir())


def _subfolders(root: Path, left: Counter[str]) -> list[Path]:
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    found = []
    for entry in sorted(root.iterdir()):
        if not entry.is_dir():
            if not entry.name.startswith("."):
                left["in no class"] += 1
        elif _is_hidden(entry.name):
            left[f"folder {entry.name}"] += 1
        else:
            found.append(entry)
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _classes(root: Path, left: Counter[str]) -> dict[str, list[Path]]:
    """Image files by the name of their class; folders without any file are no class."""
    found = {}
    for folder in _subfolders(root, left):
        before = left.copy()
        files = _files(folder, left)
        if files:
            found[folder.name] = files
            continue
        others = left - before
        if others:
            why = ", ".join(f"{n} {reason}" for reason, n in sorted(others.items()))
            raise ValueError(
                f"{folder} holds no image that can be read ({why}): convert its files, or take the "
                "folder away if it is no class"
            )
        left["empty folder"] += 1
    return found


def _files(folder: Path, left: Counter[str]) -> list[Path]:
    """Image files below a folder, links followed, in alphabetical order."""
    found: list[Path] = []
    seen = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:  # a link to where we have been
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in folders if _is_hidden(name)]
        left.update(f"folder {name}" for name in hidden)
        folders[:] = [name for name in folders if name not in hidden]
        for name in names:
            file = Path(at, name)
            if name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini"):
                left["hidden"] += 1
            elif file.suffix.lower() in endings():
                found.append(file)
            else:
                left[f"ending in {file.suffix or 'nothing'}"] += 1
    return sorted(found)


def _labelled(found: dict[str, list[Path]], names: list[str]) -> Files:
    return [(file, names.index(name)) for name, files in found.items() for file in files]


def _check_count(root: Path, found: dict[str, list[Path]]) -> None:
    if len(found) < 2:
        raise ValueError(
            f"{root} must hold a folder of images for each of at least two classes, or two "
            f"folders `train` and `test` that do. Received: {', '.join(found) or 'no folders'}"
        )
