"""Values of a recipe that change while it trains: mappings from first epoch to value."""

from __future__ import annotations

from typing import Any

__all__ = ["at_epoch", "check", "first_epochs", "values"]


def at_epoch(section: dict[str, Any], epoch: int) -> dict[str, Any]:
    """A section of a recipe in one epoch, counted from 0: of each mapping the value that is due.

    $$ v(e) = v_k \\text{ with the largest first epoch } e_k \\le e $$

    Args:
        section: the section, checked by ``dynzoo.training.recipes.validate``: its mappings hold the
            first epochs of their values, increasing from 0.
        epoch: number of the epoch, at least 0.

    Example:

    >>> at_epoch({"name": "offset_crossentropy", "offset": {0: 0.4, 6: 0.8}}, 7)
    {'name': 'offset_crossentropy', 'offset': 0.8}
    """
    return {k: _due(v, epoch) if isinstance(v, dict) else v for k, v in section.items()}


def _due(values: dict, epoch: int) -> Any:
    # A preset's metadata are JSON, which makes the epochs texts.
    return values[max((start for start in values if int(start) <= epoch), key=int)]


def first_epochs(section: dict[str, Any]) -> list[int]:
    """The epochs at which something in a section changes, 0 included.

    >>> first_epochs({"offset": {0: 0.4, 6: 0.8}, "temperature": 0.25})
    [0, 6]
    """
    starts = {int(e) for value in section.values() if isinstance(value, dict) for e in value}
    return sorted(starts | {0})


def values(entry: Any) -> list[Any]:
    """The values that an entry of a section has, one after the other; one where it is no mapping.

    >>> values({0: 10.0, 40: 15.0}), values(0.25)
    ([10.0, 15.0], [0.25])
    """
    return list(entry.values()) if isinstance(entry, dict) else [entry]


def check(key: str, values: dict) -> None:
    """Refuses a mapping that is not from increasing epochs, the first of them 0.

    Raises:
        ValueError: naming the key.
    """
    try:
        starts = [int(str(start)) for start in values]  # neither 1.5 nor True is an epoch
    except ValueError:
        starts = []
    if starts != sorted(set(starts)) or starts[:1] != [0]:
        raise ValueError(
            f"`{key}` must map increasing epochs, from 0, to values. Received: {values}"
        )
