"""Fixtures that all tests share: tiny models of every family, and the embedded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import strict  # noqa: F401  (first: it checks what es2 does)
from es2.models.loading import ChatModel, load
from invented import task_folder
from tiny import FAMILIES, make_chat


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The saved folder of a family's tiny model."""

    @cache
    def folder(family: str) -> Path:
        target = tmp_path_factory.mktemp(family)
        made = make_chat(family)
        made.inner.save_pretrained(target)
        made.tokenizer.save_pretrained(target)
        return target

    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[[str], Path]) -> Callable[[str], ChatModel]:
    """A fresh tiny model of a family, loaded from disk; a test may change it."""
    return lambda family: load(str(tiny_folder(family)), device="cpu")


@pytest.fixture(scope="session")
def shared(tiny: Callable[[str], ChatModel]) -> Callable[[str], ChatModel]:
    """The tiny model of a family that all tests share; to be left as it is."""
    return cache(tiny)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family in turn."""
    return str(request.param)


@pytest.fixture
def chat(shared: Callable[[str], ChatModel], family: str) -> ChatModel:
    """The shared tiny model of every family in turn; to be left as it is."""
    return shared(family)


@pytest.fixture
def own_chat(tiny: Callable[[str], ChatModel], family: str) -> ChatModel:
    """A fresh tiny model of every family in turn."""
    return tiny(family)


@pytest.fixture(scope="session")
def embedded() -> ChatModel:
    """The aligned embedded model (made on first use); for tests marked `embedded`."""
    return load("smollm2-aligned", device="cpu")


@pytest.fixture(scope="session")
def harness_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tasks in the harness's YAML; what datasets makes of their files is kept beside them."""
    import datasets

    place = tmp_path_factory.mktemp("harness")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
        yield task_folder(place / "tasks")
