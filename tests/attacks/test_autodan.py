"""The genetic algorithm's parts, and that breeding lowers the loss."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from es2.attacks import AutoDan, Victim
from es2.attacks.autodan import (
    PLACE,
    answered,
    by_probe,
    by_target,
    cross,
    filled,
    mutated,
    parents,
    prototypes,
    reworded,
    sentences,
    synonyms_of,
    word_scores,
)
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.models.activations import capture
from es2.models.loading import ChatModel
from es2.separation.probe import Probe
from tiny import PROMPTS

Shared = Callable[[str], ChatModel]
TEXTS = st.sampled_from(prototypes())
ASKED = Prompt(
    "Why is the sky blue", True, target="Why", category="", borderline=False, id="0", source="tests"
)


def test_every_prototype_has_one_place_and_words_to_change() -> None:
    for text in prototypes():
        assert text.count(PLACE) == 1
        assert " ".join(sentences(text)) == text
        assert sum(bool(synonyms_of(word.strip(".,").lower())) for word in text.split()) >= 8


@given(one=TEXTS, two=TEXTS, points=st.integers(1, 9), seed=st.integers(0, 99))
def test_crossing_keeps_all_sentences_and_the_places(
    one: str, two: str, points: int, seed: int
) -> None:
    left, right = cross(one, two, points, random.Random(seed))
    assert left.count(PLACE) == right.count(PLACE) == 1
    assert Counter([*sentences(left), *sentences(right)]) == Counter(
        [*sentences(one), *sentences(two)]
    )


def test_crossing_exchanges_something_where_the_published_code_does_not() -> None:
    one, two = (f"{a}. {b}. {PLACE} {c}." for a, b, c in ("ABC", "XYZ"))
    found = {cross(one, two, 5, random.Random(seed)) for seed in range(20)}
    assert len(found) > 1
    assert cross(one, two, 5, random.Random(0), paper_exact=True) == (one, two)


@given(text=TEXTS, rate=st.floats(0, 1), seed=st.integers(0, 99))
def test_words_change_to_synonyms_and_nothing_else_changes(
    text: str, rate: float, seed: int
) -> None:
    new = mutated(text, rate, random.Random(seed))
    assert new.count(PLACE) == 1
    assert mutated(text, 0.0, random.Random(seed)) == text
    if rate == 1.0:
        assert new != text


def test_the_published_code_may_lose_the_place() -> None:
    text = f"Say: {PLACE} now."
    assert PLACE not in mutated(text, 1.0, random.Random(0), paper_exact=True)


def test_scores_are_mean_over_texts_and_averaged_with_what_they_were() -> None:
    scores = word_scores(["The answer.", "The answer is a reply."], [1.0, 3.0], {"reply": -1.0})
    assert scores == {"answer": -2.0, "reply": -2.0}
    assert word_scores([], [], {"task": -4.0}) == {"task": -4.0}


def test_better_words_win_and_unseen_ones_are_average() -> None:
    known = {"answer": -9.0, "reply": -1.0, "task": -5.0}
    drawn = Counter(reworded("answer", known, random.Random(s)) for s in range(300))
    assert drawn["reply"] > 250 and drawn["answer"] < 5
    # `response` has never been seen: as published it would beat the word known to be good.
    exact = Counter(reworded("answer", known, random.Random(s), True) for s in range(300))
    assert exact["response"] > exact["reply"]
    assert reworded("Answer it", known, random.Random(0)).split()[0].istitle()


def test_parents_are_drawn_by_their_loss() -> None:
    drawn = Counter(parents(["a", "b"], [0.0, 1.0], 4000, random.Random(0)))
    assert drawn["a"] / drawn["b"] == pytest.approx(2.718, rel=0.15)


def test_losses_are_those_of_each_text_alone(chat: ChatModel) -> None:
    texts = [filled(text, "Name three rivers") for text in prototypes()[:4]]
    target = chat.tokenizer("Why", add_special_tokens=False)["input_ids"]
    slow = []
    for text in texts:
        row = chat.template.encode(text)
        with torch.no_grad():
            scores = chat.inner(input_ids=torch.tensor([[*row, *target]])).logits[0]
        wanted = torch.tensor(target)
        loss = torch.nn.functional.cross_entropy(scores[len(row) - 1 : -1], wanted)
        slow.append(float(loss))
    found = by_target(chat, target, texts)
    assert found == pytest.approx(slow, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("paper_exact", [False, True])
def test_breeding_never_loses_its_best(shared: Shared, paper_exact: bool) -> None:
    attack = AutoDan(steps=8, population=24, stop=False, paper_exact=paper_exact, max_new_tokens=4)
    ((found,),) = attack.run(Victim(shared("llama"), FitPrompts([], [], [], [])), [ASKED])
    assert len(found.losses) == found.budget.steps == 8
    assert all(later <= earlier for earlier, later in pairwise(found.losses))
    assert found.losses[-1] < found.losses[0]
    if not paper_exact:
        assert ASKED.text in str(found.details["asked"])


def test_the_probes_guide_is_the_product_of_harm_and_distance(chat: ChatModel) -> None:
    texts = [filled(text, ASKED.text) for text in prototypes()[:3]]
    random = torch.Generator().manual_seed(0)
    probe = Probe(torch.randn(32, generator=random), 0.1, 1.0)
    states = []
    for text in [ASKED.text, *texts]:
        ids = torch.tensor([chat.template.encode(text)])
        with torch.no_grad(), capture(chat.blocks, [chat.depth]) as seen:
            chat.decoder(input_ids=ids)
        states.append(seen[chat.depth][0, -1])
    slow = [
        float(torch.sigmoid(probe.w @ state + probe.b) * (state - states[0]).norm())
        for state in states[1:]
    ]
    found = by_probe(chat, probe, ASKED.text, texts)
    assert [math.exp(loss) for loss in found] == pytest.approx(slow, rel=1e-3)


def test_breeding_by_a_probe_makes_a_text_look_less_harmful(shared: Shared) -> None:
    attack = AutoDan(steps=6, population=16, guide="scav", stop=False, max_new_tokens=4)
    fit = FitPrompts(PROMPTS[:2], PROMPTS[2:4], PROMPTS[:2], PROMPTS[2:4])
    ((found,),) = attack.run(Victim(shared("qwen3"), fit), [ASKED])
    assert all(later <= earlier for earlier, later in pairwise(found.losses))
    assert found.losses[-1] < found.losses[0]


def test_breeding_stops_at_an_answer_without_refusal_strings(shared: Shared) -> None:
    chat = shared("llama")
    assert answered(chat, ASKED.text, 4)
    attack = AutoDan(steps=8, population=8, max_new_tokens=4)
    ((found,),) = attack.run(Victim(chat, FitPrompts([], [], [], [])), [ASKED])
    assert len(found.losses) == 1
