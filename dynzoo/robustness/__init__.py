"""What an evaluation is: attacks beside certificates, checked, reported, compared."""

from dynzoo.utils.lazy import loader

__getattr__, __all__ = loader(
    __name__,
    {
        "CertificateViolation": "refutation",
        "Comparison": "comparison",
        "RobustnessReport": "report",
        "SavedReport": "saved_report",
        "compare": "comparison",
        "evaluate": "evaluation",
        "evaluate_corruptions": "corruptions",
        "noise_curve": "noise_curves",
        "read_report": "saved_report",
    },
)
