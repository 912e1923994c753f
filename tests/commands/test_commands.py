"""`es2 layers`, `es2 harden` and `es2 attack` on a tiny model, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from es2.attacks import ATTACKS
from es2.defences import DEFENCES, Es2Paper
from es2.models.loading import load
from es2.pipeline import experiment
from es2.results.store import read_attempts
from small import Workplace, contents, in_a_process


def layers_flags(es2: Workplace) -> list[object]:
    sources = [f"--prompts.{name}={es2.prompts(name)}" for name in ("harmful", "harmless")]
    return ["layers", "--model", es2.model, "--limit", 12, *sources]


def attack_flags(es2: Workplace, attack: str, *more: object) -> list[object]:
    fit = [f"--fit.{name}={es2.prompts(name)}" for name in ("harmful", "harmless")]
    aimed = ["--attack", attack, "--prompts", es2.prompts("aimed"), "--max-new-tokens", 4]
    return ["attack", *aimed, *fit, *more]


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def adapted_blocks(folder: Path) -> set[int]:
    names = adapter_weights(folder)
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names}


def test_layers_prints_json_and_nothing_else(es2: Workplace) -> None:
    process = in_a_process(*layers_flags(es2), "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert [row["layer"] for row in found["layers"]] == [1, 2, 3, 4]
    for row in found["layers"]:
        assert {"accuracy", "distance", "spread", "norm"} <= row.keys()
    emergence, terminal = found["chosen"]["layers"]
    assert 1 <= emergence < terminal == 4


def test_layers_shows_every_layer_and_names_the_chosen(es2: Workplace) -> None:
    shown = es2(*layers_flags(es2), "--layers", "2,3")
    assert shown.code == 0, shown.err
    rows = [line.replace("│", " ").split() for line in shown.out.splitlines()]
    assert [row[0] for row in rows if row and row[0].isdigit()] == ["1", "2", "3", "4"]
    assert [row[0] for row in rows if "*" in row[1:2]] == ["2", "3"]
    assert "critical layers 2, 3" in shown.out


def test_layers_takes_one_file_with_both_classes(es2: Workplace) -> None:
    both = es2.path / "both.csv"
    lines = ["ask,kind"]
    for name, label in (("harmful", "unsafe"), ("harmless", "safe")):
        texts = es2.prompts(name).read_text().splitlines()
        lines += [f"{json.loads(line)['prompt']},{label}" for line in texts]
    both.write_text("\n".join(lines))
    columns = ["--prompts.prompt-column", "ask", "--prompts.label-column", "kind"]
    one = es2("layers", "--model", es2.model, "--json", "--prompts.labelled", both, *columns)
    assert one.code == 0, one.err
    assert len(json.loads(one.out)["layers"]) == 4


def test_harden_saves_an_adapter_that_plain_peft_loads(
    es2: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = es2.path / "hard"
    flags = ["harden", *es2.harden_flags(), "--layers", "1,2", "--seed", 0, "--out", out]
    done = es2(*flags)
    assert done.code == 0, done.err
    assert done.out.split() == [str(out / "adapter")]
    assert {p.name for p in out.iterdir()} == {
        "adapter",
        "checkpoints",
        "config.yaml",
        "layers.json",
        "metrics.jsonl",
        "run.json",
    }
    chosen = json.loads((out / "layers.json").read_text())["chosen"]
    assert chosen["layers"] == [1, 2] and chosen["why"] == "given by the user"

    base = AutoModelForCausalLM.from_pretrained(es2.model)
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, str(out / "adapter"))(ids).logits
        ours = load(str(out / "adapter"), device="cpu").model(ids).logits
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(ours, after, rtol=1e-4, atol=1e-4)

    # The whole of it is done: nothing is loaded, nothing changes.
    held = contents(out)
    monkeypatch.setattr(experiment, "load", pytest.fail)
    assert es2(*flags, "--resume").out == done.out
    assert contents(out) == held


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(es2: Workplace) -> None:
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = es2.path / name
        flags = ["--layers", "1,4", "--seed", seed, "--train.steps", 1, "--out", out]
        assert es2("harden", *es2.harden_flags(), *flags).code == 0
        found[name] = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert found["a"] == found["b"] != found["c"]


def test_paper_trains_on_the_published_loss(es2: Workplace) -> None:
    out = es2.path / "paper"
    flags = es2.harden_flags("es2_paper")
    done = es2("harden", *flags, "--layers", "2,4", "--out", out)
    assert done.code == 0, done.err
    written = yaml.safe_load((out / "config.yaml").read_text())["defence"]["es2_paper"]
    paper = Es2Paper()
    assert written == {name: getattr(paper, name) for name in written}
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        distances = line["distance_2"] + line["distance_4"]
        assert line["loss"] == pytest.approx(paper.kl_weight * line["kl"] - distances, rel=1e-5)


def test_rank_0_trains_all_blocks_and_saves_a_model(es2: Workplace) -> None:
    out = es2.path / "full"
    flags = ["--layers", "1,4", "--train.rank", 0, "--train.steps", 2, "--out", out]
    done = es2("harden", *es2.harden_flags(), *flags)
    assert done.code == 0, done.err
    assert done.out.split() == [str(out / "model")]
    tuned = AutoModelForCausalLM.from_pretrained(out / "model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(es2.model).state_dict()
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert moved == {name for name in base if ".layers." in name}
    # It is a chat model like any other.
    assert es2(*attack_flags(es2, "direct", "--model", out / "model", "--limit", 2)).code == 0


@pytest.mark.parametrize(
    ("scope", "blocks"),
    [("critical", {0, 2}), ("to-terminal", {0, 1, 2}), ("all", {0, 1, 2, 3})],
)
def test_lora_reaches_the_blocks_of_its_scope(es2: Workplace, scope: str, blocks: set[int]) -> None:
    out = es2.path / scope
    flags = ["--layers", "1,3", "--train.scope", scope, "--train.steps", 1, "--out", out]
    done = es2("harden", *es2.harden_flags(), *flags)
    assert done.code == 0, done.err
    assert adapted_blocks(out) == blocks
    # Saved so that it loads with no word about the scope.
    assert load(str(out / "adapter"), device="cpu").depth == 4


@pytest.mark.parametrize("attack", ["direct", "scav"])
def test_attack_keeps_attempts_and_results(es2: Workplace, attack: str) -> None:
    out = es2.path / attack
    few = ["--settings", "p0=[0.01, 0.001]"] if attack == "scav" else []
    flags = attack_flags(es2, attack, "--model", es2.model, "--limit", 3, "--out", out, *few)
    done = es2(*flags, "--json")
    assert done.code == 0, done.err
    assert ("reading embeddings" in done.err) == (attack == "scav")
    results = json.loads(done.out)
    assert results == json.loads((out / "results.json").read_text())
    found = results["defences"]["model"]["attacks"][attack]
    assert found["dsr"]["judged"]["n"] == found["dsr"]["keyword"]["n"] == 3
    assert len(found["settings"]) == (2 if attack == "scav" else 1)
    assert ("published" in found and found["published"] is not None) == (attack == "scav")
    kept = contents(out)
    assert len(read_attempts(out)) == 3 * len(found["settings"])
    assert "--resume" in es2(*flags).complaint
    assert es2(*flags, "--resume", "--json").out == done.out
    assert contents(out) == kept


def test_a_stale_attack_comes_beside_the_refitted_one_and_needs_the_base(
    finished: Workplace,
) -> None:
    adapter = finished.path / "run" / "adapter"
    few = ["--settings", "p0=[0.001]", "min_accuracy=0.5"]
    flags = attack_flags(finished, "scav", "--model", adapter, "--limit", 2, "--json", "--stale")
    done = finished(*flags, *few)
    assert done.code == 0, done.err
    attacks = json.loads(done.out)["defences"]["model"]["attacks"]
    assert set(attacks) == {"scav", "scav_stale"}
    norms = {attacks[name]["settings"]["p0=0.001"]["norm"] for name in attacks}
    assert len(norms) == 2
    assert all(found["published"] for found in attacks.values())
    alone = attack_flags(finished, "scav", "--model", finished.model, "--stale", *few)
    assert "--base" in finished(*alone).complaint


def test_settings_are_read_as_in_a_recipe_and_wrong_ones_are_named(es2: Workplace) -> None:
    flags = attack_flags(es2, "scav", "--model", es2.model)
    assert "NAME=VALUE" in es2(*flags, "--settings", "p0").complaint
    assert "'p00'" in es2(*flags, "--settings", "p00=1").complaint


def test_list_names_every_attack_with_its_settings(es2: Workplace) -> None:
    done = es2("list", "attacks", "--json")
    assert done.code == 0, done.err
    found = {entry["name"]: entry for entry in json.loads(done.out)}
    assert set(found) == set(ATTACKS)
    assert (
        found["scav"]["threat"] == "residual stream" and found["gcg"]["settings"]["top_k"] == "256"
    )
    assert "soft_prompt" in es2("list", "attacks").out


def test_a_package_brings_a_defence_that_recipes_and_the_list_know(
    es2: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(__file__).parents[2] / "examples" / "custom_defence.py"
    (es2.path / "their_package.py").write_text(source.read_text())
    info = es2.path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    points = "[es2.defences]\ndeeper = their_package:Deeper\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(es2.path))
    monkeypatch.setattr(DEFENCES, "_known", dict(DEFENCES))
    monkeypatch.setattr(DEFENCES, "_looked", False)
    done = es2("list", "defences", "--json")
    assert done.code == 0, done.err
    found = {entry["name"]: entry for entry in json.loads(done.out)}
    assert found["deeper"]["settings"] == {"keep": "10.0"} and "Qi" in found["deeper"]["source"]
    assert {"es2", "es2_paper", "es2+safety_sft", "dpl", "lat"} < set(found)
    out = es2.path / "deeper"
    done = es2("harden", *es2.harden_flags("deeper"), "--settings", "keep=1.5", "--out", out)
    assert done.code == 0, done.err
    assert "keep: 1.5" in (out / "config.yaml").read_text()
    assert (out / "adapter" / "adapter_config.json").is_file()


def test_attack_goes_on_only_with_its_own_settings(es2: Workplace) -> None:
    out = es2.path / "direct"
    flags = attack_flags(es2, "direct", "--model", es2.model, "--limit", 2, "--out", out)
    assert es2(*flags).code == 0
    kept = contents(out)
    other = es2(*flags, "--resume", "--max-new-tokens", 5)
    assert "other settings" in other.complaint
    assert contents(out) == kept


def test_attack_finds_the_base_of_an_adapter(finished: Workplace) -> None:
    adapter = finished.path / "run" / "adapter"
    done = finished(*attack_flags(finished, "direct", "--model", adapter, "--limit", 2, "--json"))
    assert done.code == 0, done.err
    assert json.loads(done.out)["defences"]["model"]["attacks"]["direct"]["dsr"]["judged"]["n"] == 2
