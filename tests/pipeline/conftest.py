"""A workplace for whole runs on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from small import Workplace, make_workplace


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Workplace:
    """A folder with prompt files and recipes."""
    return make_workplace(tmp_path, tiny_folder("llama"))
