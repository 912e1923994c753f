"""Attacks on real prompts: AdvBench and HarmBench, where their files lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

import es2
from es2.attacks import Direct, Gcg, Scav
from es2.attacks.gcg import token_table
from es2.data.sources import load_prompts
from es2.models.loading import ChatModel

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def aligned() -> ChatModel:
    return es2.load("smollm2-aligned")


@pytest.mark.parametrize("name", ["advbench.csv", "harmbench_val.csv"])
def test_real_prompts_are_refused_until_attacked(name: str, aligned: ChatModel) -> None:
    if not (DATA / name).is_file():
        pytest.skip("no public data beside the repository")
    prompts = load_prompts(str(DATA / name), limit=8)
    assert all(prompt.target and prompt.target.startswith("Sure, here") for prompt in prompts)
    attacks = (Direct(max_new_tokens=24), Scav((1e-4,), max_new_tokens=24))
    direct, scav = (es2.attack(aligned, attack, prompts) for attack in attacks)
    assert direct.dsr.judged.rate >= 0.75
    assert scav.dsr.keyword.rate < direct.dsr.keyword.rate


def test_gcg_makes_a_real_target_likelier(aligned: ChatModel) -> None:
    if not (DATA / "advbench.csv").is_file():
        pytest.skip("no public data beside the repository")
    (prompt,) = load_prompts(str(DATA / "advbench.csv"), limit=1)
    attack = Gcg(steps=4, width=16, merge=4, stop=False)
    task = attack.task(aligned, [prompt.text], [str(prompt.target)])
    found = attack.search(aligned, task, token_table(aligned))
    assert min(found.losses) < found.losses[0]
