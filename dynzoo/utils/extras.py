"""Packages that `dynzoo` alone does not bring: which extra does, said in one line where one lacks.

`pip install 'dynzoo[plots]'` installs the extra `plots`. What `dynzoo` requires is what
`import keras` finds, and Keras imports scikit-learn and matplotlib wherever they are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["EXTRAS", "Extra", "MissingExtraError", "check", "extra"]


class Extra(NamedTuple):
    """What an extra of pyproject.toml is for, and the modules that it brings."""

    purpose: str  # the beginning of a sentence, in the plural
    modules: tuple[str, ...]


EXTRAS = {
    "plots": Extra("Pictures and HTML reports", ("matplotlib",)),
    "tuning": Extra("Searches", ("keras_tuner", "matplotlib", "sklearn", "six")),
    "parallel": Extra("Evaluations in several processes", ("joblib", "cloudpickle")),
    "completion": Extra("Completions of a shell", ("shtab",)),
    "hub": Extra("hf:// addresses", ("huggingface_hub",)),
}


class MissingExtraError(ImportError):
    """A package is not installed, and an extra of dynzoo's brings it.

    Example:

    >>> from dynzoo.utils.extras import MissingExtraError
    >>> issubclass(MissingExtraError, ImportError)
    True
    """


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of packages that an extra brings.

    Args:
        name: a key of ``EXTRAS``.

    Raises:
        MissingExtraError: in place of the import's own error, if one of them is not installed.

    Example:

    >>> from dynzoo.utils.extras import extra
    >>> with extra("plots"):
    ...     from matplotlib.figure import Figure
    """
    try:
        yield
    except ModuleNotFoundError as error:
        absent = (error.name or "").partition(".")[0]
        if absent not in EXTRAS[name].modules:
            raise
        raise _missing(name, [absent]) from None


def check(name: str) -> None:
    """Refuses before the work begins what would end with a missing package; imports nothing.

    Args:
        name: a key of ``EXTRAS``.

    Raises:
        MissingExtraError: if a package of the extra is not installed.

    Example:

    >>> from dynzoo.utils import extras
    >>> extras.check("tuning")
    """
    absent = [m for m in EXTRAS[name].modules if importlib.util.find_spec(m) is None]
    if absent:
        raise _missing(name, absent)


def _missing(name: str, modules: list[str]) -> MissingExtraError:
    return MissingExtraError(
        f"{EXTRAS[name].purpose} need {', '.join(modules)}: pip install 'dynzoo[{name}]'"
    )
