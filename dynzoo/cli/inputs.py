"""What several commands read: presets, data, numbers of classes.

Imports of NumPy and the data loaders stand in the functions: a command finds its preset, and says
what is wrong with its arguments, without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynzoo.cli.console import say
from dynzoo.zoo import files as preset_files
from dynzoo.zoo import shipped

if TYPE_CHECKING:
    import numpy as np

    from dynzoo.data.datasets import Split


def find_preset(name: str) -> tuple[Path, dict[str, Any]]:
    """Folder and metadata of a preset."""
    folder = shipped.find(name)
    return folder, preset_files.read_metadata(folder)


def load_data(source: str, about: dict[str, Any]) -> tuple[Split, Split]:
    """Training and test data, by name, file or folder; those of a folder as the preset takes them.

    Args:
        source: what `data.load` takes.
        about: the preset's metadata.
    """
    from dynzoo.data import datasets as data

    shape = about.get("input_shape")
    try:
        return data.load(source, image_shape=tuple(shape) if shape else None, stream=None)
    except RuntimeError as error:  # neither here nor to be had: the message says what to do
        raise ValueError(str(error)) from error


def check_fit(model: Any, x: np.ndarray, y: np.ndarray, source: str) -> None:
    """Raise a ValueError if a model does not take these images, or lacks a class."""
    if tuple(model.input_shape[1:]) != x.shape[1:]:
        raise ValueError(
            f"the model takes images of shape {tuple(model.input_shape[1:])}, "
            f"{source} has images of shape {x.shape[1:]}"
        )
    if y.max() >= model.output_shape[-1]:
        raise ValueError(
            f"the model has {model.output_shape[-1]} classes, {source} has the label {y.max()}"
        )


def matched_labels(
    y: np.ndarray, source: str, preset: str, names: list[str] | None, strict: bool = True
) -> tuple[np.ndarray, list[str]]:
    """The labels of data as numbers of a preset's classes, and the names of these.

    Args:
        y: labels of the data.
        source: the data.
        preset: name of the preset.
        names: of its classes, or `None` where they are not known.
        strict: refuse data of which some classes are the preset's at other numbers, and some none
            of it; otherwise such labels stay as they are.
    """
    import numpy as np

    from dynzoo.data import datasets as data

    given = data.class_names(source)
    own, theirs = _plain(names or []), _plain(given)
    twice = len(set(own)) < len(own) or len(set(theirs)) < len(theirs)
    if not own or twice or theirs == [str(i) for i in range(len(theirs))]:
        return y, given
    if y.size and y.max() >= len(theirs):
        raise ValueError(f"{source} names {len(theirs)} classes, and has the label {y.max()}")
    shared = [(i, name) for i, name in enumerate(theirs) if name in own]
    if names and len(shared) == len(theirs):
        places = np.array([own.index(name) for name in theirs])
        if strict and places.tolist() != list(range(len(theirs))):
            say(f"labels of {source} are matched with the classes of {preset} by their names")
        return places[y], names
    if strict and not shared:
        say(f"{source} names its classes otherwise than {preset}: labels count as numbers")
    if strict and any(own.index(name) != i for i, name in shared):
        lacking = [name for name in theirs if name not in own]
        raise ValueError(
            f"{source} has classes that {preset} lacks ({', '.join(lacking[:5])}) beside some that "
            f"it has: leave those out, or name them as the preset does ({', '.join(own[:10])})"
        )
    return y, given


def _plain(names: list[str]) -> list[str]:
    """Names as they are compared: spelled with small letters and spaces."""
    return [" ".join(name.casefold().replace("_", " ").replace("-", " ").split()) for name in names]


def wanted_classes(text: str) -> int | None:
    """The number of classes that was asked for; `None` for that of the labels."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 2:
        raise ValueError(f"--num-classes must be 'auto' or an integer >= 2. Received: {text}")
    return int(text)


def classes(text: str, *labels: np.ndarray) -> int:
    """The number of classes that was asked for, or that of the labels."""
    import numpy as np

    from dynzoo.inference.label_checks import count_classes

    wanted = wanted_classes(text)
    return wanted or max(2, count_classes(np.concatenate(labels), "the data"))


def names_of_data(source: str, count: int) -> dict[str, list[str]]:
    """`class_names` for a preset's metadata, where the data have names of that many classes."""
    from dynzoo.data import datasets as data

    names = data.class_names(source)
    numbers = [str(i) for i in range(len(names))]
    return {} if len(names) != count or names == numbers else {"class_names": names}


def first(split: Split, limit: int | None) -> Split:
    """The first images of a split; those that are streamed stay in their files."""
    from dynzoo.inference.streamed_images import StreamedImages

    x, y = split
    if isinstance(x, StreamedImages):
        part: Any = x.part(0, limit)
        return part, y[:limit]
    return x[:limit], y[:limit]
