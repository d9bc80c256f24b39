"""What a build does that pyproject.toml cannot say: weights of a wheel, links of the README.

DYNZOO_README_BASE=https://example.org/owner/dynzoo/blob/main python -m build
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PRESETS, RECIPES = "pretrained", "zoo_configs"


class WheelHook(BuildHookInterface):
    """Recipes and presets go into the package; of weights those that `weights` names alone.

    What is left out is fetched when it is asked for: `dynzoo/zoo/downloads.py`.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # which runs in the checkout, where everything is
            return
        root, named = Path(self.root), self.config["weights"]
        if unknown := sorted(n for n in named if not (root / PRESETS / n).is_dir()):
            raise ValueError(f"pyproject.toml names weights of unknown presets: {unknown}")
        included = build_data["force_include"]
        included[str(root / RECIPES)] = f"dynzoo/_{RECIPES}"
        for file in sorted((root / PRESETS).rglob("*")):
            name = file.relative_to(root / PRESETS)
            if file.is_file() and (file.suffix != ".h5" or name.parts[0] in named):
                included[str(file)] = f"dynzoo/_{PRESETS}/{name.as_posix()}"


class ReadmeHook(MetadataHookInterface):
    """The long description: README.md, whose links lead into the repository.

    A page elsewhere, as that of a package index, has no repository around it: with the address of
    a version in `DYNZOO_README_BASE` the links begin with it. Without one they stay as they are.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        base = os.environ.get("DYNZOO_README_BASE", "").strip()
        if base and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", base):
            raise ValueError(f"`DYNZOO_README_BASE` must be an http(s) address. Received: {base}")
        text = absolute_links(text, base) if base else text
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


_FENCED = re.compile(r"(^```.*?^```$)", flags=re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)(\[[^\[\]]*\])\((?![a-zA-Z][\w+.-]*:|#|/)([^()\s]+)\)")


def absolute_links(text: str, base: str) -> str:
    """Markdown whose relative links begin with a base; pictures with that of the files themselves.

    On the usual hosts a page about a file has `/blob/` in its address, and the file `/raw/`.
    """
    pages = base.rstrip("/")
    files = pages.replace("/blob/", "/raw/")

    def absolute(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        return f"{mark}{label}({files if mark else pages}/{target})"

    parts = _FENCED.split(text)
    parts[::2] = [_LINK.sub(absolute, part) for part in parts[::2]]
    return "".join(parts)
