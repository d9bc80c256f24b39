"""What a search leaves in its folder: a record a trial, their table, and the best recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dynzoo.tuning.config import SearchConfig
from dynzoo.utils import strict_json
from dynzoo.utils.csv_text import csv_text
from dynzoo.utils.files import write_atomically
from dynzoo.utils.formatting import duration, eps_text, percent
from dynzoo.utils.strict_json import short

__all__ = [
    "COMPLETED",
    "FAILED",
    "UNSEEN",
    "SearchResult",
    "blank",
    "collect",
    "number",
    "outcome",
    "read_record",
    "write_record",
    "write_table",
]

COMPLETED, FAILED = "completed", "failed"
# Completed by a worker, but its record is not seen yet: network file systems take their time.
UNSEEN = "unseen"
# Columns of the table after those of the space.
_MEASURED = ("parameters", "epochs", "clean", "certified", "attacked", "seconds")


@dataclass
class SearchResult:
    """The trials of a search so far, and where they are.

    Attributes:
        folder: output folder of the search.
        objective: ``"certified"``, ``"attacked"`` or ``"clean"``.
        trials: a mapping a trial: ``trial``, ``status``, ``values`` by key of the recipe,
            ``parameters``, ``clean``, ``certified``, ``attacked`` (shares in [0, 1] of the held-out
            images, ``None`` where not measured), ``epochs``, ``seconds``, ``reason``, ``worker``.

    Example:

    >>> from pathlib import Path
    >>> from dynzoo.tuning import SearchResult
    >>> trial = {"trial": "0", "status": "completed", "certified": 0.5}
    >>> SearchResult(Path("runs/digits_search"), "certified", [trial]).best["certified"]
    0.5
    """

    folder: Path
    objective: str
    trials: list[dict[str, Any]]

    @property
    def completed(self) -> list[dict[str, Any]]:
        return [t for t in self.trials if t["status"] == COMPLETED]

    @property
    def best(self) -> dict[str, Any] | None:
        """The trial with the best objective, the first among equals; ``None`` if there is none."""
        return max(self.completed, key=lambda t: t[self.objective], default=None)

    @property
    def best_recipe(self) -> Path:
        """The file that ``dynzoo train`` takes."""
        return self.folder / "best.yaml"


def read_record(folder: Path) -> dict[str, Any] | None:
    """What was recorded of a finished trial, or ``None``.

    Raises:
        ValueError: naming the file, if it is damaged or the record of something else.
    """
    path = folder / "result.json"
    try:
        record = strict_json.read(path)
        if not isinstance(record, dict):
            raise ValueError("it is no mapping")
        lacking = [key for key in ("trial", "status", "values") if key not in record]
        if lacking or not isinstance(record["values"], dict):
            raise ValueError(f"it lacks {', '.join(lacking) or 'values'}")
        for key in _MEASURED:
            if not _is_measured(record.get(key)):
                raise ValueError(f"{key} is {short(repr(record[key]), 60)}, not a number >= 0")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or no record of a trial ({short(error)}): delete it, and the "
            "trial runs again"
        ) from None
    return record


def _is_measured(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (number and value >= 0)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Records a finished trial, atomically: what is recorded is never run again."""
    write_atomically(folder / "result.json", json.dumps(record, indent=1).encode())


def write_table(config: SearchConfig, result: SearchResult) -> None:
    """Writes ``trials.csv``, and ``best.yaml`` as soon as there is a best trial."""
    keys = [d.key for d in config.space]
    columns = ["trial", "status", *keys, *_MEASURED, "worker", "reason"]
    rows = [
        {**trial, **{k: _cell(v) for k, v in trial["values"].items()}} for trial in result.trials
    ]
    text = csv_text(columns, [{name: row[name] for name in columns} for row in rows])
    write_atomically(result.folder / "trials.csv", text.encode())
    if result.best is not None:
        write_atomically(result.best_recipe, _best_yaml(config, result.best, result).encode())


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _best_yaml(config: SearchConfig, best: dict[str, Any], result: SearchResult) -> str:
    """A complete recipe; the radii are written as fractions, as in recipes made by hand."""
    recipe = config.recipe_of(best["values"])
    recipe["name"] += "_best"
    evaluation = recipe["evaluation"]
    evaluation["eps"] = [eps_text(e) for e in evaluation["eps"]]
    measured = ", ".join(
        f"{name} {percent(best[name])}"
        for name in ("clean", "certified", "attacked")
        if best[name] is not None
    )
    head = (
        f"# Trial {number(best)}, the best of {len(result.completed)} that were completed, on "
        f"held-out images at {config.radius}:\n# {measured}; {best['parameters']:,} parameters.\n"
        "#   dynzoo train best.yaml\n"
    )
    return head + yaml.safe_dump(recipe, sort_keys=False, width=100)


def collect(trials: Sequence[Any], folder: Path, config: SearchConfig) -> list[dict[str, Any]]:
    """A row a trial of the oracle's, in the order in which they began.

    Args:
        trials: trials of keras-tuner's.
        folder: output folder of the search.
        config: the search.
    """
    rows = []
    for trial in trials:
        record = read_record(folder / "trials" / trial.trial_id)
        values = config.values(trial.hyperparameters.values)
        if record is None or record["values"] != values or trial.status == "RUNNING":
            record = blank(trial.trial_id, values, status=trial.status.lower())
            record["reason"] = trial.message or ""
            if record["status"] == COMPLETED:
                record |= {"status": UNSEEN, "reason": "its worker's record is not here yet"}
        rows.append(record)
    return rows


def blank(trial_id: str, values: dict[str, Any], **known: Any) -> dict[str, Any]:
    """The record of a trial of which nothing is measured."""
    unknown = dict.fromkeys(_MEASURED)
    return {
        "trial": trial_id,
        "status": FAILED,
        "values": values,
        **unknown,
        "worker": "",
        "reason": "",
        **known,
    }


def number(record: dict[str, Any]) -> str:
    """What a trial is called: they count from 0, and end in another order."""
    return f"no. {int(record['trial'])}"


def outcome(record: dict[str, Any], objective: str) -> str:
    """A record in a line."""
    if record[objective] is None:
        return f"skipped, {record['reason'] or record['status']}"
    parts = [
        f"{name} {percent(record[name])}"
        for name in ("certified", "attacked", "clean")
        if record[name] is not None
    ]
    parts += [f"{record['parameters']:,} parameters", duration(record["seconds"])]
    return ", ".join(parts) + (f" ({record['reason']})" if record["reason"] else "")
