"""Writes the README's table of results and the leaderboard from `pretrained/*/metadata.json`.

    python docs/make_tables.py           rewrites README.md, docs/leaderboard.md and
                                         docs/results/leaderboard.csv
    python docs/make_tables.py --check   exits with 1 if one of them is not up to date

The numbers themselves come from `dynzoo evaluate PRESET --update-card`; those of published models,
with their sources, from `dynzoo/published_results.csv`.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

from dynzoo import leaderboard
from dynzoo.leaderboard import duration, line

ROOT = Path(__file__).resolve().parents[1]
LEADERBOARD = """# Leaderboard

Made by `python docs/make_tables.py` from the metadata of the presets; the same rows are in
[results/leaderboard.csv](results/leaderboard.csv), and `dynzoo list --leaderboard` shows them.

Accuracies in percent. Certified: the share of the test images that are answered right and that no
change of at most that L2 size (pixels in [0, 1]) turns wrong. Attacked: what is left after the
attacks that are named, an upper bound of the truth. Models in *italics* are published ones, as
their sources state them: nothing of theirs was measured here, and their budgets differ widely.
A dash: not known.

"""
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
    lines = [line(header), line(["---", "---", *["---:"] * (len(header) - 4), "---", "---:"])]
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
        cells += [str(training.get("hardware", "")), duration(training.get("seconds"))]
        lines.append(line(cells))
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


def made(root: Path = ROOT) -> dict[str, str]:
    """Text of every file that this script makes, by its path below the root."""
    presets = read_presets(root)
    rows = leaderboard.leaderboard({about["name"]: about for about in presets})
    return {
        "README.md": updated((root / "README.md").read_text(encoding="utf-8"), presets),
        "docs/leaderboard.md": LEADERBOARD + leaderboard.to_markdown(rows),
        "docs/results/leaderboard.csv": leaderboard.to_csv(rows),
    }


def stale(root: Path = ROOT) -> list[str]:
    """Which of these files are not what would be written now."""
    return [
        name
        for name, text in made(root).items()
        if not (root / name).is_file() or (root / name).read_bytes() != text.encode()
    ]


def main() -> int:
    if "--check" in sys.argv[1:]:
        old = stale()
        if old:
            print(
                f"{', '.join(old)}: not up to date, run python docs/make_tables.py",
                file=sys.stderr,
            )
        return int(bool(old))
    for name, text in made().items():
        (ROOT / name).write_bytes(text.encode())
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
