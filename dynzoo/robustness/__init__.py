"""What an evaluation is: attacks beside certificates, checked, reported, compared."""

from typing import Any

# name -> module of this folder that holds it: loaded when it is first used
_LAZY = {
    "evaluate": "evaluation",
    "CertificateViolation": "refutation",
    "RobustnessReport": "report",
    "compare": "comparison",
    "Comparison": "comparison",
    "SavedReport": "saved_report",
    "read_report": "saved_report",
    "noise_curve": "noise_curves",
    "evaluate_corruptions": "corruptions",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
