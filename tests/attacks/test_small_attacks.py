"""Prefill, best of N, adapter strip, and what attacks spend."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from es2.attacks import AdapterStrip, BestOfN, Direct, Prefill, Victim
from es2.attacks.adapter_strip import changes, rank, turned_down
from es2.attacks.best_of_n import augment, scramble
from es2.attacks.budget import metered
from es2.attacks.target import AFFIRMATION, affirmation_loss, read_targets
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.generation import Sampling, generate
from es2.models.loading import ChatModel
from tiny import PROMPTS, encode, with_lora

Shared = Callable[[str], ChatModel]
NOTHING = FitPrompts([], [], [], [])


def asked(target: str | None) -> list[Prompt]:
    return [
        Prompt(text, True, target=target, category="", borderline=False, id=str(i), source="tests")
        for i, text in enumerate(PROMPTS)
    ]


def test_prefill_goes_on_from_the_first_words_of_the_target(chat: ChatModel) -> None:
    attack = Prefill(lengths=(2, None), max_new_tokens=4)
    for found, start in zip(
        attack.run(Victim(chat, NOTHING), asked("Sure, here is how")),
        ("Sure, here", "Sure, here is how"),
        strict=True,
    ):
        for one, prompt in zip(found, PROMPTS, strict=True):
            (added,) = generate(chat, [chat.template.encode(prompt, start)], 4)
            given = chat.tokenizer(start, add_special_tokens=False)["input_ids"]
            assert one.completion == chat.template.decode([*given, *added])
            assert one.details == {"start": start}


def test_prefill_without_a_target_affirms(shared: Shared) -> None:
    (found,) = Prefill(lengths=(None,), max_new_tokens=1).run(
        Victim(shared("llama"), NOTHING), asked(None)
    )
    assert all(one.completion.startswith(AFFIRMATION) for one in found)


def test_noise_keeps_a_words_letters_and_the_ends_of_scrambled_ones() -> None:
    chance = random.Random(0)
    for word in ("harbour", "lighthouse", "bread"):
        mixed = scramble(word, chance)
        assert (mixed[0], mixed[-1], sorted(mixed)) == (word[0], word[-1], sorted(word))
    text = "Name three rivers of Europe and say where each one ends"
    assert augment(text, 0.0, chance) == text
    noisy = augment(text, 0.4, chance)
    assert noisy != text and len(noisy) == len(text) and noisy.count(" ") >= text.count(" ") - 2


def test_best_of_n_asks_as_it_is_first_and_never_twice_the_same(shared: Shared) -> None:
    attack = BestOfN(tries=3, max_new_tokens=4)
    victim = Victim(shared("llama"), NOTHING)
    found = list(attack.run(victim, asked(None)))
    (direct,) = Direct(max_new_tokens=4).run(victim, asked(None))
    assert [one.completion for one in found[0]] == [one.completion for one in direct]
    for index, prompt in enumerate(PROMPTS):
        texts = [setting[index].details["asked"] for setting in found]
        assert texts[0] == prompt
        assert len(prompt) < 20 or len(set(texts)) == 4


def test_a_sample_depends_on_the_seed_and_the_row_and_not_on_the_batch(chat: ChatModel) -> None:
    rows = encode(chat)
    together = generate(chat, rows, 8, sampling=Sampling(seed=4))
    alone = [generate(chat, [row], 8, sampling=Sampling(seed=4))[0] for row in rows]
    assert together == alone
    assert generate(chat, rows, 8, sampling=Sampling(seed=5)) != together


def test_samples_are_drawn_with_the_models_probabilities(shared: Shared) -> None:
    chat = shared("llama")
    row = chat.template.encode("Hi")
    with torch.no_grad():
        scores = chat.inner(input_ids=torch.tensor([row])).logits[0, -1]
    expected = scores.softmax(-1)
    drawn = [generate(chat, [row], 1, sampling=Sampling(seed=seed))[0][:1] for seed in range(600)]
    likeliest = int(expected.argmax())
    share = sum(tokens == [likeliest] for tokens in drawn) / len(drawn)
    p = float(expected[likeliest])
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / len(drawn)) ** 0.5 + 1e-3)


def test_the_targets_loss_is_the_models_own(chat: ChatModel) -> None:
    targets = [chat.tokenizer(AFFIRMATION, add_special_tokens=False)["input_ids"]] * len(PROMPTS)
    heads = encode(chat)
    slow = []
    for head, target in zip(heads, targets, strict=True):
        ids = torch.tensor([[*head, *target]])
        with torch.no_grad():
            scores = chat.inner(input_ids=ids).logits[0, len(head) - 1 : -1]
        slow.append(torch.nn.functional.cross_entropy(scores, torch.tensor(target)))
    found = read_targets(chat, heads, targets).losses.detach()
    torch.testing.assert_close(found, torch.stack(slow), rtol=1e-3, atol=1e-4)
    mean = affirmation_loss(chat, heads)
    assert mean == pytest.approx(float(torch.stack(slow).mean()), rel=1e-3)


def test_an_adapter_is_found_by_subtraction_and_taken_away(tiny: Shared) -> None:
    base, tuned = tiny("llama"), with_lora(tiny("llama"), scale=0.3)
    merged = tuned.model.merge_and_unload()  # type: ignore[operator]
    defended = ChatModel("defended", merged, tuned.tokenizer)
    added = changes(base, defended)
    assert added and all(change.ndim == 2 for change in added.values())
    assert max(rank(change, 0.9999) for change in added.values()) <= 2
    before, after = generate(base, encode(base), 6), generate(defended, encode(defended), 6)
    assert before != after
    with turned_down(defended, added, 0.0):
        assert generate(defended, encode(defended), 6) == before
    assert generate(defended, encode(defended), 6) == after
    found = AdapterStrip(left=(0.0,), max_new_tokens=6).run(
        Victim(defended, NOTHING, base=base), asked(None)
    )
    (bare,) = Direct(max_new_tokens=6).run(Victim(base, NOTHING), asked(None))
    assert [a.completion for a in next(found)] == [a.completion for a in bare]


def test_adapter_strip_needs_the_base_and_its_weights(shared: Shared) -> None:
    with pytest.raises(Es2Error, match="--base"):
        next(AdapterStrip().run(Victim(shared("llama"), NOTHING), asked(None)))
    with pytest.raises(Es2Error, match="does not have the weights"):
        changes(shared("qwen2"), shared("llama"))


def test_tokens_are_counted_and_operations_estimated(shared: Shared) -> None:
    chat = shared("llama")
    with metered(chat) as spent:
        chat.decoder(input_ids=torch.zeros(2, 5, dtype=torch.long))
        with torch.no_grad():
            chat.decoder(inputs_embeds=torch.zeros(1, 7, 32))
    weights = sum(p.numel() for block in chat.blocks for p in block.parameters())
    assert (spent.forward_tokens, spent.backward_tokens) == (17, 10)
    assert spent.flops == 2 * weights * 27
    assert spent.among(2).forward_tokens == 8.5
    assert (spent + spent).flops == 2 * spent.flops
