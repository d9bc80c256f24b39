"""`dynzoo --print-completion SHELL`: what a shell needs to complete the command, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from dynzoo.data.sources import NAMES
from dynzoo.training import recipe_files
from dynzoo.utils.extras import extra
from dynzoo.zoo import shipped

__all__ = ["SHELLS", "script"]

SHELLS = ("bash", "zsh", "fish", "tcsh")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion of a command as a script, with the names that are known now.

    What stands in the place of a file or a folder is told by the metavar.

    Args:
        parser: of the command; it is of no other use afterwards.
        shell: one of ``SHELLS``.

    Raises:
        ImportError: without shtab.
    """
    with extra("completion"):
        import shtab

    paths = {"FILE": shtab.FILE, "PATH": shtab.FILE, "IMAGE": shtab.FILE, "REPORT.json": shtab.FILE}
    paths |= {"DIR": shtab.DIRECTORY, "FOLDER": shtab.DIRECTORY}
    for command, action in _actions(parser):
        if action.metavar in paths:
            action.complete = paths[action.metavar]
        elif names := _names(command, action):
            action.choices = names
    return str(shtab.complete(parser, shell))


def _names(command: str, action: argparse.Action) -> list[str]:
    """What an argument may be, beside a path of the user's."""
    if action.metavar == "PRESET":
        return list(shipped.folders())
    if action.metavar == "CONFIG":
        return sorted(recipe_files.names("search" if command == "search" else ""))
    return list(NAMES) if action.dest == "dataset" else []


def _actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, Any]]:
    """(command, argument) of all commands; of the program itself under an empty name."""
    for action in parser._actions:
        yield "", action
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from ((name, part) for part in command._actions)
