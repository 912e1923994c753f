"""GCG against slow ways, and that what it finds is what a model would be asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from es2.attacks import Attempt, Gcg, Victim
from es2.attacks.gcg import Task, merged, surviving, token_table
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.forward import Held
from es2.models.generation import generate
from es2.models.loading import ChatModel
from tiny import PROMPTS, TEMPLATES, make_model, make_tokenizer

Shared = Callable[[str], ChatModel]
FIT = FitPrompts(list(PROMPTS), [], [], [])
QUICK = Gcg(steps=6, width=24, top_k=32, start=" x x x x", max_new_tokens=3)
ASKED = [
    Prompt(text, True, target="Why", category="", borderline=False, id=str(i), source="tests")
    for i, text in enumerate(PROMPTS[:2])
]


def task_of(chat: ChatModel) -> Task:
    return QUICK.task(chat, [prompt.text for prompt in ASKED], ["Why not", "Why"])


def run(attack: Gcg, chat: ChatModel) -> list[list[Attempt]]:
    """The attempts of each rule."""
    found = [attempt for portion in attack.run(Victim(chat, FIT), ASKED) for attempt in portion]
    return [[one for one in found if one.rule == rule] for rule in attack.settings()]


def slow_loss(chat: ChatModel, task: Task, text: str) -> float:
    """The mean cross-entropy over the prompts, from the text as a user would send it."""
    losses = []
    for prompt, target in zip(task.prompts, task.targets, strict=True):
        row = chat.template.encode(prompt + text)
        with torch.no_grad():
            scores = chat.inner(input_ids=torch.tensor([[*row, *target]])).logits[0]
        wanted = torch.tensor(target)
        losses.append(torch.nn.functional.cross_entropy(scores[len(row) - 1 : -1], wanted).item())
    return sum(losses) / len(losses)


def test_candidates_survive_and_their_losses_are_those_of_their_texts(chat: ChatModel) -> None:
    task, table = task_of(chat), token_table(chat)
    now = list(chat.tokenizer(QUICK.start, add_special_tokens=False)["input_ids"])
    held = [Held() for _ in task.heads]
    gradient = QUICK.token_gradient(chat, task, now, table, held)
    drawn = QUICK.draw(now, gradient, torch.Generator().manual_seed(0))
    assert len({tuple(suffix) for suffix in drawn}) == len(drawn) <= QUICK.width
    assert all(sum(a != b for a, b in zip(suffix, now, strict=True)) == 1 for suffix in drawn)
    assert surviving(chat, task, []) == []
    kept = surviving(chat, task, drawn)
    assert kept
    found, said = QUICK.read(chat, task, kept, held)
    for suffix, loss, reached in list(zip(kept, found.tolist(), said.tolist(), strict=True))[:6]:
        text = chat.tokenizer.decode(suffix)
        for prompt, head in zip(task.prompts, task.heads, strict=True):
            row = chat.template.encode(prompt + text)
            assert row[len(head) : len(head) + len(suffix)] == suffix
        assert loss == pytest.approx(slow_loss(chat, task, text), rel=1e-3, abs=1e-4)
        rows = task.rows(suffix)
        answers = generate(chat, rows, max(map(len, task.targets)))
        pairs = zip(answers, task.targets, strict=True)
        assert reached == all(answer[: len(target)] == target for answer, target in pairs)


def test_the_table_is_what_the_first_block_reads(chat: ChatModel) -> None:
    from es2.attacks.soft_prompt import embedded

    ids = torch.tensor([[5, 70, 200]])
    torch.testing.assert_close(token_table(chat)[ids[0]], embedded(chat, ids)[0])


def test_the_gradient_is_that_of_one_hot_tokens(shared: Shared) -> None:
    chat = shared("gemma3")
    task = QUICK.task(chat, [PROMPTS[0]], ["Why"])
    table = token_table(chat)
    now = list(chat.tokenizer(QUICK.start, add_special_tokens=False)["input_ids"])
    tail = chat.template.encode("")[-chat.template.tail :]
    row = [*task.heads[0], *now, *tail, *task.targets[0]]
    one_hot = torch.zeros(len(now), len(table))
    one_hot[range(len(now)), now] = 1.0
    one_hot.requires_grad_(True)
    embeds = chat.inner.get_input_embeddings()(torch.tensor([row])).detach().clone()
    first = len(task.heads[0])
    embeds = torch.cat(
        [embeds[:, :first], (one_hot @ table)[None], embeds[:, first + len(now) :]], dim=1
    )
    scores = chat.inner(inputs_embeds=embeds).logits[0]
    at = len(row) - len(task.targets[0])
    loss = torch.nn.functional.cross_entropy(scores[at - 1 : -1], torch.tensor(task.targets[0]))
    (slow,) = torch.autograd.grad(loss, one_hot)
    fast = QUICK.token_gradient(chat, task, now, table, [Held()])
    ways = torch.nn.functional.cosine_similarity(fast, slow, dim=1)
    torch.testing.assert_close(ways, torch.ones_like(ways), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "attack",
    [
        QUICK,
        replace(QUICK, loss="mellowmax", momentum=0.5, buffer=4, replace=2),
        replace(QUICK, sharing="universal", fit=2),
        replace(QUICK, positions="turns", merge=4),
    ],
    ids=["plain", "options", "universal", "turns and merging"],
)
def test_the_best_loss_falls_and_is_that_of_the_suffix_kept(shared: Shared, attack: Gcg) -> None:
    chat = shared("llama")
    lowest, first = run(attack, chat)
    for one, other in zip(lowest, first, strict=True):
        best = list(accumulate(one.losses, min))
        assert best[-1] < best[0] or one.details["succeeded"]
        assert one.budget.steps == len(one.losses) <= attack.steps
        assert str(one.details["asked"]).startswith(one.prompt)
        assert other.details["succeeded"] == one.details["succeeded"]


def test_an_unaligned_model_is_brought_to_say_the_target_and_the_search_stops(
    shared: Shared,
) -> None:
    attack = Gcg(steps=120, width=64, start=" x" * 16, max_new_tokens=3)
    _, first = run(attack, shared("llama"))
    reached = [one for one in first if one.details["succeeded"]]
    assert reached
    for one in reached:
        assert one.completion.startswith("Why")
        assert len(one.losses) <= attack.steps


def test_a_start_that_does_not_survive_is_a_users_error() -> None:
    # As in many chat models, the template cuts white space off the end of what the user wrote.
    trims = TEMPLATES["llama"].replace("message['content']", "message['content'] | trim")
    tokenizer = make_tokenizer(trims)
    chat = ChatModel("trims", make_model("llama", len(tokenizer)), tokenizer)
    with pytest.raises(Es2Error, match="start suffix"):
        list(replace(QUICK, start=" x x ").run(Victim(chat, FIT), ASKED))


def test_the_best_replacements_are_merged_and_of_two_at_a_place_the_better_stands() -> None:
    now = [1, 1, 1, 1]
    tried = [[1, 1, 5, 1], [1, 6, 1, 1], [1, 1, 7, 1], [8, 1, 1, 1], [1, 1, 1, 9]]
    losses = torch.tensor([3.0, 2.0, 1.0, 4.0, 5.0])
    assert merged(now, tried, losses, 4) == [[1, 6, 7, 1], [8, 6, 7, 1]]
    assert merged(now, tried, losses, 1) == merged(now, tried, losses, 0) == []


def test_in_turns_all_candidates_of_a_step_change_the_same_position(shared: Shared) -> None:
    chat = shared("llama")
    task, table = task_of(chat), token_table(chat)
    now = list(chat.tokenizer(QUICK.start, add_special_tokens=False)["input_ids"])
    gradient = QUICK.token_gradient(chat, task, now, table, [Held() for _ in task.heads])
    attack = replace(QUICK, positions="turns")
    for step in range(len(now) + 1):
        drawn = attack.draw(now, gradient, torch.Generator().manual_seed(0), step)
        changed = {i for row in drawn for i, token in enumerate(row) if token != now[i]}
        assert changed == {(len(now) - 1 - step) % len(now)}
