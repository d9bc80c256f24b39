"""The one error of a conversion that cannot be done."""

from __future__ import annotations

__all__ = ["ConversionError"]


class ConversionError(ValueError):
    """A part of a network that has no Keras form, or whose Keras form computes something else.

    Args:
        place: path of the module or operation.
        kind: its type.
        reason: what is the matter, and what is allowed.

    Attributes:
        place: path of the module or operation.
        kind: its type.
    """

    def __init__(self, place: str, kind: str, reason: str):
        super().__init__(f"'{place}' of type `{kind}` cannot be converted: {reason}")
        self.place = place
        self.kind = kind
