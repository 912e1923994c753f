"""Where progress goes, standard error, and where results go, standard output."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)

_ROOM = 200
"""Columns of what is not a terminal: a table in a file keeps its words whole."""


def output(highlight: bool = False) -> Console:
    """Standard output, for results.

    Args:
        highlight: numbers in the text are coloured.
    """
    terminal = Console(highlight=highlight)
    if terminal.is_terminal or "COLUMNS" in os.environ:
        return terminal
    return Console(highlight=highlight, width=_ROOM)


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar; the yielded function advances it and may set a text beside it.

    Without a terminal, one line says when the work starts and one when it ends.
    """
    if not console.is_terminal:
        console.print(f"{description} ...", highlight=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as p:
        task = p.add_task(description, total=total, note="")

        def advance(count: int = 1, note: str | None = None) -> None:
            p.update(task, advance=count)
            if note is not None:
                p.update(task, note=note)

        yield advance
