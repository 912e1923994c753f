"""A run that is killed again and again, between and inside its stages, ends like one that is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es2.config import load_recipe
from es2.defences import es2 as separation
from es2.errors import Es2Error
from es2.pipeline import answering, attack, experiment, harden
from es2.pipeline import run as stages
from es2.pipeline.folder import RunFolder
from es2.pipeline.run import run
from es2.results.store import append_attempts, read_json
from small import Workplace, ending

Strike = Callable[..., Any]


class Killed(BaseException):
    """Nothing in es2 catches it, as nothing catches a kill."""


def at_call(number: int, real: Strike | None = None) -> Strike:
    """Stands in for a function until its `number`th call, which is the last thing that happens."""
    calls = itertools.count(1)

    def strike(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise Killed
        assert real is not None
        return real(*args, **kwargs)

    return strike


def half_written(number: int) -> Strike:
    """As `append_attempts`; the `number`th call is killed when half of the lines are out."""
    calls = itertools.count(1)

    def strike(folder: Path, records: list[dict[str, Any]]) -> None:
        if next(calls) < number:
            append_attempts(folder, records)
            return
        append_attempts(folder, records[: len(records) // 2])
        with (folder / "attempts.jsonl").open("ab") as file:
            file.write(b'{"defence": "es2", "kind": "att')
        raise Killed

    return strike


def note_of_the_end(self: RunFolder, **values: Any) -> None:
    """As `RunFolder.note`, but killed before it says that training has stopped."""
    if "stopped" in values:
        raise Killed
    NOTE(self, **values)


NOTE = RunFolder.note

KILLS: dict[str, tuple[Any, str, Callable[[], Strike]]] = {
    "choosing layers": (stages, "choose", lambda: at_call(1)),
    "recording the base": (separation, "record", lambda: at_call(1)),
    "the third step": (harden, "note", lambda: at_call(3, lambda *_: "")),
    "saving the adapter": (harden, "save_adapter", lambda: at_call(1)),
    "noting the end of training": (RunFolder, "note", lambda: note_of_the_end),
    "projecting embeddings": (stages, "project", lambda: at_call(2, stages.project)),
    "the base's second attack": (attack, "append_attempts", lambda: half_written(2)),
    "the defence's second attack": (attack, "append_attempts", lambda: half_written(3)),
    "harmless prompts": (answering, "append_attempts", lambda: half_written(3)),
    "drift": (stages, "drift", lambda: at_call(1)),
    "results": (stages, "write_results", lambda: at_call(1)),
    "the report": (stages, "build", lambda: at_call(1)),
}


def test_a_run_killed_in_every_stage_ends_the_same(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(place.recipe())
    whole = run(recipe, place.path / "whole")
    broken = place.path / "broken"
    for name, (where, what, strike) in KILLS.items():
        with monkeypatch.context() as patch:
            patch.setattr(where, what, strike())
            with pytest.raises(Killed):
                run(recipe, broken, resume=True)
            assert not (broken / "report.html").exists(), name
    run(recipe, broken, resume=True)
    expected = ending(whole)
    found = ending(broken)
    for part, value in expected.items():
        assert found[part] == value, part
    # Stages that were begun again are not forgotten in the time that the run took.
    assert (
        read_json(broken / "run.json")["stages"].keys()
        == read_json(whole / "run.json")["stages"].keys()
    )


def test_a_run_that_cannot_start_leaves_no_folder(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "load", at_call(1))
    with pytest.raises(Killed):
        run(load_recipe(place.recipe()), place.path / "run")
    assert not (place.path / "run").exists()


def test_a_started_run_is_refused_without_resume_or_with_other_settings(place: Workplace) -> None:
    recipe, other = load_recipe(place.recipe()), load_recipe(place.recipe("b.yaml", seed=1))
    RunFolder.open(place.path / "run", recipe, resume=False).note(started="now")
    with pytest.raises(Es2Error, match="--resume"):
        RunFolder.open(place.path / "run", recipe, resume=False)
    with pytest.raises(Es2Error, match="other settings"):
        RunFolder.open(place.path / "run", other, resume=True)
    assert RunFolder.open(place.path / "run", recipe, resume=True).record == {"started": "now"}


def test_a_run_tested_on_prompts_that_it_trains_on_is_refused_unless_forced(
    place: Workplace, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = [f"Tell me about the number {i} and all that it is good for" for i in range(40)]
    texts[30:] = texts[:10]
    file = place.path / "twice.txt"
    file.write_text("\n".join(texts))
    settings = place.settings()["data"] | {"harmless": str(file)}
    recipe = load_recipe(place.recipe(data=settings))
    prompts = stages.load_all(recipe)
    test = [prompt.text for prompt in prompts.harmless.test]
    train = [prompt.text for prompt in prompts.harmless.train]
    count = sum(text in train for text in test)
    told = f"harmless:test: {count} of 10 prompts are also in harmless:train (exact)"
    assert count > 0
    out = place.path / "run"
    with pytest.raises(Es2Error, match="--force") as refused:
        run(recipe, out)
    assert told in str(refused.value)
    assert not out.exists()
    run(recipe, out, force=True)
    assert told in capfd.readouterr().err
    assert told in read_json(out / "results.json")["notes"]
    entry = {"a": "harmless:test", "b": "harmless:train", "kind": "exact", "count": count, "of": 10}
    assert entry in read_json(out / "run.json")["overlap"]
    # It was let through once.
    assert run(recipe, out, resume=True) == out
