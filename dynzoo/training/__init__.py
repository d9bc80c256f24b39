"""Training: recipes, runs that can be resumed, fine-tuning, distribution."""

from typing import Any

# name -> module of this folder that holds it: loaded when it is first used
_LAZY = {
    "RecipeError": "recipes",
    "TrainingDivergedError": "loop",
    "build_model": "loop",
    "finetune": "finetuning",
    "train": "loop",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
