"""Data sets: by name, from .npz files, from folders of images."""

from typing import Any

# name -> module of this folder that holds it: loaded when it is first used
_LAZY = {
    "Split": "loading",
    "class_names": "loading",
    "load": "loading",
    "load_exact": "loading",
    "load_image_folder": "image_folder",
    "split_validation": "loading",
    "to_float": "loading",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
