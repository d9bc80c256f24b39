"""The leaderboard: what the presets' metadata say, beside published models with their sources."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynzoo.utils.csv_text import csv_text
from dynzoo.utils.files import write_atomically
from dynzoo.utils.formatting import duration, percent

__all__ = ["COLUMNS", "leaderboard", "published", "save", "summary", "to_csv", "to_markdown"]

# Columns of a row and their titles; accuracies are in percent, and a value that is not known is "".
# The numbers come from a preset's metadata, which `zoo/measurement.py` writes.
COLUMNS = {
    "name": "model",
    "kind": "kind",
    "system": "system",
    "dataset": "data set",
    "parameters": "parameters",
    "extra_data": "extra data",
    "clean": "clean",
    "certified_36": "certified 36/255",
    "certified_72": "certified 72/255",
    "certified_108": "certified 108/255",
    "top5": "top-5",
    "certified_top5_36": "certified top-5 36/255",
    "smoothed_36": "smoothed, certified 36/255",
    "attacked_36": "attacked 36/255",
    "attacked_0.5": "attacked 0.5",
    "attacks": "attacks",
    "lipschitz": "Lipschitz bound",
    "audited_slope": "largest slope found",
    "hardware": "hardware",
    "training_time": "training time",
    "seed": "seed",
    "command": "command",
    "source": "source",
}
_NUMBERS = {"parameters", "clean", "top5", "lipschitz", "audited_slope", "seed"}
_MISSING = "–"
_PUBLISHED = Path(__file__).with_name("published_results.csv")
# What the architectures of recipes discretise.
_SYSTEMS = {
    "hamiltonian": "Hamiltonian flows",
    "isometric": "gradient flow",
    "structured": "switching flows",
    "convection_diffusion": "convection-diffusion",
    "resnet": "free field, unconstrained",
}
_KINDS = {
    "unconstrained": "free field, unconstrained",
    "naive": "free field, halved steps",
    "nonexpansive": "gradient flow",
}


def leaderboard(
    presets: Mapping[str, Mapping[str, Any]], dataset: str | None = None, literature: bool = True
) -> list[dict[str, str]]:
    """One row a model, best certified accuracy at 36/255 first within each data set.

    Nothing is computed or guessed: what the metadata or a source do not say is an empty text.

    Args:
        presets: name -> metadata, as from `dynzoo.presets()`.
        dataset: the one to show, such as `"cifar10"`; all if `None`.
        literature: add published models of the data sets that are shown.

    Returns:
        Rows with the keys of `COLUMNS`, all values text.

    Raises:
        ValueError: if no model is known for ``dataset``.

    Example:

    >>> print(to_markdown(leaderboard(dynzoo.presets(), dataset="cifar10")))
    """
    rows = [_preset_row(name, about) for name, about in presets.items()]
    if literature:
        rows += published()
    known = sorted({row["dataset"] for row in rows if row["dataset"]})
    if dataset is not None:
        rows = [row for row in rows if row["dataset"] == dataset]
        if not rows:
            raise ValueError(
                f"`dataset` must be one of {', '.join(known) or 'none'}. Received: {dataset!r}"
            )
    return sorted(rows, key=_order)


def published() -> list[dict[str, str]]:
    """Models of the literature, as their papers or repositories state them."""
    with _PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{**dict.fromkeys(COLUMNS, ""), **row, "kind": "published"} for row in rows]


def summary(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the few columns that fit on a terminal."""
    shown = [
        key
        for key in COLUMNS
        if key in ("certified_36", "certified_72", "certified_108", "attacked_36")
    ]
    several = len({row["dataset"] for row in rows}) > 1
    shown = ["name", *["dataset"] * several, "parameters", "clean", *shown, "kind"]
    titles = [COLUMNS[key].replace("certified", "cert.") for key in shown]
    return titles, [[_plain(row, key) for key in shown] for row in rows]


def save(rows: Sequence[Mapping[str, str]], path: str | os.PathLike[str]) -> Path:
    """Write the rows as `.md` or `.csv`; returns the path.

    Raises:
        ValueError: for another ending.
    """
    target = Path(path)
    writers = {".md": to_markdown, ".csv": to_csv}
    if target.suffix not in writers:
        raise ValueError(f"the leaderboard must end in .md or .csv. Received: {path}")
    write_atomically(target, writers[target.suffix](rows).encode())
    return target


