"""What the command prints, by rich, for which help and errors do not wait."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Where no terminal says how wide it is (a file, a pipe), tables are not squeezed to 80 columns.
_WIDTH = 140


def console() -> Console:
    """A console on the present standard output."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def say(text: str = "", style: str | None = None) -> None:
    """A line, never wrapped: a path must stay whole."""
    from rich.markup import escape

    console().print(escape(text), style=style, soft_wrap=True)


def log_line(line: str) -> None:
    """A line as it is, written at once: who reads a file or a pipe sees how far a run is."""
    print(line, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table whose first column is left and whose other columns are right aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for i, name in enumerate(header):
        result.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        result.add_row(*(escape(cell) for cell in row))
    console().print(result)


def pairs(values: Mapping[str, Any], title: str | None = None) -> None:
    """Names and values, without those that are unknown."""
    from rich.markup import escape
    from rich.table import Table

    result = Table(title=title, title_justify="left", box=None, show_header=False)
    result.add_column(style="bold", no_wrap=True)
    result.add_column(overflow="fold")
    for name, value in values.items():
        if value not in (None, "", {}, []):
            result.add_row(escape(name), escape(str(value)))
    console().print(result)


def percent(share: float | None) -> str:
    """A share in [0, 1] for people; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.2f} %"


@contextmanager
def progress(text: str, total: int) -> Iterator[Any]:
    """A progress bar on a terminal; gives a function to call with the number of items done."""
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    bar = Progress(
        TextColumn(escape(text)),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(),
        transient=True,
        disable=not sys.stdout.isatty(),
    )
    with bar:
        task = bar.add_task(text, total=total)

        def tick(count: int) -> None:
            bar.advance(task, count)
            if bar.finished:
                bar.stop()  # what follows within the block has the line for itself

        yield tick
