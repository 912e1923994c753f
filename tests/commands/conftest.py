"""The command line on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from small import Workplace, make_workplace


@pytest.fixture
def es2(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Workplace:
    """`es2("layers", "--model", es2.model)` runs that command and returns what it left."""
    return make_workplace(tmp_path, tiny_folder("llama"))


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]
) -> Workplace:
    """A workplace with a finished `es2 run` in `run`; to be left as it is."""
    place = make_workplace(tmp_path_factory.mktemp("finished"), tiny_folder("llama"))
    done = place("run", place.recipe(), "--out", place.path / "run")
    assert done.code == 0, done.err
    return place
