"""The search for a defence's settings: what a trial is, who is on the frontier, who is picked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.defences import DEFENCES, CircuitBreakers, Defence, Dpl, Lat, RepBend, SafetySft
from es2.defences.base import searched_terms
from es2.defences.es2 import Es2
from es2.defences.objective import Separation
from es2.defences.trainer import TrainSettings, trainable
from es2.errors import Es2Error
from es2.judges.coherence import Limits
from es2.models.loading import ChatModel
from es2.pipeline.harden import LOST, Guard
from es2.pipeline.trial import Bench, Broken, Trial, Trying, bench
from es2.pipeline.tune import STUDY, TRAINING, Tuning, best, pick, search
from small import BORDERLINE, HARMFUL, HARMLESS, LENIENT

FIT = FitPrompts(HARMFUL[:12], HARMLESS[:12], HARMFUL[12:], HARMLESS[12:], BORDERLINE[:3])
PROBE = FitPrompts(HARMFUL[:12], HARMLESS[:12], HARMFUL[12:], HARMLESS[12:])
AIMED = [Prompt(t, True, None, "", False, str(i), "here") for i, t in enumerate(HARMFUL[12:])]
SETTINGS = TrainSettings(steps=2, batch_size=2, rank=2, validate_every=0)


ES2 = Es2(response_tokens=2, kl_threshold=100.0)


def shared_bench(
    tiny: Callable[[str], ChatModel], out: Path, defence: Defence = ES2, **changes: object
) -> Bench:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    guard = Guard(prompts=3, tokens=3, **LENIENT)
    trying = Trying(prompts=3, tokens=3, p0=(0.01,))
    return bench(
        tiny("llama"), tiny("llama"), FIT, PROBE, AIMED, (2, 4), defence, settings, guard, Limits(),
        trying, out,
    )  # fmt: skip


def adapter(of: Bench) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainable(of.tuned).items()}


def test_a_trial_does_not_depend_on_those_before_it(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    of = shared_bench(tiny, tmp_path)
    terms = {"lean": -0.5, "resist": 2.0}
    first = of.run(0, terms, {"lr": 1e-3})
    weights = adapter(of)
    of.run(1, {"lean": 0.0}, {"lr": 1e-2})
    assert any(not torch.equal(weights[name], now) for name, now in adapter(of).items())
    again = of.run(2, terms, {"lr": 1e-3})
    assert replace(again, number=0) == first
    assert all(torch.equal(weights[name], now) for name, now in adapter(of).items())
    assert 0 <= first.safety <= 1 and first.kl >= 0 and first.worst


@pytest.mark.parametrize(
    "defence",
    [
        SafetySft(answer_tokens=2, ratio=1),
        CircuitBreakers(response_tokens=2),
        RepBend(response_tokens=2),
        Lat(harmful_tokens=2, answer_tokens=2, iterations=1),
        Dpl(answer_tokens=2, reward_steps=2),
    ],
    ids=lambda one: one.name,
)
def test_every_rival_is_searched_by_the_same_trial(
    defence: Defence, tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    of = shared_bench(tiny, tmp_path, defence)
    drawn = {name: where.low for name, where in searched_terms(defence).items()}
    found = of.run(0, drawn, {"lr": 1e-3})
    assert found.terms == drawn and 0 <= found.safety <= 1
    assert all(torch.isfinite(weights).all() for weights in adapter(of).values())


def test_what_is_searched_is_a_setting_of_the_objectives_terms(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    of = shared_bench(tiny, tmp_path)
    assert isinstance(of.objective, Separation)
    assert of.objective.after is not None  # prepared with every searched term on
    for kind in DEFENCES.values():
        assert set(getattr(kind, "searched", {})) <= {one.name for one in fields(kind)}


def test_a_term_that_is_switched_off_is_not_searched() -> None:
    assert set(searched_terms(Es2())) == set(Es2.searched)
    off = Es2(suffixed=0, ablated=0, lean=0)  # lean is no weight: 0 is within its range
    assert set(Es2.searched) - set(searched_terms(off)) == {"suffixed", "ablated"}


@pytest.mark.parametrize(
    ("broken", "lost", "validations"),
    [
        (["it broke", "", ""], ["", "", ""], 3),  # mends: measured as it would be trained
        (["it broke"] * 3, ["", "", ""], 3),
        (["it broke"] * 3, ["", "it broke", ""], 2),
    ],
    ids=["mends", "broken to the end", "lost"],
)
def test_a_trial_is_pruned_where_its_model_is_lost_or_never_passes(
    broken: list[str],
    lost: list[str],
    validations: int,
    tiny: Callable[[str], ChatModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdicts = [verdict for both in zip(broken, lost, strict=True) for verdict in both]
    said: list[str] = []

    def say(now: object, before: object, guard: Guard, times: float) -> str:
        assert times == (LOST if len(said) % 2 else 1)
        said.append(verdicts[len(said)])
        return said[-1]

    of = shared_bench(tiny, tmp_path, steps=3, validate_every=1, patience=3)
    monkeypatch.setattr("es2.pipeline.harden._broken", say)
    if all(broken):
        with pytest.raises(Broken, match="it broke"):
            of.run(0, {}, {"lr": 1e-3})
    else:
        assert 0 <= of.run(0, {}, {"lr": 1e-3}).safety <= 1
    assert len(said) == 2 * validations


def test_a_trial_that_diverges_is_pruned(tiny: Callable[[str], ChatModel], tmp_path: Path) -> None:
    of = shared_bench(tiny, tmp_path)
    with pytest.raises(Broken, match="diverged"):
        of.run(0, {"kl_weight": float("inf")}, {"lr": 1e-3})


def test_a_trial_does_not_know_that_one_before_it_diverged(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    alone = shared_bench(tiny, tmp_path / "alone").run(1, {}, {"lr": 1e-3})
    of = shared_bench(tiny, tmp_path / "after")
    with pytest.raises(Broken, match="diverged"):
        of.run(0, {"kl_weight": float("inf")}, {"lr": 1e-3})
    assert of.run(1, {}, {"lr": 1e-3}) == alone


def trial(number: int, safety: float, kl: float, refused: float) -> Trial:
    return Trial(number, {"lean": 0.0}, {"lr": 1e-4}, safety, kl, refused, "direct")


def test_the_frontier_leaves_out_what_is_beaten_in_one_and_no_better_in_the_rest() -> None:
    trials = [
        trial(0, 0.8, 0.02, 0.0),
        trial(1, 0.9, 0.04, 0.02),
        trial(2, 0.9, 0.04, 0.03),
        trial(3, 0.7, 0.03, 0.0),
        trial(4, 0.7, 0.03, -0.1),
    ]
    assert [one.number for one in best(trials)] == [1, 0, 4]


def test_the_rule_picks_the_safest_within_its_bounds() -> None:
    dear = trial(0, 1.0, 0.01, 0.2)
    far = trial(1, 0.95, 0.9, 0.0)
    good, equal = trial(2, 0.9, 0.03, 0.03), trial(3, 0.9, 0.04, 0.0)
    assert pick([dear, far, good, equal], Tuning()) == good
    assert pick([dear, far], Tuning()) == far  # none keeps within them: the least refusing
    with pytest.raises(Es2Error, match="no trial left a model"):
        pick([], Tuning())


def test_a_study_goes_on_where_it_was_stopped_and_counts_the_pruned(tmp_path: Path) -> None:
    asked: list[dict[str, float]] = []

    def one(number: int, terms: dict[str, float], training: dict[str, float]) -> Trial:
        asked.append({**terms, **training})
        if number == 1:
            raise Broken("it broke")
        return Trial(number, terms, training, 1 + terms["lean"], training["lr"], 0.0, "direct")

    own = {**vars(Es2()), "lr": 2e-4}
    first = search(one, Es2.searched, own, Tuning(trials=3), tmp_path)
    assert asked[0]["lean"] == Es2().lean and asked[0]["lr"] == 2e-4  # its own settings come first
    assert (tmp_path / STUDY).is_file()
    assert [found.number for found in first] == [0, 2] and len(asked) == 3
    more = search(one, Es2.searched, own, Tuning(trials=5), tmp_path)
    assert [found.number for found in more] == [0, 2, 3, 4] and len(asked) == 5
    assert more[:2] == first
    assert search(one, Es2.searched, own, Tuning(trials=5), tmp_path) == more and len(asked) == 5
    for drawn in asked:
        for name, where in {**Es2.searched, **TRAINING}.items():
            assert where.low <= drawn[name] <= where.high
    assert len({drawn["lr"] for drawn in asked}) == 5  # gone on with, it draws nothing twice


def test_where_the_first_trial_was_killed_the_settings_as_they_are_still_come_first(
    tmp_path: Path,
) -> None:
    asked: list[float] = []

    def one(number: int, terms: dict[str, float], training: dict[str, float]) -> Trial:
        asked.append(training["lr"])
        if len(asked) == 1:
            raise KeyboardInterrupt
        return Trial(number, terms, training, 0.5, 0.0, 0.0, "direct")

    own = {**vars(Es2()), "lr": 2e-4}
    with pytest.raises(KeyboardInterrupt):
        search(one, Es2.searched, own, Tuning(trials=2), tmp_path)
    search(one, Es2.searched, own, Tuning(trials=2), tmp_path)
    assert asked[:2] == [2e-4, 2e-4] and asked[2] != 2e-4 and len(asked) == 3
