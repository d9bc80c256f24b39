"""What goes wrong when a model is certified, by name."""

from __future__ import annotations

__all__ = ["ReferenceMismatchError", "StaleCertificateError", "UncertifiableLayerError"]


class UncertifiableLayerError(ValueError):
    """A layer whose Lipschitz constant is not known; the message names it and what can be done."""

    def __init__(self, name: str, class_name: str, reason: str):
        super().__init__(
            f"Layer '{name}' of class `{class_name}` cannot be certified: {reason} "
            "Replace the layer by one that `certify` knows (dynzoo.layers, or a standard Keras "
            "layer such as Dense, Conv2D, ReLU, Flatten, Add), or give the class that defines its "
            "`call` both methods: `lipschitz_bound(input_shape) -> float`, a bound of that `call`, "
            "and `call_float64(x) -> np.ndarray`, the same function in NumPy float64."
        )
        self.layer_name = name
        self.class_name = class_name


class StaleCertificateError(ValueError):
    """The model changed after it was certified."""


class ReferenceMismatchError(RuntimeError):
    """The float64 reference and the model's own forward pass differ by more than rounding."""
