"""The numbers of ``certificate.json``, checked before radii are computed from them.

A radius is the product: a negative margin or a bound of zero in the file would make it larger
without anyone seeing it. Each field has a line in the table; a new field gets one more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.certificates.rounding.bound import KINDS
from dynzoo.certificates.rounding.floating_point import Arithmetic
from dynzoo.utils import strict_json
from dynzoo.utils.files import sha256
from dynzoo.utils.strict_json import short

__all__ = ["CERTIFICATE", "FIELDS", "check_graph", "check_numbers", "read"]

CERTIFICATE = "certificate.json"
# 1000 classes are 20 MiB of text
_MAX_BYTES = 64 * 2**20


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _above_zero(value: Any) -> bool:
    number = _number(value)
    return number is not None and number > 0.0


def _not_negative(value: Any) -> bool:
    number = _number(value)
    return number is not None and number >= 0.0


def _distances(value: Any) -> bool:
    try:
        distances = np.asarray(value)
    except ValueError:  # rows of several lengths
        return False
    if distances.dtype.kind not in "fiu" or distances.ndim != 2 or len(distances) < 2:
        return False
    return bool(
        distances.shape[0] == distances.shape[1]
        and np.isfinite(distances).all()
        and (distances >= 0.0).all()
        and (np.diagonal(distances) == 0.0).all()
        and np.array_equal(distances, distances.T)
    )


def _column_pairs(value: Any, columns: int) -> bool:
    """Two rows of finite numbers >= 0, one column an anchor."""
    rows = value if isinstance(value, list) and len(value) == 2 else ()
    return bool(rows) and all(
        isinstance(row, list) and len(row) == columns and all(map(_not_negative, row))
        for row in rows
    )


def _rounding(value: Any) -> bool:
    """The numbers of a ``RoundingBound``."""
    if not isinstance(value, Mapping):
        return False
    anchors, arithmetic = value.get("anchors"), value.get("arithmetic")
    if not isinstance(anchors, list) or not anchors or None in map(_number, anchors):
        return False
    names = value.get("measured_layers")
    return (
        all(
            isinstance(part := value.get(name), Mapping)
            and set(part) == set(KINDS)
            and all(_column_pairs(part[kind], len(anchors)) for kind in KINDS)
            for name in ("body", "head")
        )
        and _column_pairs(value.get("peak"), len(anchors))
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(arithmetic, Mapping)
        and set(arithmetic) == set(Arithmetic._fields)
        and all(map(_not_negative, arithmetic.values()))
        and _above_zero(arithmetic["unit"])
    )


def _range(value: Any) -> bool:
    numbers = [_number(v) for v in value] if isinstance(value, list) else []
    return len(numbers) == 2 and None not in numbers and numbers[0] < numbers[1]  # type: ignore


# field -> (whether it must be there, check, what is allowed)
FIELDS: dict[str, tuple[bool, Callable[[Any], bool], str]] = {
    "norm": (False, lambda value: value == "l2", "'l2'"),
    "lipschitz": (False, _above_zero, "a finite number above 0"),
    "body_lipschitz": (True, _above_zero, "a finite number above 0"),
    "pair_distances": (
        True,
        _distances,
        "a symmetric table of finite numbers >= 0, a row and a column for each of at least two "
        "classes, with zeros on its diagonal",
    ),
    "rounding": (
        True,
        _rounding,
        "the bounds of rounding that `dynzoo export` writes (a file with one number is of an "
        "earlier version: export again)",
    ),
    "image_range": (True, _range, "two finite numbers, the smaller one first"),
    "image_entries": (
        True,
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
        "an integer above 0",
    ),
}


def check_numbers(numbers: Mapping[str, Any], where: str = "`certificate`") -> None:
    """Refuse numbers that no certificate has.

    Args:
        numbers: the content of a ``certificate.json`` that says ``certified``.
        where: its file, for the message.

    Raises:
        ValueError: naming the field, and what is allowed.
    """
    for field, (needed, check, allowed) in FIELDS.items():
        if field not in numbers:
            if needed:
                raise ValueError(f"{where} is refused: it lacks {field!r}.")
        elif not check(numbers[field]):
            raise ValueError(
                f"{where} is refused: {field!r} must be {allowed}. "
                f"Received: {short(repr(numbers[field]), 60)}"
            )
    graph = numbers.get("graph")
    classes = graph.get("classes") if isinstance(graph, Mapping) else None
    if classes is not None and classes != len(numbers["pair_distances"]):
        raise ValueError(
            f"{where} is refused: 'pair_distances' has {len(numbers['pair_distances'])} rows, "
            f"its graph {short(repr(classes), 40)} classes."
        )


def check_graph(path: str | os.PathLike[str], numbers: Mapping[str, Any], where: str) -> None:
    """Refuse a graph that is not, to the last bit, the one that a certificate was made for.

    Args:
        path: the graph's file or folder, under whatever name; further files that the certificate
            names stand beside it.
        numbers: the content of a ``certificate.json``.
        where: its file, for the message.

    Raises:
        ValueError: naming the file that is another, or that the certificate names no graph.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist: export the model again.")
    graph = numbers.get("graph")
    sums = graph.get("sha256") if isinstance(graph, Mapping) else None
    if not isinstance(graph, Mapping) or not isinstance(sums, Mapping):
        raise ValueError(f"{where} is damaged: it does not name the files of its graph.")
    root = str(graph.get("file", path.name))
    own = sorted(p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
    found = {p: sha256(p) for p in own}
    named = {path.parent / _renamed(str(n), root, path.name): s for n, s in sums.items()}
    for beside in named.keys() - found.keys():  # as the weights of a large ONNX graph
        found[beside] = sha256(beside) if beside.is_file() else ""
    for file in sorted(found):
        if found[file] != named.get(file):
            raise ValueError(
                f"{file} is not the graph of {where}: its SHA-256 is another. Any change of the "
                "graph, as by quantisation, ends its certificate, and a quantised graph can have "
                "none: export the model again."
            )


def _renamed(name: str, root: str, own: str) -> str:
    """The path of one of the graph's files, where the graph has been given a name of its own."""
    parts = Path(name).parts
    return str(Path(own, *parts[1:])) if parts[:1] == (root,) else name


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a ``certificate.json``; its numbers are not checked yet.

    Raises:
        ValueError: naming the file, if it is missing, damaged or something else.
    """
    try:
        numbers = strict_json.read(path, _MAX_BYTES)
        if not isinstance(numbers, dict) or not isinstance(numbers.get("certified"), bool):
            raise ValueError("it does not say whether the model is certified")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no certificate of an exported model: {short(error)}") from None
    return numbers
