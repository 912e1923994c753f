"""`es2 judge` as a user types it, with a real chat server beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chat_server import Reply, chat_server
from es2.judges.base import VERSION
from es2.results.opinions import attempt_key
from small import Workplace, contents

KEY = "sk-nobody-may-see-this"
SAID = json.dumps({"answer": "answers", "useful": True, "flaws": False})


@pytest.fixture
def attacked(es2: Workplace) -> Path:
    """A folder of `es2 attack`."""
    out = es2.path / "attacked"
    fit = [f"--fit.{name}={es2.prompts(name)}" for name in ("harmful", "harmless")]
    aimed = ["--attack", "direct", "--prompts", es2.prompts("aimed"), "--max-new-tokens", 4]
    done = es2("attack", "--model", es2.model, *aimed, *fit, "--limit", 4, "--out", out)
    assert done.code == 0, done.err
    return out


def test_judges_are_compared_and_an_unreachable_one_is_an_empty_column(
    es2: Workplace, attacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    names = ["rules", "refusal", "keywords:gcg", "harmbench", "scav", "scav-useful"]
    with chat_server(lambda asked: Reply(SAID)) as server:
        flags = ["--endpoint", server.url, "--endpoint-model", "m", "--key-variable", "MY_KEY"]
        flags += ["--price-in", "1", "--price-out", "2"]
        done = es2("judge", "--run", attacked, "--judges", *names, *flags, "--json")
        assert done.code == 0, done.err
        paid = len(server.asked)
        shown = es2("judge", "--run", attacked, "--judges", *names, *flags)
        assert len(server.asked) == paid <= 4
    found = json.loads(done.out)
    assert found == json.loads((attacked / "judges.json").read_text())
    judges = found["judges"]
    assert set(judges) == {name.replace("-", "_") for name in names}
    assert judges["harmbench"]["judged"] == 0 and len(judges["harmbench"]["why"]) == 1
    assert judges["harmbench"]["defences"]["model"]["direct"]["dsr"] is None
    assert judges["scav"]["defences"]["model"]["direct"]["dsr"]["rate"] == 0
    own = json.loads((attacked / "results.json").read_text())["defences"]["model"]["attacks"]
    assert judges["rules"]["defences"]["model"]["direct"]["dsr"] == own["direct"]["dsr"]["judged"]
    assert found["spending"]["cost"] == pytest.approx(paid * 140e-6)
    assert shown.code == 0 and "kappa" in shown.out and "harmbench: 4 unjudged" in shown.out
    assert KEY not in done.out + done.err + shown.out + shown.err
    assert not any(KEY.encode() in data for data in contents(attacked).values())


def test_rules_of_another_version_judge_anew_with_the_models_own_limits(
    es2: Workplace, attacked: Path, finished: Workplace, tmp_path: Path
) -> None:
    for run in (attacked, tmp_path / "copy", tmp_path / "of other limits"):
        if not run.exists():
            run.mkdir()
            for name in ("config.yaml", "run.json", "attempts.jsonl"):
                (run / name).write_bytes((finished.path / "run" / name).read_bytes())
        if run.name == "of other limits":
            shutil.copytree(finished.path / "run", run, dirs_exist_ok=True)
            # A version whose limits found next to nothing coherent.
            record = json.loads((run / "run.json").read_text())
            record["judge"] |= {"rules": "rules-0", "relevance": 9.0, "perplexity": 1.0}
            (run / "run.json").write_text(json.dumps(record))
        path = run / "attempts.jsonl"
        path.write_text(path.read_text().replace(f'"{VERSION}"', '"rules-0"'))
        done = es2("judge", "--run", run, "--judges", "rules", "--json")
        assert done.code == 0, done.err
        own = [json.loads(line) for line in path.read_text().splitlines()]
        judged = [json.loads(line) for line in (run / "verdicts.jsonl").read_text().splitlines()]
        assert judged and {line["version"] for line in judged} == {VERSION}
        expected = {
            attempt_key(one): one["judgement"]["verdict"] for one in own if one["kind"] == "attack"
        }
        assert {attempt_key(one): one["verdict"] for one in judged} == expected


def test_mistakes_are_told_in_one_line_before_any_work(es2: Workplace, attacked: Path) -> None:
    for flags, words in (
        (["--judges", "oracle"], "'oracle'"),
        (["--judges", "keywords:gcgg"], "'gcgg'"),
        (["--judges", "scav"], "--endpoint"),
        (["--endpoint", "http://localhost:1/v1"], "--endpoint-model"),
        (["--endpoint", "localhost", "--endpoint-model", "m"], "http"),
        (["--limit", "0"], "limit"),
    ):
        assert words in es2("judge", "--run", attacked, *flags).complaint
    assert "attempts.jsonl" in es2("judge", "--run", es2.path).complaint
    assert not (attacked / "judges.json").exists()


def test_list_names_every_judge_and_what_it_needs(es2: Workplace) -> None:
    done = es2("list", "judges", "--json")
    assert done.code == 0, done.err
    found = {entry["name"]: entry for entry in json.loads(done.out)}
    assert {"rules", "refusal", "keywords", "harmbench", "strongreject", "scav"} < set(found)
    assert all(entry["needs"] and entry["what"] for entry in found.values())
    assert "llama_guard" in es2("list", "judges").out
