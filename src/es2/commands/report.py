"""`es2 report`: write a run's HTML report again from its folder."""

from __future__ import annotations

from pathlib import Path

import tyro

from es2.report.build import build


def report(run: Path) -> None:
    """Writes report.html from the files of a run folder.

    Args:
        run: the run's folder, such as runs/demo.
    """
    print(build(run))


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(report, args=argv, prog="es2 report")
