"""Recipes: every value known, written out and read again as it was; what is wrong is named."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from es2.attacks import Attack, AutoDan, Direct, Gcg, Scav, SoftPrompt
from es2.attacks.gcg import RULES
from es2.config import Data, Recipe, dump, load_recipe, make_attacks, make_defence
from es2.defences import DEFENCES, Es2, SafetySft
from es2.defences.trainer import TrainSettings
from es2.errors import Es2Error
from es2.pipeline.comparison import load_comparison
from es2.pipeline.harden import Guard

RECIPES = Path(__file__).parent.parent / "recipes"


def written(path: Path, text: str) -> Recipe:
    (path / "recipe.yaml").write_text(text)
    return load_recipe(path / "recipe.yaml")


def assert_same(found: Recipe, expected: Recipe) -> None:
    """The same experiment, whether or not defaults are written out."""
    assert make_attacks(found.attacks) == make_attacks(expected.attacks)
    assert found.defence.keys() == expected.defence.keys()
    if found.defence:
        assert make_defence(found.defence) == make_defence(expected.defence)
    assert (found.limits, found.base) == (expected.limits, expected.base)
    written_out: dict[str, Any] = {
        "attacks": {},
        "limits": {},
        "defence": {"es2": {}},
        "base": True,
    }
    assert replace(found, **written_out) == replace(expected, **written_out)


def test_a_model_is_all_that_a_recipe_must_name(tmp_path: Path) -> None:
    recipe = written(tmp_path, "model: smollm2-aligned")
    assert recipe == Recipe(model="smollm2-aligned")
    assert make_defence(recipe.defence) == Es2() and recipe.train == Es2.published
    assert [attack.name for attack in make_attacks(recipe.attacks)] == ["direct", "scav"]


def test_the_dump_writes_every_default_out() -> None:
    plain = yaml.safe_load(dump(Recipe(model="m")))
    assert plain.keys() == {field.name for field in fields(Recipe)}
    for name, own in (("data", Data()), ("train", Es2.published), ("guard", Guard())):
        assert plain[name] == json.loads(json.dumps(asdict(own)))  # a tuple is a list there
    assert plain["defence"] == {"es2": asdict(Es2())}
    assert plain["seed"] == 0 and plain["layers"] is None
    assert plain["attacks"]["direct"] == asdict(Direct())
    assert plain["attacks"]["scav"] == asdict(Scav()) | {"p0": list(Scav().p0)}


def test_a_dumped_recipe_is_read_as_it_was(tmp_path: Path) -> None:
    recipe = Recipe(
        model="owner/model",
        name="mine",
        seed=3,
        dtype="bfloat16",
        layers=(15, 29),
        data=Data(harmful="a.csv", borderline=None, train=100, test=40),
        defence={"es2_paper": {"kl_weight": 0.5}},
        train=TrainSettings(lr=3e-5, rank=0, scope="critical"),
        guard=Guard(prompts=8, incoherent=0.2),
        attacks={"scav": {"p0": [0.001, 1e-4], "min_accuracy": 0.8}, "direct": {}},
        answer_tokens=12,
    )
    assert_same(written(tmp_path, dump(recipe)), recipe)
    assert dump(written(tmp_path, dump(recipe))) == dump(recipe)


def test_the_published_form_keeps_what_training_ends_with(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for defence, every in (("es2_paper", 0), ("es2", Es2.published.validate_every)):
        path.write_text(f"model: owner/model\ndefence: {defence}\n")
        assert load_recipe(path).train.validate_every == every


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_say_how_to_launch_them(path: Path, tmp_path: Path) -> None:
    head, several = path.read_text().split("\nname:")[0], "\ndefences:" in path.read_text()
    recipes = load_comparison(path).members().values() if several else [load_recipe(path)]
    for recipe in recipes:
        assert_same(written(tmp_path, dump(recipe)), recipe)
    assert f"es2 {'compare' if several else 'run'} recipes/{path.name}" in head


def test_a_comparison_given_to_run_is_sent_to_compare() -> None:
    with pytest.raises(Es2Error, match=re.escape("smollm2_full.yaml: compares several defences")):
        load_recipe(RECIPES / "smollm2_full.yaml")


def test_numbers_may_be_written_as_yaml_11_does_not_read_them(tmp_path: Path) -> None:
    # "1e-4" without a dot is a text to YAML 1.1.
    recipe = written(tmp_path, "model: m\ntrain: {lr: 1e-4}\nattacks: {scav: {p0: [1e-3]}}")
    assert recipe.train.lr == 1e-4
    assert make_attacks(recipe.attacks) == [Scav(p0=(1e-3,))]


def test_attacks_take_the_settings_given_and_keep_their_order() -> None:
    found = make_attacks({"scav": {"p0": [0.01], "seed": 2}, "direct": {"max_new_tokens": 7}})
    assert found == [Scav(p0=(0.01,), seed=2), Direct(max_new_tokens=7)]
    assert make_attacks({}) == []


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("scav", {"p0": [0]}, "scav: p0 is 0, but has to lie between 0 and 1"),
        ("scav", {"p0": [0.5, 1]}, "scav: p0 is 1, but has to lie between 0 and 1"),
        ("scav", {"p0": []}, "attacks.scav.p0 is empty; give one or more"),
        ("scav", {"bound": 0}, "scav: bound is 0.0"),
        ("direct", {"max_new_tokens": 0}, "attacks.direct.max_new_tokens is 0"),
        ("repe", {"ranges": [[0.5, 1.5]]}, "repe: a range of layers from 0.5 to 1.5"),
        ("repe", {"strengths": []}, "attacks.repe.strengths is empty"),
        ("refusal_ablation", {"lowest": 0.9}, "refusal_ablation: layers from 0.9 to 0.8"),
        ("prefill", {"lengths": [3, 0]}, "attacks.prefill.lengths is 0"),
        ("soft_prompt", {"checkpoints": 0}, "attacks.soft_prompt.checkpoints is 0"),
        ("gcg", {"top_k": 0}, "attacks.gcg.top_k is 0"),
        ("autodan", {"population": 1}, "attacks.autodan.population is 1"),
        ("autodan", {"elites": 1}, "autodan: of 256 texts"),
        ("autodan", {"steps": 0}, "attacks.autodan.steps is 0"),
        ("best_of_n", {"temperature": 0}, "attacks.best_of_n.temperature is 0"),
        ("push", {"norms": [0.0, 0.1]}, "attacks.push.norms is 0"),
    ],
)
def test_settings_that_an_attack_cannot_be_made_with_are_refused(
    name: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(Es2Error, match=re.escape(said)):
        make_attacks({name: settings})


@pytest.mark.parametrize(
    ("attack", "published"),
    [
        (Scav(), ("p0=0.001", "p0=0.0001")),
        (Scav(p0=(0.1,), seed=3, max_new_tokens=9), ("p0=0.001", "p0=0.0001")),
        (Scav(min_accuracy=0.5), ("p0=0.001", "p0=0.0001")),
        (Scav(bound=0.1), ()),
        (SoftPrompt(), ("step=100",)),
        (SoftPrompt(checkpoints=1), ("step=100",)),
        (SoftPrompt(steps=60), ()),
        (SoftPrompt.long(), ("step=1000",)),
        (Gcg(), RULES),
        (Gcg(steps=24, width=32), ()),
        (AutoDan(paper_exact=True), ("lowest loss",)),
        (AutoDan(population=48), ()),
    ],
)
def test_only_what_runs_as_it_was_published_has_published_settings(
    attack: Attack, published: tuple[str, ...]
) -> None:
    assert attack.published == published


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": TrainSettings(steps=0)}, "train.steps is 0"),
        ({"train": TrainSettings(batch_size=0)}, "train.batch_size is 0"),
        ({"train": TrainSettings(rank=-1)}, "train.rank is -1"),
        ({"train": TrainSettings(checkpoint_every=0)}, "train.checkpoint_every is 0"),
        ({"train": TrainSettings(lr=0.0)}, "train.lr is 0.0"),
        ({"train": TrainSettings(lr=float("nan"))}, "train.lr is nan"),
        ({"train": TrainSettings(min_lr_rate=-0.1)}, "train.min_lr_rate is -0.1"),
        ({"train": TrainSettings(min_lr_rate=1.5)}, "train.min_lr_rate is 1.5"),
        ({"data": Data(test=0)}, "data.test is 0"),
        ({"data": Data(train=0)}, "data.train is 0"),
        ({"guard": Guard(tokens=0)}, "guard.tokens is 0"),
        ({"defence": {"es2": {}, "safety_sft": {}}}, "a run trains one, but 2 are given"),
        ({"answer_tokens": 0}, "answer_tokens is 0"),
        ({"seed": -1}, "seed is -1, but has to lie between 0 and"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_numbers_that_no_run_can_be_made_with_are_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(Es2Error, match=said):
        replace(Recipe(model="m"), **changes)


def test_a_defence_is_named_or_given_with_its_settings(tmp_path: Path) -> None:
    named = written(tmp_path, "model: m\ndefence: safety_sft")
    assert make_defence(named.defence) == SafetySft()
    given = written(tmp_path, "model: m\ndefence:\n  safety_sft: {ratio: 2}")
    assert make_defence(given.defence) == SafetySft(ratio=2)


@pytest.mark.parametrize("name", sorted(DEFENCES))
def test_training_is_as_the_defences_source_has_it_where_a_recipe_says_nothing(
    tmp_path: Path, name: str
) -> None:
    published = DEFENCES[name].published
    recipe = written(tmp_path, f"model: m\ndefence: {name}\ntrain: {{steps: 7}}")
    assert recipe.train == replace(published, steps=7)
    assert dump(written(tmp_path, dump(recipe))) == dump(recipe)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("defence: es3", "unknown defence 'es3'"),
        ("defence: {es2: {leen: 1}}", "defence.es2: no setting 'leen'; there are form"),
        ("defence: {es2: {kl_weight: -1}}", "defence.es2.kl_weight is -1"),
        ("defence: {lat: {openings: []}}", "defence.lat.openings is empty; give one or more"),
        ("defence: {es2: {}, safety_sft: {}}", "a run trains one, but 2 are given"),
        ("defence: [es2]", "defence: "),
    ],
)
def test_what_is_wrong_with_a_defence_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Es2Error, match=r"recipe\.yaml: ") as found:
        written(tmp_path, f"model: m\n{text}")
    assert said in str(found.value)


def test_switching_validation_or_lora_off_is_no_mistake() -> None:
    Recipe(model="m", train=TrainSettings(validate_every=0, rank=0), data=Data(test=1))


def test_only_attacks_of_the_recipe_can_be_stale(tmp_path: Path) -> None:
    assert written(tmp_path, "model: m\nstale: [scav]").stale == ("scav",)
    with pytest.raises(Es2Error, match="'gcg' is not among the attacks"):
        written(tmp_path, "model: m\nstale: [gcg]")
