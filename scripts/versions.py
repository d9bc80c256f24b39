"""Tries releases of Keras, its backends and NumPy with dynzoo, and writes docs/versions.md.

    python scripts/versions.py try jax==0.7.2       # an environment, the smoke tests, a line
    python scripts/versions.py try jax==0.7.2 numpy==2.0.2
    python scripts/versions.py table                # docs/versions.md from the lines

`try` makes an empty environment in a temporary folder, installs this checkout with what is named,
and runs some of the tests on the backend that is among it. What came of it is a line of
docs/results/versions.csv, in place of an earlier one of the same releases.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "versions.csv"
PAGE = ROOT / "docs" / "versions.md"
COLUMNS = ("asked", "backend", "keras", "release", "numpy", "python", "outcome")
BACKENDS = ("jax", "tensorflow", "torch")
# After what a first user does (scripts/smoke.py): layers and norms, losses, optimizers under fit.
TESTS = ("tests/layers/test_linear_layers.py", "tests/test_losses.py", "tests/test_optimizers.py")
NEEDED = ("pytest", "hypothesis")
SECONDS = 1500


def attempt(pins: list[str]) -> dict[str, str]:
    """One environment, and what came of it."""
    backend = next(name for name in BACKENDS if any(pin.startswith(f"{name}==") for pin in pins))
    asked = [*pins, *(f"jaxlib=={pin[5:]}" for pin in pins if pin.startswith("jax=="))]
    row = dict.fromkeys(COLUMNS, "")
    row |= {"asked": " ".join(pins), "backend": backend, "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "env"
        subprocess.run([sys.executable, "-m", "venv", made], check=True)
        python = made / "bin" / "python"
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = _run([*install, *asked, *NEEDED, "-e", str(ROOT)])
        if done.returncode:
            errors = [line[7:] for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            row["outcome"] = f"cannot be installed: {(errors or ['?'])[0][:160]}"
            return row
        names = ("keras", backend, "numpy")
        code = f"import importlib.metadata as m; print(*map(m.version, {names}))"
        found = _run([python, "-c", code]).stdout.split()
        row |= dict(zip(("keras", "release", "numpy"), found, strict=True))
        row["outcome"] = _outcome(python, backend)
    return row


def _outcome(python: Path, backend: str) -> str:
    smoke = [python, str(ROOT / "scripts" / "smoke.py"), backend]
    # what a release warns of is no failure here
    tests = [python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", *TESTS]
    for command in (smoke, tests):
        done = _run(command, backend)
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
        said = [line for line in f"{done.stderr}\n{done.stdout}".splitlines() if line.strip()]
        if done.returncode:
            wrong = [line for line in said if "Error" in line]
            return f"fails: {(wrong or said or ['?'])[-1].strip()[:160]}"
    return f"works: {said[-1].strip('= ').partition(' in ')[0]}"


def _run(command: list[Any], backend: str = "") -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"KERAS_BACKEND": backend} if backend else {}
    try:
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"Error: not done within {SECONDS} s")


def record(row: dict[str, str]) -> None:
    """The line into the file, in place of an earlier one of the same releases."""
    rows = [old for old in read() if old["asked"] != row["asked"]]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*rows, row], key=_order))


def read() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _order(row: dict[str, str]) -> tuple[Any, ...]:
    """Backend by backend, the oldest release first."""
    asked = re.findall(r"\d+", row["asked"].partition("==")[2].partition(" ")[0])
    return row["backend"], [int(part) for part in asked], row["asked"]


def updated(page: str, rows: list[dict[str, str]]) -> str:
    """The page with a table of these lines between its two marks."""
    columns = ("asked", "keras", "release", "numpy", "outcome")
    table = "\n".join("| " + " | ".join(row[name] for name in columns) + " |" for row in rows)
    head = "| asked for | Keras | backend | NumPy | outcome |\n| --- | --- | --- | --- | --- |"
    before, first, rest = page.partition("<!-- tried -->\n")
    _, last, after = rest.partition("<!-- end of tried -->")
    return f"{before}{first}{head}\n{table}\n{last}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    tried = commands.add_parser("try", help="make an environment, run the tests, keep the line")
    tried.add_argument("pins", nargs="+", metavar="NAME==RELEASE")
    commands.add_parser("table", help="write docs/versions.md")
    options = parser.parse_args()
    if options.command == "try":
        row = attempt(options.pins)
        record(row)
        print(*row.values(), sep=" | ", flush=True)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(updated(page, read()), encoding="utf-8")


if __name__ == "__main__":
    main()
