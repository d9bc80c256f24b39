"""Writes the README's table of results from `pretrained/*/metadata.json`.

    python docs/make_tables.py           rewrites README.md
    python docs/make_tables.py --check   exits with 1 if README.md is not up to date

The numbers themselves come from `dynzoo evaluate PRESET --update-card`. Needs Python alone.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- results: made by docs/make_tables.py -->"
END = "<!-- end of results -->"


def results_table(presets: list[dict]) -> str:
    """The table in Markdown, a row a preset."""
    if not presets:
        return "No presets are committed."
    radii = sorted(
        {radius for about in presets for radius in about.get("certified_accuracy", {})},
        key=Fraction,
    )
    header = ["preset", "data set", "parameters", "clean"]
    header += [f"certified {radius}" for radius in radii]
    header += [f"attacked {radius}" for radius in radii[:1]]
    header += ["trained on", "training time"]
    lines = [_row(header), _row(["---", "---", *["---:"] * (len(header) - 4), "---", "---:"])]
    for about in presets:
        certified = about.get("certified_accuracy", {})
        attacked = about.get("attacked_accuracy", {})
        training = about.get("training", {})
        cells = [
            f"[{about['name']}](pretrained/{about['name']}/README.md)",
            str(about.get("dataset", "")),
            f"{about['parameters']:,}",
            _percent(about.get("accuracy")),
        ]
        cells += [_percent(certified.get(radius)) for radius in radii]
        cells += [_percent(attacked.get(radius)) for radius in radii[:1]]
        cells += [str(training.get("hardware", "")), _duration(training.get("seconds"))]
        lines.append(_row(cells))
    return "\n".join([*lines, "", *map(_note, presets)])


def updated(readme: str, presets: list[dict]) -> str:
    """The README with the present table between its markers.

    Raises:
        ValueError: if the markers are not there, once each and in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before + after:
        raise ValueError(f"README.md must hold {BEGIN!r} and {END!r}, once each and in this order")
    return f"{before}{BEGIN}\n{results_table(presets)}\n{END}{after}"


def read_presets(root: Path = ROOT) -> list[dict]:
    """Metadata of the committed presets, by name."""
    files = sorted((root / "pretrained").glob("*/metadata.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def main() -> int:
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    new = updated(readme, read_presets())
    if "--check" in sys.argv[1:]:
        if new != readme:
            print("README.md is not up to date: run python docs/make_tables.py", file=sys.stderr)
        return int(new != readme)
    path.write_text(new, encoding="utf-8")
    return 0


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _note(about: dict) -> str:
    how = about.get("evaluation", {})
    parts = []
    if "images" in how:
        parts.append(f"{how['images']:,} test images certified")
    if "attacked_images" in how:
        parts.append(f"the first {how['attacked_images']:,} attacked ({how.get('attacks', '')})")
    text = ", ".join(parts) or "not evaluated yet"
    command = f"; `{how['command']}`" if "command" in how else ""
    return f"* {about['name']}: {text}{command}."


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    sys.exit(main())
