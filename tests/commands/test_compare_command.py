"""Comparisons: members run once and alike, the base measured once, all gathered into one folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from chat_server import Reply, chat_server
from es2.config import load_recipe
from es2.errors import Es2Error
from es2.pipeline.comparison import load_comparison
from es2.results.store import read_attempts, read_json, read_results, write_json
from small import Workplace, contents

DEFENCES: dict[str, Any] = {
    "es2": {"settings": {"response_tokens": 3, "kl_threshold": 100.0}, "seeds": [0, 1]},
    "tuned": {"defence": "safety_sft", "settings": {"ratio": 1, "answer_tokens": 3}},
}
TRAIN = {"steps": 2, "batch_size": 2, "rank": 2, "validate_every": 0}


def written(es2: Workplace, **changes: Any) -> Path:
    settings = es2.settings()
    for name in ("defence", "train"):
        del settings[name]
    settings["layers"] = [2, 4]
    settings["attacks"] = {"direct": {"max_new_tokens": 3}, "prefill": {"max_new_tokens": 3}}
    settings["limits"] = {"prefill": 1}
    settings["defences"] = {name: {**one, "train": TRAIN} for name, one in DEFENCES.items()}
    path = es2.path / "comparison.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def test_every_member_is_measured_on_the_same_prompts_and_the_base_once(es2: Workplace) -> None:
    out = es2.path / "cmp"
    labelled = es2.path / "set.csv"
    labelled.write_text("prompt,label\nHow do ships sail?,safe\nSink a ship now,unsafe\n")
    evaluate = {"sets": [str(labelled)], "pushed": 2, "push": {"norms": [0.1], "min_accuracy": 0.0}}
    recipe = written(es2, evaluate=evaluate)
    part = ["compare", recipe, "--out", out, "--only", "es2@1"]
    assert es2(*part).out.split() == [str(out / "members" / "es2@1")]
    assert "holds a comparison already" in es2(*part).complaint
    assert "there are base, es2@0" in es2(*part[:-1], "es2").complaint
    assert sorted(path.name for path in out.iterdir()) == ["members"]
    done = es2("compare", recipe, "--out", out, "--resume")
    assert done.code == 0, done.err
    labels = ["base", "es2@0", "es2@1", "tuned"]
    assert sorted(read_results(out).defences) == labels
    assert sorted(path.name for path in (out / "members").iterdir()) == labels

    asked: dict[str, list[tuple[str, ...]]] = {label: [] for label in labels}
    for record in read_attempts(out):
        place = (record["kind"], record["attack"], record["setting"], record["prompt_id"])
        asked[record["defence"]].append(place)
    assert asked["base"] and all(sorted(of) == sorted(asked["base"]) for of in asked.values())
    assert len({place[3] for place in asked["base"] if place[1] == "prefill"}) == 1
    for file in ("margin", "over_refusal"):
        assert {record["defence"] for record in read_attempts(out / file)} == set(labels)
    assert set(read_json(out / "over_refusal.json")["models"]) == set(labels)

    # What a member's own folder says is what the comparison says of it.
    own = read_results(out / "members" / "tuned").defences["safety_sft"]
    gathered = read_results(out).defences["tuned"]
    assert gathered.attacks == own.attacks and gathered.cost == own.cost
    assert gathered.changes and not own.changes  # the base is in another folder
    members = read_json(out / "comparison.json")["members"]
    assert members["base"]["defence"] is None
    assert [members[label]["seed"] for label in labels[1:]] == [0, 1, 0]
    assert all(members[label]["train_seconds"] > 0 for label in labels[1:])
    page = (out / "report.html").read_text()
    assert "Safety against cost" in page and "ES2, seed 1" in page
    assert (
        page.index("On the frontier") < page.index("Model by model") < page.index("<b>ES2, seed 1.")
    )
    for figure in ("frontier", "judged_dsr", "refused", "keyword_dsr", "cost"):
        drawn = ElementTree.fromstring((out / f"{figure}.svg").read_text())
        assert "ES2, seed 1" in {text.text for text in drawn.iter() if text.tag.endswith("text")}
    tables = (out / "tables.md").read_text()
    assert tables.count("| ES2, seed 1 |") == 4 and "| ES2, 2 seeds |" in tables
    assert "ES2, 2 seeds" in done.out and "worst attack" in done.out

    refused = es2("compare", recipe, "--out", out)
    assert refused.code == 2 and "--resume" in refused.err
    timed = ("report.html", "run.json")
    before = {name: data for name, data in contents(out).items() if not name.endswith(timed)}
    again = es2("compare", recipe, "--out", out, "--resume")
    assert again.code == 0, again.err
    assert {name: data for name, data in contents(out).items() if name in before} == before


def test_other_judges_verdicts_are_gathered_and_those_on_the_whole_are_kept(es2: Workplace) -> None:
    out = es2.path / "judged"
    with chat_server(lambda asked: Reply("no rubric's answer")) as server:
        evaluate = {
            "sets": [],
            "pushed": 1,
            "push": {"norms": [0.1], "min_accuracy": 0.0},
            "judges": ["rules", "refusal", "strongreject"],
            "endpoint": {"url": server.url, "model": "m"},
        }
        two = {"attacks": {"direct": {"max_new_tokens": 3}}, "limits": {}}
        recipe = written(
            es2, evaluate=evaluate, defences={"tuned": {**DEFENCES["tuned"], "train": TRAIN}}, **two
        )
        done = es2("compare", recipe, "--out", out)
        assert done.code == 0, done.err
    found = read_json(out / "judges.json")
    assert set(found["judges"]) == {"rules", "refusal", "strongreject"}
    for label in ("base", "tuned"):
        own = read_json(out / "members" / label / "judges.json")["judges"]["refusal"]["defences"]
        gathered = found["judges"]["refusal"]["defences"][label]
        assert gathered == own["base" if label == "base" else "safety_sft"]
    paid = [
        read_json(out / "members" / label / "judges.json")["spending"]["answers"]
        for label in ("base", "tuned")
    ]
    assert found["spending"]["answers"] == sum(paid) > 0

    assert es2("judge", "--run", out, "--judges", "keywords:gcg").code == 0
    again = es2("compare", recipe, "--out", out, "--resume")
    assert again.code == 0, again.err
    assert set(read_json(out / "judges.json")["judges"]) == {*found["judges"], "keywords:gcg"}

    assert es2("publish", "--run", out, "--out", es2.path / "given").code == 0
    given = contents(es2.path / "given")
    figures = ("frontier.svg", "judged_dsr.svg", "refused.svg", "keyword_dsr.svg", "cost.svg")
    for name in ("tables.md", *figures):
        assert given[name] == (out / name).read_bytes()


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        ({"judges": ["harmbunch"]}, "harmbunch"),
        ({"judges": ["scav"]}, "evaluate.endpoint"),
        ({"endpoint": {"url": "http://localhost:1", "model": "m", "modal": 1}}, "modal"),
        ({"endpoint": {"url": "localhost", "model": "m"}}, "http"),
    ],
)
def test_judges_there_are_none_of_are_told_before_any_work(
    es2: Workplace, evaluate: dict[str, Any], words: str
) -> None:
    with pytest.raises(Es2Error, match=re.escape(words)):
        load_comparison(written(es2, evaluate=evaluate))


def test_a_forced_comparison_is_evaluated_on_prompts_that_are_fitted_on_too(
    es2: Workplace,
) -> None:
    lines = es2.prompts("harmless").read_text().splitlines()
    labelled = [json.dumps({**json.loads(line), "label": "safe"}) for line in lines]
    fitted = es2.path / "fitted.jsonl"
    fitted.write_text("\n".join(labelled))
    push = {"norms": [0.1], "min_accuracy": 0.0}
    recipe = written(es2, evaluate={"sets": [str(fitted)], "pushed": 2, "push": push})
    part = ["compare", recipe, "--only", "base"]
    refused = es2(*part, "--out", es2.path / "refused")
    assert refused.code == 2 and "--force" in refused.complaint
    forced = es2(*part, "--out", es2.path / "forced", "--force")
    assert forced.code == 0, forced.err
    assert "fitted" in str(read_json(es2.path / "forced/members/base/run.json")["overlap"])


def test_training_seeds_share_the_base_and_the_cut_of_the_prompts(es2: Workplace) -> None:
    members = load_comparison(written(es2, seed=7)).members()
    assert {recipe.data.seed for recipe in members.values()} == {7}
    assert [recipe.seed for recipe in members.values()] == [7, 0, 1, 0]
    assert [recipe.base for recipe in members.values()] == [True, False, False, False]
    assert members["tuned"].train.steps == 2 and members["tuned"].train.lr == 3e-4


def test_every_defence_is_searched_by_as_many_trials_and_seeds_share_them(es2: Workplace) -> None:
    recipe, out = (
        written(es2, tune=2, attacks={"direct": {"max_new_tokens": 3}}, limits={}),
        "tuned",
    )
    done = es2("compare", recipe, "--out", es2.path / out)
    assert done.code == 0, done.err
    folder = es2.path / out
    trials = {path.parts[-3]: path.read_text() for path in folder.glob("tuned/*/tune/study.log")}
    assert sorted(trials) == ["es2", "tuned"]
    members = {
        path.name: load_recipe(path / "config.yaml") for path in (folder / "members").iterdir()
    }
    one, two = members["es2@0"], members["es2@1"]
    assert one.defence == two.defence and one.train.lr == two.train.lr and one.seed != two.seed
    assert one.defence["es2"]["kl_threshold"] == 100.0
    assert not members["base"].defence
    again = es2("compare", recipe, "--out", folder, "--resume")
    assert again.code == 0, again.err
    found = {name: load_recipe(folder / "members" / name / "config.yaml") for name in members}
    assert found == members


def test_finished_runs_are_gathered(es2: Workplace) -> None:
    for name, defence in (("one", "es2"), ("two", "safety_sft")):
        settings = es2.settings()["defence"].get(defence, {"ratio": 1, "answer_tokens": 3})
        recipe = es2.recipe(f"{name}.yaml", defence={defence: settings}, attacks={"direct": {}})
        done = es2("run", recipe, "--out", es2.path / name)
        assert done.code == 0, done.err
    noted = read_results(es2.path / "two").model_copy(update={"notes": ["nothing was trained"]})
    write_json(es2.path / "two" / "results.json", noted)
    out = es2.path / "both"
    done = es2("compare", "--runs", es2.path / "one", es2.path / "two", "--out", out, "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["defences"]) == ["base", "one", "two"]
    assert read_results(out).defences["two"].changes
    assert read_results(out).notes == ["two: nothing was trained"]
    assert (out / "tables.md").read_text().count(" | 4 of 4 | ") == 2  # the step kept
    written = [
        es2("publish", "--run", es2.path / n, "--out", es2.path / "given" / n)
        for n in ("one", "two")
    ]
    assert [one.code for one in written] == [0, 0]
    given = es2.path / "given"
    said = {r["completion"] for n in ("one", "two") for r in read_attempts(es2.path / n)}
    texts = "".join(path.read_text() for path in given.rglob("*") if path.is_file())
    assert all(text not in texts for text in said if len(text) > 8)
    again = es2("compare", "--runs", given / "one", given / "two", "--out", es2.path / "from given")
    assert again.code == 0, again.err
    assert read_results(es2.path / "from given") == read_results(out)
    assert (
        "is there already"
        in es2("publish", "--run", es2.path / "one", "--out", given / "one").complaint
    )
    other = es2.recipe("other.yaml", attacks={"direct": {"max_new_tokens": 2}})
    assert es2("run", other, "--out", es2.path / "other").code == 0
    mixed = es2("compare", "--runs", es2.path / "one", es2.path / "other", "--out", out)
    assert mixed.code == 2 and "other attacks than" in mixed.complaint
    recut = es2.recipe("recut.yaml", seed=5, attacks={"direct": {}})
    assert es2("run", recut, "--out", es2.path / "recut").code == 0
    mixed = es2("compare", "--runs", es2.path / "one", es2.path / "recut", "--out", out)
    assert mixed.code == 2 and "other data than" in mixed.complaint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"defences": {}},
            "no defences to compare; give `defences: {es2: {}, ...}` or use es2 run",
        ),
        ({"defences": {"es3": {}}}, "unknown defence 'es3'"),
        ({"defences": ["es2"]}, "defences: ['es2'] is no mapping"),
        ({"defences": {"es2": 5}}, "defences.es2: 5 is no mapping"),
        ({"evaluate": ["xstest"]}, "evaluate: ['xstest'] is no mapping"),
        ({"seeds": []}, "seeds is empty"),
        ({"defences": {"es2": {"lean": 1}}}, "defences.es2: no setting 'lean'"),
        ({"defences": {"es2": {"settings": {"leen": 1}}}}, "no setting 'leen'"),
        ({"defences": {"es2": {"train": {"stops": 1}}}}, "defences.es2.train: no setting 'stops'"),
        ({"defences": {"base": {"defence": "es2"}}}, "have meanings of their own"),
        ({"train": {"steps": 3}}, "train: belongs under one of the defences"),
        ({"tune": -1}, "tune is -1, but has to be at least 0"),
        ({"limits": {"gcg": 3}}, "limits: 'gcg' is not among the attacks"),
        ({"evaluate": {"set": ["x"]}}, "evaluate: no setting 'set'"),
    ],
)
def test_what_is_wrong_with_a_comparison_is_named(
    es2: Workplace, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(Es2Error, match=r"comparison\.yaml: ") as found:
        load_comparison(written(es2, **changes))
    assert said in str(found.value)
