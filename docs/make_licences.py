"""Writes docs/licences.md: the licence of every package that dynzoo or one of its extras brings.

    python docs/make_licences.py     # where all extras are installed

What is needed is followed from pyproject.toml through the metadata of the installed packages, for
this machine's Python and system.
"""

import importlib.metadata as metadata
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
CORE = "(core)"
TOOLS = ("test", "docs", "notebooks")  # used for work on dynzoo, not by it
SHORT = {
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "ISC license": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
HEAD = """# Licences

dynzoo is under the [MIT licence](../LICENSE). The digits in `dynzoo/data/digits.npz` are of
E. Alpaydin and C. Kaynak (Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998, doi 10.24432/C50P49, CC BY 4.0), made by `scripts/make_digits.py`.

What pip installs beside it, each with the licence that its own metadata state, by
`python docs/make_licences.py` on Linux with Python 3.11 and the CPU build of PyTorch; the default
build for Linux brings NVIDIA's libraries, under NVIDIA's terms. What the core brings is listed
under the core alone, what `test`, `docs` or `notebooks` bring only where no other extra does.

| package | release | licence | for |
| --- | --- | --- | --- |
"""


def requirements() -> dict[str, list[str]]:
    """What pyproject.toml asks for: group -> requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    groups = {CORE: project["dependencies"], **optional}
    del groups["peers"]  # measured beside dynzoo, never brought by it
    own = {
        name: [r for r in lines if not r.startswith("dynzoo[")] for name, lines in groups.items()
    }
    return {name: lines for name, lines in own.items() if lines}


def needed(lines: Iterable[str]) -> set[str]:
    """Names of all packages that these requirements bring, with what those bring in turn."""
    found: set[tuple[str, str]] = set()
    left = [Requirement(line) for line in lines]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in found:
                continue
            found.add((name, extra))
            for line in metadata.requires(name) or []:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    left.append(inner)
    return {name for name, _ in found}


def licence(name: str) -> str:
    """As the package states it: an expression, a classifier, or a line of text."""
    about = metadata.metadata(name)
    kinds = [
        c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if "License ::" in c
    ]
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    text = (about.get("License") or "").strip().removeprefix("UNKNOWN")
    one_line = text if text and "\n" not in text and len(text) < 60 else ""
    said = about.get("License-Expression") or one_line or ", ".join(kinds)
    if not said and text:  # the whole of it: its first line names it
        said = text.splitlines()[0].strip()
    return SHORT.get(said, said) or "not stated"


def table() -> str:
    groups = {group: needed(lines) for group, lines in requirements().items()}
    core = groups.pop(CORE)
    uses: dict[str, list[str]] = {name: [CORE] for name in core}
    used = {name for group, names in groups.items() if group not in TOOLS for name in names}
    for group, names in groups.items():
        for name in names - core:
            if group not in TOOLS or name not in used:
                uses.setdefault(name, []).append(group)
    rows = [
        f"| {name} | {metadata.version(name)} | {licence(name)} | {', '.join(uses[name])} |"
        for name in sorted(uses)
    ]
    return "\n".join(rows) + "\n"


def packages(page: str) -> dict[str, str]:
    """Package -> licence of each row of the page."""
    rows = re.findall(r"^\| ([\w.-]+) \| [^|]+ \| ([^|]+) \| [^|]+ \|$", page, flags=re.MULTILINE)
    return dict(rows)


if __name__ == "__main__":
    PAGE.write_text(HEAD + table(), encoding="utf-8")
    print(PAGE)
