"""Tables as CSV, one way for all files that are written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["csv_text"]


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    r"""A header and a line a row, ended by a newline; ``None`` is left empty.

    Args:
        columns: keys of the rows, in their order in the file.
        rows: mappings with no other keys.

    Raises:
        ValueError: if a row has a key that is no column.

    Example:

    >>> csv_text(["name", "accuracy"], [{"name": "small", "accuracy": 0.7}])
    'name,accuracy\nsmall,0.7\n'
    """
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
