"""A registry knows what is decorated and what installed packages bring."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from es2.errors import Es2Error
from es2.registry import Registry


@dataclass(frozen=True)
class Own:
    name: ClassVar[str] = "own"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A package with an entry point, as pip would leave it."""
    (folder / "theirs.py").write_text("class Theirs:\n    name = 'theirs'\n")
    (folder / "own_again.py").write_text("class Again:\n    name = 'own'\n")
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[es2.tests]\ntheirs = {value}\n")
    monkeypatch.syspath_prepend(str(folder))
    for name in ("theirs", "own_again"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def registry() -> Registry[type]:
    made: Registry[type] = Registry("thing", "es2.tests")
    made.register(Own)
    return made


def test_a_decorated_class_is_known_by_its_name_and_only_once() -> None:
    known = registry()
    assert dict(known) == {"own": Own}
    assert known.register(Own) is Own
    assert "other" not in known
    with pytest.raises(Es2Error, match="unknown thing 'other'; there are own"):
        known.find("other")


def test_an_installed_package_brings_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "theirs:Theirs")
    known = registry()
    assert known.find("theirs").__module__ == "theirs"
    assert sorted(known) == ["own", "theirs"] and len(known) == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [("theirs:Missing", "cannot be loaded"), ("own_again:Again", "two things are called 'own'")],
)
def test_a_package_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    install(tmp_path, monkeypatch, value)
    with pytest.raises(Es2Error, match=words):
        list(registry())
