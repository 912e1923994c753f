"""Pages that stand alone: everything that comes from a run is escaped, nothing is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from es2.errors import Es2Error


def environment() -> Environment:
    """Where templates are found."""
    return Environment(
        loader=PackageLoader("es2.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, page: str) -> None:
    """Writes a page whole or not at all.

    Raises:
        Es2Error: if it cannot be written.
    """
    draft = path.with_name(f"{path.name}.tmp")
    try:
        # A lone half of a surrogate pair, which a completion may hold, has no UTF-8 form.
        draft.write_bytes(page.encode("utf-8", errors="replace"))
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise Es2Error(
            f"{path}: cannot be written ({error.strerror}); make the folder writable and its disk "
            "free, then try again"
        ) from None
