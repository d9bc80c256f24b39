"""What a build does that pyproject.toml cannot say: which weights go into a wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

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
