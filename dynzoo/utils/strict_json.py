"""JSON from files that others wrote: one meaning only, of bounded size, or one clear line.

Python's own reader takes the last of two equal keys, and ``NaN`` and ``Infinity``, which JSON does
not have: another reader may then see another file than the one that was checked.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

__all__ = ["MAX_BYTES", "parse", "read", "short"]

# Python objects take up to twenty times the text: what is read here stays below 100 MiB.
MAX_BYTES = 4 * 2**20
_MAX_DEPTH = 100


def read(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file.

    Args:
        path: the file; a folder or a pipe is refused.
        max_bytes: largest size that is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: saying what is wrong, without the name of the file.

    Example:

    >>> read("metadata.json")["name"]
    'isometric_small_cifar10'
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is not a regular file")
    if size > max_bytes:
        raise ValueError(f"it has {size:,} bytes; at most {max_bytes:,} are read")
    return parse(path.read_bytes())


def parse(content: bytes | str) -> Any:
    """JSON text as Python objects.

    Raises:
        ValueError: for text that is not UTF-8 or not JSON, for a key that stands twice in an
            object, for ``NaN``, ``Infinity`` and numbers beyond float64, and for deep nesting.

    Example:

    >>> parse('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' stands there twice
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels") from None
    _check_depth(value)
    return value


def short(error: BaseException | str, limit: int = 160) -> str:
    """A reason in one line, whatever length and layout the library gave it."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(repr(twice), 60)} stands there twice")
    return table


def _constant(name: str) -> Any:
    raise ValueError(f"it contains {name}, which is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it contains the number {short(text, 40)}, which float64 cannot hold")
    return value


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(v for v in item.values() if isinstance(v, (dict, list)))
            elif isinstance(item, list):
                inner.extend(v for v in item if isinstance(v, (dict, list)))
        level, depth = inner, depth + 1
