"""The recipes of the paper's models: planned at their size, run from end to end on tiny ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from es2.pipeline.comparison import load_comparison
from es2.results.store import read_json, read_results
from large import FAMILY, RECIPES, SHAPES, config_only, shipped, shrunk
from small import make_workplace

NAMES = tuple(SHAPES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_planned_from_the_config_alone(
    name: str, tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    es2 = make_workplace(tmp_path, tiny_folder("llama"))
    recipe = tmp_path / "recipe.yaml"
    folder = config_only(tmp_path / "config", name)
    recipe.write_text(yaml.safe_dump(shipped(name) | {"model": str(folder)}))
    before = sorted(tmp_path.rglob("*"))
    done = es2("compare", recipe, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert sorted(tmp_path.rglob("*")) == before
    plan = json.loads(done.out)
    assert plan["model"]["parameters"] == pytest.approx(SHAPES[name][1], rel=0.01)
    assert {row["member"] for row in plan["stages"]} == {"base", *shipped(name)["defences"]}
    # One GPU of 80 GB will do, as the recipe's head says.
    assert plan["warnings"] == []
    assert 10 < plan["total"]["hours"] < 100
    assert plan["total"]["bytes_per_device"] > 2 * 2 * SHAPES[name][1]


# All recipes train the same defences, see below: all of them on one architecture, one on the others.
@pytest.mark.parametrize(("name", "defences"), [(NAMES[0], 99), *((name, 1) for name in NAMES[1:])])
def test_a_recipe_runs_from_end_to_end(
    name: str, defences: int, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    es2 = make_workplace(tmp_path, tiny_folder(FAMILY[name]))
    out = tmp_path / "out"
    done = es2("compare", shrunk(es2, name, es2.model, defences), "--out", out)
    assert done.code == 0, done.err
    found = read_results(out).defences
    assert list(found) == ["base", *shipped(name)["defences"]][: defences + 1]
    for one in found.values():
        assert set(one.attacks) == set(shipped(name)["attacks"])
        assert one.cost is not None
    assert set(read_json(out / "capability.json")["benchmarks"]) == {"questions"}
    for file in ("margin.json", "over_refusal.json"):
        assert set(read_json(out / file)["models"]) == set(found)


def test_all_recipes_ask_the_same_of_their_models() -> None:
    loaded = [load_comparison(RECIPES / f"{name}.yaml") for name in NAMES]
    assert len({one.run.model for one in loaded}) == len(NAMES)
    first = loaded[0]
    for one in loaded:
        assert one.run.attacks == first.run.attacks and one.evaluate == first.evaluate
        assert one.defences == first.defences and one.run.limits == first.run.limits
