"""What a measurement was asked for, kept beside its records: others must not be mixed into them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.results.store import ATTEMPTS, read_json, write_json


def check_asked(path: Path, asked: Mapping[str, Any]) -> None:
    """Writes what is asked for to a file, or compares it with what the file holds.

    Raises:
        Es2Error: if something else was asked for before.
    """
    plain = json.loads(json.dumps(asked, default=str))
    if not path.is_file():
        write_json(path, plain)
    elif read_json(path) != plain:
        raise Es2Error(
            f"{path.parent} was run with other settings (see {path}); give another --out, or delete "
            "it to measure again"
        )


def check_prompts(
    records: Iterable[Mapping[str, Any]], prompts: Sequence[Prompt], kinds: Sequence[str], what: str
) -> None:
    """Compares prompts with those of the records that a measurement is to be added to.

    Fewer or more than before are no others.

    Args:
        records: of the same measurement, from before.
        prompts: that are asked for now.
        kinds: each prompt's kind in records.
        what: it is, for the message.

    Raises:
        Es2Error: if the records are of other prompts, or of the same ids with other texts or kinds.
    """
    known = {r["prompt_id"]: (r.get("prompt"), r["kind"]) for r in records}
    given = {p.id: (p.text, kind) for p, kind in zip(prompts, kinds, strict=True)}
    changed = [one for one in known.keys() & given.keys() if known[one] != given[one]]
    if changed or (known.keys() - given.keys() and given.keys() - known.keys()):
        raise Es2Error(
            f"{what}: the folder holds answers to other prompts under that name, of another file or "
            "another --limit; rename the file, or measure in a folder of its own"
        )


@contextmanager
def noted(out: Path | None, asked: Mapping[str, Any], what: str) -> Iterator[None]:
    """Keeps what was asked for in `WHAT.json`; a measurement that cannot start leaves nothing behind.

    Raises:
        Es2Error: if the folder holds attempts of another measurement.
    """
    if out is None:
        yield
        return
    path, there = out / f"{what}.json", out.exists()
    check_asked(path, asked)
    try:
        yield
    except Es2Error:
        if not any(out.rglob(ATTEMPTS)):
            path.unlink()
            if not there:
                out.rmdir()
        raise
