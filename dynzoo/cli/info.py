"""`dynzoo info`: what the metadata of a preset say. Needs no Keras."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from dynzoo.cli.console import pairs, percent, say
from dynzoo.cli.inputs import find_preset
from dynzoo.cli.options import add_preset
from dynzoo.zoo import downloads, shipped
from dynzoo.zoo.cards import usage

NAME = "info"
HELP = "say what is known of a preset"


def add_arguments(parser: ArgumentParser) -> None:
    add_preset(parser)


def run(options: Namespace) -> None:
    folder, about = find_preset(options.preset)
    shape = about.get("input_shape") or []
    trained = about.get("training") if isinstance(about.get("training"), dict) else {}
    pairs(
        {
            "preset": about.get("name"),
            "description": about.get("description"),
            "data set": about.get("dataset"),
            "input": " x ".join(map(str, shape)) + " in [0, 1]" if shape else None,
            "classes": about.get("num_classes"),
            "parameters": f"{about['parameters']:,}" if "parameters" in about else None,
            "Lipschitz bound": about.get("lipschitz"),
            "accuracy": percent(about["accuracy"]) if "accuracy" in about else None,
            "certified": _by_radius(about.get("certified_accuracy")),
            "top-5": percent(about["top5_accuracy"]) if "top5_accuracy" in about else None,
            "certified top-5": _by_radius(about.get("certified_top5_accuracy")),
            "attacked": _by_radius(about.get("attacked_accuracy")),
            "evaluation": _listed(about.get("evaluation")),
            "training": _listed(trained),
            "folder": folder,
            "files": ", ".join(about["files"]),
            "to be fetched": _elsewhere(folder, about),
        }
    )
    say("\nUse it:\n")
    for line in usage(options.preset, about):
        say(f"    {line}" if line else "")


def _elsewhere(folder: Path, about: dict[str, Any]) -> str:
    """Files of a preset that ships which did not come with it."""
    absent = downloads.missing(folder, about) if folder in shipped.folders().values() else []
    return f"{', '.join(absent)}, from where DYNZOO_WEIGHTS says" if absent else ""


def _by_radius(values: dict[str, float] | None) -> str:
    return ", ".join(f"{percent(share)} at {radius}" for radius, share in (values or {}).items())


def _listed(values: dict[str, Any] | None) -> str:
    return "\n".join(f"{key}: {value}" for key, value in (values or {}).items() if value)
