"""What a run prints at its end: the table and the report's path, or results.json."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from es2.report.table import table
from es2.results.store import read_results


def show(folder: Path, json: bool) -> None:
    """Prints a run's results on standard output.

    Args:
        folder: the run folder.
        json: results.json as it is, and nothing else.
    """
    if json:
        print((folder / "results.json").read_text(encoding="utf-8"))
        return
    console = Console()
    console.print(table(read_results(folder).model_dump(mode="json")))
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
