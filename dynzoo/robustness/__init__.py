"""What an evaluation is: attacks beside certificates, checked, reported, compared."""

from typing import Any

# name -> module of this folder that holds it: loaded when it is first used
_LAZY = {
    "CertificateViolation": "refutation",
    "Comparison": "comparison",
    "RobustnessReport": "report",
    "SavedReport": "saved_report",
    "compare": "comparison",
    "evaluate": "evaluation",
    "evaluate_corruptions": "corruptions",
    "noise_curve": "noise_curves",
    "read_report": "saved_report",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
