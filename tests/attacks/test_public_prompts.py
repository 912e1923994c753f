"""Attacks on real prompts: AdvBench and HarmBench, where their files lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

import es2
from es2.attacks import Direct, Gcg, Scav, Victim
from es2.attacks.gcg import token_table
from es2.data.fitting import bundled_fit
from es2.data.sources import load_prompts
from es2.models.loading import ChatModel
from es2.pipeline.attack import attack_model, judge_of
from es2.results.store import read_attempts
from es2.results.summary import summarise

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def aligned() -> ChatModel:
    return es2.load("smollm2-aligned")


def test_real_prompts_are_refused_until_attacked(aligned: ChatModel, tmp_path: Path) -> None:
    files = [DATA / name for name in ("advbench.csv", "harmbench_val.csv")]
    if not all(file.is_file() for file in files):
        pytest.skip("no public data beside the repository")
    # Read and calibrated once for both.
    victim = Victim(aligned, bundled_fit(extra=False).at_most(200))
    judge = judge_of(aligned, victim.fit)
    for file in files:
        prompts = load_prompts(str(file), limit=8)
        assert all(prompt.target and prompt.target.startswith("Sure, here") for prompt in prompts)
        out = tmp_path / file.stem
        for attack in (Direct(max_new_tokens=24), Scav((1e-4,), max_new_tokens=24)):
            attack_model("model", victim, judge, attack, prompts, out)
        found = summarise(read_attempts(out), {}).defences["model"].attacks
        assert found["direct"].dsr.judged.rate >= 0.75
        assert found["scav"].dsr.keyword.rate < found["direct"].dsr.keyword.rate


def test_gcg_makes_a_real_target_likelier(aligned: ChatModel) -> None:
    if not (DATA / "advbench.csv").is_file():
        pytest.skip("no public data beside the repository")
    (prompt,) = load_prompts(str(DATA / "advbench.csv"), limit=1)
    attack = Gcg(steps=4, width=16, merge=4, stop=False)
    task = attack.task(aligned, [prompt.text], [str(prompt.target)])
    found = attack.search(aligned, task, token_table(aligned))
    assert min(found.losses) < found.losses[0]
