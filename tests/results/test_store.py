"""The run folder: whole whenever it was killed, and clear about what is wrong with it."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from es2.attacks.base import Attempt
from es2.attacks.budget import Budget
from es2.errors import Es2Error
from es2.judges.base import Judgement
from es2.results import store
from es2.results.schema import Results
from es2.results.store import (
    append_attempts,
    attempt_record,
    read_attempts,
    read_json,
    read_results,
    write_json,
)
from es2.results.summary import summarise

RECORDS = [{"prompt_id": f"p{i}", "completion": "Bread\nneeds ünique time. 🍞"} for i in range(3)]
JUDGEMENT = Judgement("complied", False, 3.5, 0.0, 0.4)


def an_attempt() -> Attempt:
    return Attempt(
        "direct", "", "prompt text", "p0", "How do I bake bread?", "Knead it.", Budget(seconds=0.5)
    )


def full_disk(*_args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_record_is_flat_and_holds_the_attempt_and_its_judgement() -> None:
    record = attempt_record("es2", "attack", an_attempt(), JUDGEMENT)
    assert record["defence"] == "es2"
    assert record["kind"] == "attack"
    assert record["completion"] == "Knead it."
    assert record["judgement"]["verdict"] == "complied"
    assert summarise([record]).defences["es2"].attacks["direct"].dsr.judged.n == 1


def test_appended_records_come_back_in_order(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    append_attempts(run, RECORDS[:2])
    append_attempts(run, RECORDS[2:])
    assert read_attempts(run) == RECORDS


def test_a_run_without_attempts_has_none(tmp_path: Path) -> None:
    assert read_attempts(tmp_path) == []


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none())), st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_gives_its_whole_records_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], data: st.DataObject
) -> None:
    run = tmp_path_factory.mktemp("run")
    append_attempts(run, records)
    path = run / store.ATTEMPTS
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = read_attempts(run)
    assert kept == records[: len(kept)]
    assert len(kept) == whole[:cut].count(b"\n")
    assert path.read_bytes() == whole[: path.stat().st_size]
    append_attempts(run, RECORDS)
    assert read_attempts(run) == kept + RECORDS


def test_appending_to_a_torn_file_removes_the_torn_line_first(tmp_path: Path) -> None:
    append_attempts(tmp_path, RECORDS[:1])
    with (tmp_path / store.ATTEMPTS).open("ab") as file:
        file.write(b'{"prompt_id": "p')
    append_attempts(tmp_path, RECORDS[1:2])
    assert read_attempts(tmp_path) == RECORDS[:2]


def test_a_long_torn_line_is_removed_too(tmp_path: Path) -> None:
    append_attempts(tmp_path, RECORDS[:1])
    with (tmp_path / store.ATTEMPTS).open("ab") as file:
        file.write(b'{"completion": "' + b"a" * 300_000)
    append_attempts(tmp_path, RECORDS[1:2])
    assert read_attempts(tmp_path) == RECORDS[:2]


@pytest.mark.parametrize("line", [b"{not json}", b"[1, 2]", b"\xff\xfe", b""])
def test_a_damaged_whole_line_is_reported_with_its_number(tmp_path: Path, line: bytes) -> None:
    append_attempts(tmp_path, RECORDS[:1])
    with (tmp_path / store.ATTEMPTS).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(Es2Error, match=r"attempts\.jsonl, line 2"):
        read_attempts(tmp_path)


def test_half_characters_and_infinite_numbers_can_be_stored(tmp_path: Path) -> None:
    append_attempts(tmp_path, [{"completion": "\ud83c", "loss": float("inf"), "norms": [1.5]}])
    line = (tmp_path / store.ATTEMPTS).read_text()
    assert "Infinity" not in line
    assert read_attempts(tmp_path) == [{"completion": "\ud83c", "loss": None, "norms": [1.5]}]


def test_a_full_disk_is_a_users_error_that_names_the_folder_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_attempts(tmp_path, RECORDS[:1])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(Es2Error, match="full") as caught:
            append_attempts(tmp_path, RECORDS[1:])
        assert str(tmp_path) in str(caught.value)
    assert read_attempts(tmp_path) == RECORDS[:1]


def test_appending_fsyncs_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(handle: int) -> None:
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    append_attempts(tmp_path, RECORDS)
    assert synced == [(tmp_path / store.ATTEMPTS).stat().st_size]


def test_json_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, step, full_disk)
            with pytest.raises(Es2Error, match="full"):
                write_json(path, {"new": 2})
        assert read_json(path) == {"old": 1}
        assert os.listdir(tmp_path) == ["results.json"]


def test_json_files_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


def test_a_folder_that_cannot_be_made_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Es2Error, match="cannot be written"):
        append_attempts(tmp_path / "file" / "run", RECORDS)
    with pytest.raises(Es2Error, match="cannot be written"):
        write_json(tmp_path / "file" / "results.json", {})


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    results = summarise([attempt_record("base", "attack", an_attempt(), JUDGEMENT)])
    write_json(tmp_path / "results.json", results)
    assert read_results(tmp_path) == results


def test_missing_results_are_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(Es2Error, match="missing"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"defences": 1}', '{"schema_version": 2, "defences": {}}']
)
def test_damaged_results_are_a_users_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(Es2Error, match=r"results\.json"):
        read_results(tmp_path)


def test_results_json_has_the_documented_shape(tmp_path: Path) -> None:
    results = summarise([attempt_record("base", "attack", an_attempt(), JUDGEMENT)])
    write_json(tmp_path / "results.json", results)
    data = json.loads((tmp_path / "results.json").read_text())
    attack = data["defences"]["base"]["attacks"]["direct"]
    assert set(attack["dsr"]["judged"]) == {"rate", "low", "high", "n"}
    assert attack["settings"][""]["verdicts"] == {"refused": 0, "incoherent": 0, "complied": 1}
    assert set(data["defences"]["base"]["cost"]) == {
        "over_refusal",
        "borderline_refusal",
        "structured_refusal",
        "incoherent",
        "kl",
        "perplexity_ratio",
    }
    assert isinstance(results, Results)
