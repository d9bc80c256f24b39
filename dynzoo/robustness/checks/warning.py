"""A named reason to doubt a number of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass

# Images that a check looks at, and the share of them that may misbehave.
SAMPLE = 64
TOLERANCE = 0.02


@dataclass(frozen=True)
class EvaluationWarning:
    """A named reason to doubt a number of a report."""

    name: str
    text: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"
