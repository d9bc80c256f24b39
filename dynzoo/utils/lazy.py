"""Names of a folder that are loaded when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["loader"]


def loader(package: str, table: Mapping[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """The ``__getattr__`` and the ``__all__`` of a folder whose modules cost time to import.

    Args:
        package: ``__name__`` of the folder.
        table: public name -> module of the folder that holds it.

    Example:

    >>> __getattr__, __all__ = loader(__name__, {"load": "datasets"})
    """

    def load(name: str) -> Any:
        if name not in table:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{table[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, sorted(table)
