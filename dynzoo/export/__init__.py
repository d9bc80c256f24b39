"""Graphs for other runtimes, with their certificate beside them."""

from typing import Any

# name -> module of this folder that holds it: loaded when it is first used
_LAZY = {
    "FORMATS": "exporter",
    "export_model": "exporter",
    "numbers_of": "certificate",
    "radii": "certificate",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