def to_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as CSV, unknown values left empty."""
    return csv_text(COLUMNS, rows)


def to_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as tables in Markdown, one a data set; published models in italics."""
    parts = []
    for dataset in sorted({row["dataset"] for row in rows}):
        chosen = [row for row in rows if row["dataset"] == dataset]
        # A column that nobody fills says nothing; the kind is said by the italics.
        columns = [
            key
            for key in COLUMNS
            if key not in ("kind", "dataset") and any(row[key] for row in chosen)
        ]
        lines = [
            line(COLUMNS[key] for key in columns),
            line("---:" if _is_number(key) else "---" for key in columns),
            *(line(_cell(row, key) for key in columns) for row in chosen),
        ]
        parts.append(f"## {dataset or 'other'}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _preset_row(name: str, about: Mapping[str, Any]) -> dict[str, str]:
    certified, attacked = _part(about, "certified_accuracy"), _part(about, "attacked_accuracy")
    training, evaluation = _part(about, "training"), _part(about, "evaluation")
    attacks = str(evaluation.get("attacks", "")) if attacked else ""
    if attacks and "attacked_images" in evaluation:
        attacks = f"{evaluation['attacked_images']:,} images: {attacks}"
    return {
        "name": name,
        "kind": "dynzoo",
        "system": str(about.get("system") or _system(_part(about, "recipe"))),
        "dataset": str(about.get("dataset", "")),
        "parameters": _text(about.get("parameters")),
        "extra_data": "",
        "clean": _percent(about.get("accuracy")),
        **{f"certified_{n}": _percent(certified.get(f"{n}/255")) for n in (36, 72, 108)},
        "top5": _percent(about.get("top5_accuracy")),
        "certified_top5_36": _percent(_part(about, "certified_top5_accuracy").get("36/255")),
        "smoothed_36": _percent(_part(about, "smoothed_certified_accuracy").get("36/255")),
        "attacked_36": _percent(attacked.get("36/255")),
        "attacked_0.5": _percent(attacked.get("0.5")),
        "attacks": attacks,
        "lipschitz": _text(about.get("lipschitz")),
        "audited_slope": _text(about.get("audited_slope")),
        "hardware": str(training.get("hardware", "")),
        "training_time": duration(training.get("seconds")),
        "seed": _text(training.get("seed")),
        "command": str(training.get("command", "")),
        "source": "",
    }


def _system(recipe: Mapping[str, Any]) -> str:
    """What a recipe's architecture discretises; of the five of one builder by their kind."""
    architecture = _part(recipe, "architecture")
    name, kind = (str(architecture.get(key)) for key in ("name", "kind"))
    return _KINDS.get(kind) or _SYSTEMS.get(name, "")


def _part(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping inside the metadata, empty where there is none or a text stands in its place."""
    value = about.get(key)
    return value if isinstance(value, Mapping) else {}


def _order(row: Mapping[str, str]) -> tuple[str, float, float, str]:
    numbers = [float(row[key]) if row[key] else -1.0 for key in ("certified_36", "clean")]
    return row["dataset"], -numbers[0], -numbers[1], row["name"]


def _percent(share: Any) -> str:
    return percent(share, unit="")


def _text(number: Any) -> str:
    if number is None:
        return ""
    return f"{number:.5g}" if isinstance(number, float) else str(number)


def _is_number(key: str) -> bool:
    return key in _NUMBERS or key.startswith(("certified", "attacked_", "smoothed_"))


def _plain(row: Mapping[str, str], key: str) -> str:
    value = row[key] or _MISSING
    return f"{int(value):,}" if key == "parameters" and row[key] else value


def _cell(row: Mapping[str, str], key: str) -> str:
    value = _plain(row, key).replace("|", "\\|")
    if value == _MISSING:
        return value
    if key == "command":
        value = f"`{value}`"
    if row["kind"] == "published":
        return f"*{value}*"
    return f"**{value}**" if key == "name" else value


def line(cells: Any) -> str:
    """One line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"
