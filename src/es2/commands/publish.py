"""`es2 publish`: a copy of a run that can be given away, without prompts and answers."""

from __future__ import annotations

from pathlib import Path

import tyro

from es2.pipeline.publish import publish as publish_run


def publish(run: Path, out: Path) -> None:
    """Copies a run's rates, verdicts and settings; in place of every answer stands its hash.

    Args:
        run: the folder of a run or a comparison, such as runs/demo.
        out: the folder to write.
    """
    print(publish_run(run, out))


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(publish, args=argv, prog="es2 publish")
