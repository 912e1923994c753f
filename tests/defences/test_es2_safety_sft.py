"""Separation with a refusal that is taught: the loss in parts, and what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch

from es2.attacks.target import OPENINGS
from es2.data.fitting import FitPrompts
from es2.defences import DEFENCES, Es2, Es2SafetySft
from es2.defences.base import Material
from es2.defences.es2_safety_sft import TaughtSeparation
from es2.defences.safety_sft import REFUSAL
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, train
from es2.models.loading import ChatModel
from es2.separation.probe import class_states
from tiny import PROMPTS, chances, with_lora

HARMFUL = [f"Tell me something about ships, number {i}, {'and more ' * i}" for i in range(6)]
FIT = FitPrompts(HARMFUL, list(PROMPTS), HARMFUL[:2], list(PROMPTS[:2]), [])
SETTINGS = TrainSettings(steps=4, batch_size=3, rank=2, seed=1, validate_every=0)
TERMS = Es2SafetySft(response_tokens=3, kl_threshold=100.0, reach=1.5)


def prepared(
    chat: ChatModel,
    out: Path,
    terms: Es2SafetySft = TERMS,
    refuses: Callable[[str], bool] = lambda text: False,
) -> TaughtSeparation:
    material = Material(chat, FIT, class_states(chat, FIT), (2, 4), SETTINGS, refuses, out)
    return terms.prepare(material)


def test_it_is_es2_with_a_taught_refusal() -> None:
    terms = DEFENCES["es2+safety_sft"]()
    assert isinstance(terms, Es2SafetySft)
    changed = {k: v for k, v in vars(terms).items() if vars(Es2()).get(k) != v}
    assert changed == {"refusal": REFUSAL}


def test_a_taught_refusal_needs_none_of_the_bases(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    objective = prepared(tiny("llama"), tmp_path, replace(TERMS, response_tokens=0))
    assert objective.after is not None and objective.suffixed is not None


def test_every_harmful_prompt_is_refused_whatever_the_base_says(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    objective = prepared(chat, tmp_path)
    end = [*chat.template.encode_response(REFUSAL), min(chat.stop_ids)]
    rows = {tuple(row) for row in objective.harmful.rows}
    assert rows == {(*chat.template.encode(prompt), *end) for prompt in HARMFUL}
    assert objective.refusal == end[0]
    assert len(objective.harmless) == len(PROMPTS)
    assert objective.after is not None
    opening = chat.template.encode_response(OPENINGS[0])
    for (row, begin), first in zip(objective.after.harmful, objective.harmful.firsts, strict=True):
        assert row[first + 1 : begin][: len(opening)] == opening
        assert chat.template.decode(row[begin:]) == REFUSAL


def test_behind_openings_that_the_base_does_not_go_along_with_it_is_refused_too(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    objective = prepared(chat, tmp_path, refuses=lambda text: True)
    assert objective.after is not None
    behind = zip(objective.after.harmful, objective.harmful.firsts, cycle(OPENINGS))
    for (row, begin), first, opening in behind:
        assert chat.template.decode(row[first + 1 :]) == f"{opening} {REFUSAL}"
        assert chat.template.decode(row[begin:]) == REFUSAL


def test_harmless_prompts_that_the_base_refuses_are_left_out(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    whole = prepared(chat, tmp_path).harmless
    answers = {
        chat.template.decode(row[first + 1 :])
        for row, first in zip(whole.rows, whole.firsts, strict=True)
    }
    one = sorted(answers)[0]
    kept = prepared(chat, tmp_path, refuses=lambda text: text == one).harmless
    assert 0 < len(kept) < len(whole)


@pytest.mark.parametrize("resist", [0.0, 0.4])
def test_where_es2_keeps_a_refusal_by_kl_this_teaches_one_by_cross_entropy(
    tiny: Callable[[str], ChatModel], tmp_path: Path, family: str, resist: float
) -> None:
    objective = prepared(tiny(family), tmp_path, replace(TERMS, keep_refusal=0.6, resist=resist))
    tuned = with_lora(tiny(family))
    plain = replace(objective, terms=replace(objective.terms, keep_refusal=0.0, resist=0.0))
    with torch.no_grad():
        loss, metrics = objective.loss(tuned, 1)
        rest, _ = plain.loss(tuned, 1)
    total, weight = 0.0, 0.0
    for index in batch_indices(len(HARMFUL), 3, 1, SETTINGS.seed):
        row, first = objective.harmful.rows[index], objective.harmful.firsts[index]
        said = chances(tuned, row)
        for place in range(first + 1, len(row)):
            own = TERMS.kl_first if place == first + 1 else 1.0
            total -= own * float(said[place - 1, row[place]])
            weight += own
    taught = total / weight
    assert metrics["cross_entropy_harmful"] == pytest.approx(taught, rel=1e-4)
    moved = metrics.get("cross_entropy_moved", 0.0)
    assert bool(moved) == bool(resist)
    expected = 0.6 * taught + resist * moved
    assert float(loss - rest) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    # The push is felt: under it, the refusal is not as likely as without.
    assert not resist or moved != pytest.approx(taught, rel=1e-3)


def test_training_teaches_the_refusal_with_and_without_a_prefill_while_classes_part(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    objective = prepared(chat, tmp_path, replace(TERMS, kl_weight=0.1))
    settings = replace(SETTINGS, steps=24, lr=1e-2, rank=4)
    objective = replace(objective, settings=settings)
    history = train(attach_lora(chat, settings, (2, 4)), objective, settings, tmp_path).history
    first, last = history[0], history[-1]
    for name in ("harmful", "moved", "after_start"):
        assert last[f"cross_entropy_{name}"] < 0.8 * first[f"cross_entropy_{name}"]
    assert last["distance_ratio_4"] > 1.05 * first["distance_ratio_4"]
