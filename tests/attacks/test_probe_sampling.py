"""Probe sampling: who agrees, and what is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from es2.attacks import Gcg, Victim
from es2.attacks.probe_sampling import agreement, narrowed
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.models.loading import ChatModel
from tiny import PROMPTS

Shared = Callable[[str], ChatModel]
TRIED = [[index] for index in range(64)]


@given(st.permutations(range(9)), st.permutations(range(9)))
def test_agreement_is_spearmans_correlation_on_a_scale_from_0_to_1(
    one: list[int], two: list[int]
) -> None:
    expected = (spearmanr(one, two).statistic + 1) / 2
    found = agreement(torch.tensor(one).float(), torch.tensor(two).float())
    assert found == pytest.approx(expected, abs=1e-6)


class Reader:
    """Reads suffixes whose loss is their one token, and counts them."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, suffixes: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        tokens = [suffix[0] for suffix in suffixes]
        self.seen += tokens
        return torch.tensor(tokens).float(), torch.tensor([token == 0 for token in tokens])


def test_a_draft_that_agrees_leaves_one_candidate_besides_the_probe_set() -> None:
    read = Reader()
    kept, (losses, said) = narrowed(
        TRIED, torch.arange(64).float(), read, torch.Generator().manual_seed(0)
    )
    assert len(read.seen) == len(set(read.seen)) == len(kept) == 64 // 16 + 1
    assert min(losses.tolist()) == 0
    assert bool(said[losses.argmin()])
    assert [[int(loss)] for loss in losses] == kept


def test_a_draft_that_says_the_opposite_has_an_eighth_read() -> None:
    read = Reader()
    narrowed(TRIED, -torch.arange(64).float(), read, torch.Generator().manual_seed(0))
    assert len(read.seen) == 64 // 16 + 64 // 8


def test_gcg_with_a_draft_of_another_family_reads_less_and_still_lowers_the_loss(
    shared: Shared, tiny_folder: Callable[[str], Path]
) -> None:
    chat = shared("llama")
    plain = Gcg(steps=6, width=48, top_k=32, start=" x x x x", max_new_tokens=3, stop=False)
    asked = [Prompt(PROMPTS[0], True, "Why", "", False, "0", "tests")]
    victim = Victim(chat, FitPrompts([], [], [], []))
    ((one, _),) = plain.run(victim, asked)
    ((two, _),) = replace(plain, draft=str(tiny_folder("qwen2"))).run(victim, asked)
    assert min(two.losses) < two.losses[0]
    assert two.details["candidates"] == pytest.approx(one.details["candidates"], rel=0.3)
    assert two.budget.flops < one.budget.flops * 1.5  # the draft is as large as the model
