"""`es2 margin` on a tiny model, as a user types it."""

from __future__ import annotations

import json

from es2.results.margin import Margins, margins
from es2.results.store import read_attempts
from small import Workplace

SWEEP = ("--settings", "norms=[0.1, 1.0]", "min_accuracy=0.5", "max_new_tokens=3")


def flags(place: Workplace, *more: object) -> list[object]:
    adapter = place.path / "run" / "adapter"
    fit = [f"--fit.{name}={place.prompts(name)}" for name in ("harmful", "harmless")]
    aimed = ["--model", adapter, "--prompts", place.prompts("aimed"), "--limit", 3, *fit]
    return ["margin", *aimed, *SWEEP, *more]


def test_an_adapter_is_swept_beside_its_base(finished: Workplace, tmp_path: object) -> None:
    out = finished.path / "margin"
    done = finished(*flags(finished, "--out", out, "--json"))
    assert done.code == 0, done.err
    found = Margins.model_validate(json.loads(done.out))
    assert found == Margins.model_validate_json((out / "margin.json").read_text())
    assert found == margins(read_attempts(out / "margin"))
    assert list(found.models) == ["base", "defended"]
    page = (out / "margin.html").read_text(encoding="utf-8")
    assert page.count('<svg class="panel"') == 4 and "://" not in page
    for directions in found.models.values():
        assert list(directions) == ["any", "scav", "repe", "random"]
        for swept in directions.values():
            assert [push.norm for push in swept.pushes] == [0.0, 0.1, 1.0]
            assert {push.complied_by.n for push in swept.pushes} == {3}


def test_a_sweep_goes_on_only_as_it_was_begun(finished: Workplace) -> None:
    out = finished.path / "again"
    first = finished(*flags(finished, "--out", out, "--json"))
    assert first.code == 0, first.err
    assert "--resume" in finished(*flags(finished, "--out", out)).complaint
    before = (out / "margin" / "attempts.jsonl").read_bytes()
    again = finished(*flags(finished, "--out", out, "--resume", "--json"))
    assert again.out == first.out
    assert (out / "margin" / "attempts.jsonl").read_bytes() == before
    other = finished(*flags(finished, "--out", out, "--resume", "--seed", 1))
    assert "other settings" in other.complaint


def test_without_an_out_the_table_is_all_that_is_left(finished: Workplace) -> None:
    done = finished(*flags(finished))
    assert done.code == 0, done.err
    for word in ("SCAV", "RepE", "random", "half complied", "half incoherent", "margin"):
        assert word in done.out


def test_prompts_that_were_trained_on_are_refused(finished: Workplace) -> None:
    asked = flags(finished)
    asked[asked.index(finished.prompts("aimed"))] = finished.prompts("harmful")
    assert "--force" in finished(*asked).complaint
