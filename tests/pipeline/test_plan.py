"""Plans: tokens as real runs record them, arithmetic in closed form, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from es2.attacks import Attack, AutoDan, Direct, Gcg, RepE, Scav, SoftPrompt, Victim
from es2.attacks.base import expected_work
from es2.attacks.budget import metered
from es2.config import make_defence
from es2.data.fitting import FitPrompts, Splits
from es2.data.sources import Prompt
from es2.defences.trainer import TrainSettings, attach_lora
from es2.models.loading import ChatModel
from es2.models.shape import Shape, shape_of
from es2.models.work import Work, answering
from es2.pipeline.experiment import Prompts
from es2.pipeline.gpus import GPUS
from es2.pipeline.harden import Guard, harden
from es2.pipeline.lengths import lengths_of
from es2.pipeline.plan import flops, memory, seconds
from es2.pipeline.stages import Counting, Stage, hardening
from large import config_only
from small import AIMED, BORDERLINE, HARMFUL, HARMLESS, LENIENT, Workplace

ROWS = 32
FIT = FitPrompts(HARMFUL[:12], HARMLESS[:12], HARMFUL[12:], HARMLESS[12:])


def prompts(texts: tuple[str, ...], harmful: bool = True) -> list[Prompt]:
    return [Prompt(t, harmful, None, "", False, f"p-{i}", "test") for i, t in enumerate(texts)]


@pytest.mark.parametrize(
    "attack",
    [
        Direct(max_new_tokens=8),
        Scav(max_new_tokens=8, min_accuracy=0.0),
        RepE(max_new_tokens=8, validation=4),
        SoftPrompt(tokens=6, steps=6, checkpoints=2, max_new_tokens=8),
        SoftPrompt(tokens=6, steps=6, checkpoints=2, sharing="universal", fit=6, max_new_tokens=8),
        Gcg(steps=4, width=48, max_new_tokens=8),
        Gcg(steps=4, width=48, positions="turns", merge=3, max_new_tokens=8),
        Gcg(steps=3, width=24, sharing="universal", fit=3, max_new_tokens=8),
        AutoDan(steps=3, population=8, stop=False, max_new_tokens=8),
    ],
    ids=lambda attack: attack.name,
)
def test_an_attack_takes_about_the_tokens_expected(
    attack: Attack, shared: Callable[[str], ChatModel]
) -> None:
    chat, aimed = shared("llama"), prompts(AIMED[:3])
    victim = Victim(chat, FIT)
    _ = victim.states  # read once for all attacks, and counted as a stage of its own
    with metered(chat) as spent:
        attempts = [one for portion in attack.run(victim, aimed) for one in portion]
    lengths, how = lengths_of(chat.name, aimed)
    assert "tokenizer and template" in how
    found = expected_work(attack, lengths, len(aimed), ROWS)
    assert spent.forward_tokens / 2 <= found.tokens <= 2 * spent.forward_tokens
    assert spent.backward_tokens / 2 <= found.graded <= 2 * spent.backward_tokens
    if isinstance(attack, Direct | Scav | AutoDan):  # others' search is in every setting's record
        recorded = sum(one.budget.forward_tokens for one in attempts)
        assert recorded / 2 <= found.tokens <= 2 * recorded


def test_probe_sampling_takes_about_the_tokens_expected_of_both_models(
    shared: Callable[[str], ChatModel],
) -> None:
    chat, aimed = shared("llama"), prompts(AIMED[:1])
    attack = Gcg(steps=3, width=48, draft=shared("qwen2").name, max_new_tokens=8)
    (attempts,) = attack.run(Victim(chat, FIT), aimed)
    lengths, _ = lengths_of(chat.name, aimed)
    found = expected_work(attack, lengths, 1, ROWS)
    recorded = attempts[0].budget.forward_tokens  # the draft's too
    assert recorded / 2 <= found.tokens <= 2 * recorded
    assert found.drafted > found.read


SHORT: dict[str, dict[str, Any]] = {
    "es2": {"kl_threshold": 100.0},
    "es2_paper": {"kl_threshold": 100.0},
    "safety_sft": {"ratio": 2, "answer_tokens": 8},
    "circuit_breakers": {"response_tokens": 8},
    "repbend": {"response_tokens": 8},
    "lat": {"harmful_tokens": 8, "answer_tokens": 8, "iterations": 3},
    "dpl": {"answer_tokens": 8, "reward_steps": 2},
}


LONG = tuple("\n".join(HARMLESS[i:]) for i in range(5))
"""Structured prompts, a dozen times as long as the others."""


@pytest.mark.parametrize(
    ("name", "more", "structured"),
    [
        *((name, {}, ()) for name in SHORT),
        ("es2", {"suffixed": 1.0, "ablated": 1.0}, ()),
        ("es2", {}, LONG),
        ("safety_sft", {}, LONG),
    ],
)
def test_a_defence_takes_about_the_tokens_expected(
    name: str,
    more: dict[str, Any],
    structured: tuple[str, ...],
    tiny: Callable[[str], ChatModel],
    tmp_path: Path,
) -> None:
    chat = tiny("llama")
    defence = make_defence({name: SHORT[name] | more})
    settings = TrainSettings(steps=6, batch_size=4, rank=2, validate_every=3)
    guard = Guard(prompts=4, tokens=6, **LENIENT)
    splits = [prompts(t) for t in (FIT.harmful, FIT.harmless, FIT.held_harmful, FIT.held_harmless)]
    known = Prompts(
        Splits(splits[0], splits[2], prompts(AIMED)),
        Splits(splits[1], splits[3], []),
        Splits([], [], prompts(BORDERLINE)),
        Splits(prompts(structured[1:]), prompts(structured[:1]), []),
        None,
    )
    lengths, _ = lengths_of(chat.name, known.harmful.test)
    counting = Counting(known, lengths, ROWS, lambda text: None)
    work = hardening(defence, settings, guard, counting).work + counting.states(known.fit)
    with metered(chat) as spent:
        harden(
            chat, tmp_path, fit=known.fit, layers=(2, 4), defence=defence, settings=settings,
            guard=guard,
        )  # fmt: skip
    assert spent.forward_tokens / 2 <= work.tokens <= 2 * spent.forward_tokens
    assert spent.backward_tokens / 2 <= work.graded <= 2 * spent.backward_tokens


SMALL = Shape("small", 1000, 800, 4, 8, 16, 32, 20, {"q": 60, "up": 40})


def test_arithmetic_is_that_of_weights_and_tokens() -> None:
    assert flops(Work(read=3), SMALL) == 2 * 800 * 3
    assert flops(Work(graded=3), SMALL) == 4 * 800 * 3
    assert flops(Work(graded=3), SMALL, whole=True) == 6 * 800 * 3
    assert flops(Work(written=3), SMALL) == 2 * 800 * 3 + 2 * 20 * 8 * 3
    assert flops(Work(drafted=3), SMALL, draft=5) == 2 * 5 * 3


def test_writing_takes_the_time_of_reading_the_weights_or_of_launching_kernels() -> None:
    gpu = GPUS["h100"]
    large = replace(SMALL, parameters=10**12)
    passes = Work(passes=10)
    assert seconds(passes, large, gpu, 2, 0.0) == pytest.approx(10 * 2e12 / (3.35e12 * 0.6))
    assert seconds(passes, SMALL, gpu, 2, 0.0) == pytest.approx(10 * 4 * 0.7e-3)
    assert seconds(Work(), SMALL, gpu, 2, 989e12) == pytest.approx(1 / 0.4)
    assert seconds(Work(), SMALL, gpu, 4, 67e12) == pytest.approx(1 / 0.4)


def test_memory_is_weights_and_what_training_adds() -> None:
    assert memory(Stage("ask", Work(), models=2), SMALL, 2) == 2 * 1000 * 2
    lora = Stage("train", Work(), train=TrainSettings(rank=3))
    assert memory(lora, SMALL, 2) == 2000 + 3 * 100 * 20
    some = Stage("train", Work(), train=TrainSettings(rank=3, targets=("up",)))
    assert memory(some, SMALL, 2) == 2000 + 3 * 40 * 20
    whole = Stage("train", Work(), train=TrainSettings(rank=0))
    assert memory(whole, SMALL, 4) == 4000 + 800 * 16
    batch = Stage("train", Work(batch=5, scored=2), train=TrainSettings(rank=3))
    kept = 5 * 4 * (10 * 8 + 4 * 16) * 2
    assert memory(batch, SMALL, 2) == memory(lora, SMALL, 2) + kept + 2 * 20 * 16


def test_one_batch_after_another_adds_tokens_but_not_memory() -> None:
    once = answering(10, own=6, new=4, rows=8, head=2)
    assert (once.read, once.written, once.passes, once.held) == (62, 40, 8, 82)
    assert (once + once).tokens == once.times(2).tokens == 2 * once.tokens
    assert (once + once).held == once.times(2).held == once.held


def test_a_shape_is_the_loaded_models(shared: Callable[[str], ChatModel], family: str) -> None:
    chat = shared(family)
    found = shape_of(chat.name)
    assert found.parameters == sum(p.numel() for p in chat.inner.parameters())
    assert found.blocks == sum(p.numel() for p in chat.blocks.parameters())
    assert found.layers == chat.depth


@pytest.mark.parametrize("count", [0, 2])
def test_a_loras_parameters_are_those_of_the_one_attached(own_chat: ChatModel, count: int) -> None:
    shape = shape_of(own_chat.name)
    targets = tuple(shape.widths)[:count]
    tuned = attach_lora(own_chat, TrainSettings(rank=3, targets=targets), ())
    trained = sum(p.numel() for p in tuned.inner.parameters() if p.requires_grad)
    assert trained == 3 * shape.lora(targets)


def test_a_lora_where_no_map_is_stops_the_plan(place: Workplace) -> None:
    done = place("run", place.recipe(train={"targets": ["v"]}), "--dry-run")
    assert done.code == 2
    assert "train.targets: no linear module is called 'v'" in done.err


def test_a_run_is_planned_and_nothing_is_written(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    es2 = place
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest's own processes have one
    before = sorted(es2.path.rglob("*"))
    done = es2("run", es2.recipe(), "--dry-run", "--gpu", "rtx4090", "--devices", "2")
    assert done.code == 0, done.err
    assert {*es2.path.rglob("*")} - {*before} == {es2.path / "recipe.yaml"}
    heads = ("generated", "with gradient", "GB a device")  # whole, though this is no terminal
    noted = ("2 x RTX 4090", "factor of about two", "memory,")
    for said in ("harden: es2", "attack: scav", *noted, *heads):
        assert said in done.out
    record = json.loads(es2("run", es2.recipe(), "--dry-run", "--json").out)
    assert record["total"]["read"] == sum(row["read"] for row in record["stages"])
    assert record["warnings"] == []


def test_what_does_not_fit_is_said_with_what_to_do(place: Workplace, tmp_path: Path) -> None:
    es2 = place
    folder = config_only(tmp_path / "config", "llama3_8b")
    recipe = es2.recipe(model=str(folder))
    done = es2("run", recipe, "--dry-run", "--gpu", "rtx4090")
    assert done.code == 0, done.err
    assert "does not fit" in done.out and "--device-map auto" in done.out
    assert "4 characters a token" in done.out
    spread = json.loads(
        es2("run", recipe, "--dry-run", "--gpu", "rtx4090", "--devices", "4", "--json").out
    )
    assert spread["warnings"] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpu", "abacus"], "unknown GPU 'abacus'; there are a100-40gb"),
        (["--devices", "0"], "--devices is 0"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(place: Workplace, flags: list[str], said: str) -> None:
    done = place("run", place.recipe(), "--dry-run", *flags)
    assert said in done.complaint


def test_a_model_without_a_config_in_reach_is_one_line(place: Workplace) -> None:
    done = place("run", place.recipe(model="nobody/nothing"), "--dry-run")
    assert "nobody/nothing: no config to plan with" in done.complaint
