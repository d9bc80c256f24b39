"""What a layer promises, as data: words, a number, and the condition that makes it true.

This is the form alone. A layer states its own in ``guarantees()``, in its file in ``layers/``;
``docs/make_guarantees.py`` prints them all, ``tests/test_worst_cases.py`` searches for what breaks
one, and ``dynzoo.testing.check_layer`` checks those that it knows. CONTRIBUTING.md: "A layer with a
guarantee".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Guarantee"]


@dataclass(frozen=True)
class Guarantee:
    """One property that holds for a layer as it is configured.

    It is about real numbers, finite weights and finite inputs; in float32 it holds up to rounding,
    relative to the largest number on the way, unless the statement names another unit.

    Args:
        property: short name, such as ``"1-Lipschitz"`` or ``"norm kept"``.
        statement: the promise in one sentence or formula, with what it is about (a step, the flow).
        value: the number in it (a Lipschitz bound, a rate, a tolerance), or ``None``.
        condition: what makes it true, and what keeps that so (a constraint, the construction).
        source: paper and equation or theorem.

    Example:

    >>> for g in layer.guarantees():
    ...     print(g)
    """

    property: str
    statement: str
    value: float | None = None
    condition: str = "by construction"
    source: str = ""

    def __str__(self) -> str:
        number = "" if self.value is None else f" [{self.value:.6g}]"
        source = f" ({self.source})" if self.source else ""
        return f"{self.property}{number}: {self.statement}; {self.condition}{source}"

    def to_dict(self) -> dict:
        """The same as a dictionary that JSON can hold."""
        return asdict(self)
