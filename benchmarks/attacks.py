"""Attacks side by side with how they are usually run: ratios of one run on one machine.

Launch: python benchmarks/attacks.py [--only scav repe soft_prompt autodan]

`plain` is what the methods' published code does, written anew here: one prompt at a time for SCAV, RepE
and the soft prompt, no cache of what prompts share, and logits at every position. Both ways have to
give the same answers or losses. Beside each ratio stands the share of the machine's matrix
multiplication peak that es2 reaches, counting the blocks' arithmetic alone.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence

import torch
from machine import peak
from torch import Tensor

import es2
from es2.attacks import Scav, Victim
from es2.attacks.autodan import AutoDan, by_target, filled, prototypes
from es2.attacks.budget import metered
from es2.attacks.repe import reading_vectors, steering, within
from es2.attacks.scav import Meter, scav_edits
from es2.attacks.soft_prompt import WORD, embedded, gradients, with_room
from es2.data.fitting import bundled_fit
from es2.models.activations import Edit
from es2.models.forward import Held
from es2.models.generation import generate
from es2.models.loading import ChatModel

TOKENS = 32
"""Length of an answer."""


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def compare(
    name: str,
    chat: ChatModel,
    ours: Callable[[], object],
    plain: Callable[[], object],
    same: Callable[[object, object], bool],
    aim: float,
) -> None:
    """Times both ways, checks that they agree, and prints the ratio."""
    ours()  # the first call pays for what is made once
    with metered(chat) as spent:
        fast, one = timed(ours)
    slow, other = timed(plain)
    agree = "same" if same(one, other) else "DIFFERENT"
    share = spent.flops / fast / peak()
    print(
        f"{name:<12} {slow / fast:5.1f}x (aim {aim:g}x)   {fast:6.2f} s against {slow:6.2f} s   "
        f"results {agree}   {share:.0%} of matmul peak",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ["scav", "repe", "soft_prompt", "autodan"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    chat = es2.load("smollm2-aligned")
    prompts = es2.load_prompts("harmful:validation", limit=64)
    rows = [chat.template.encode(prompt.text) for prompt in prompts]
    victim = Victim(chat, bundled_fit(extra=False).at_most(100))

    def answers(edits: dict[int, Edit], keep: int | None) -> None:
        name = "scav" if keep is None else "repe"
        compare(
            name,
            chat,
            lambda: generate(chat, rows, TOKENS, edits, keep=keep),
            lambda: [generate(chat, [row], TOKENS, edits, keep=keep)[0] for row in rows],
            mostly_equal,
            5,
        )

    if "scav" in options.only:
        answers(scav_edits(Scav().probes(victim.states), 1e-3, Meter()), None)
    if "repe" in options.only:
        vectors = within(reading_vectors(victim.states, "pca"), (0.25, 0.75))
        answers(steering(vectors, 0.1), chat.template.head)
    if "soft_prompt" in options.only:
        soft_prompt(chat, [prompt.text for prompt in prompts[:16]])
    if "autodan" in options.only:
        autodan(chat, prompts[0])


def mostly_equal(one: object, other: object) -> bool:
    """Greedy answers agree but for ties that rounding breaks: in nineteen of twenty rows."""
    assert isinstance(one, list) and isinstance(other, list)
    return sum(a == b for a, b in zip(one, other, strict=True)) >= 0.95 * len(one)


def close(one: object, other: object) -> bool:
    """Losses agree to 1e-4."""
    return bool(torch.allclose(torch.as_tensor(one), torch.as_tensor(other), atol=1e-4, rtol=0))


def soft_prompt(chat: ChatModel, texts: Sequence[str], tokens: int = 20, steps: int = 10) -> None:
    """Gradient steps of sixteen suffixes at once against one after the other."""
    word = chat.tokenizer(WORD, add_special_tokens=False)["input_ids"][:1]
    target = chat.tokenizer("Sure, here is how to do it", add_special_tokens=False)["input_ids"]
    heads = [with_room(chat, text, tokens) for text in texts]
    vectors = embedded(chat, torch.tensor([word * tokens] * len(texts)))
    table = chat.inner.get_input_embeddings()

    def ours() -> Tensor:
        held = Held()
        for _ in range(steps):
            losses, _ = gradients(chat, heads, [target] * len(heads), vectors, held=held)
        return losses

    def plain() -> Tensor:
        found = []
        for head, suffix in zip(heads, vectors, strict=True):
            stop = len(head) - chat.template.tail
            for _ in range(steps):
                free = suffix.clone().requires_grad_(True)
                known = table(torch.tensor([[*head, *target]])).detach()
                parts = [known[:, : stop - tokens], free[None], known[:, stop:]]
                scores = chat.inner(inputs_embeds=torch.cat(parts, 1)).logits[0]
                loss = torch.nn.functional.cross_entropy(
                    scores[len(head) - 1 : -1], torch.tensor(target)
                )
                loss.backward()
            found.append(loss.detach())
        return torch.stack(found)

    compare("soft_prompt", chat, ours, plain, close, 3)


def autodan(chat: ChatModel, prompt: es2.Prompt) -> None:
    """One generation's losses: unique texts with shared starts, against all at full length."""
    attack = AutoDan(population=64)
    texts = attack._first(random.Random(0))
    # A generation as breeding leaves it: elites unchanged, and parents drawn with repetition.
    texts = texts[:48] + texts[:16]
    asked = [filled(text, prompt.text) for text in texts]
    target = prompt.target or prototypes()[0]
    wanted = chat.tokenizer(target, add_special_tokens=False)["input_ids"]

    def ours() -> list[float]:
        known = sorted(set(asked))
        losses = dict(zip(known, by_target(chat, wanted, known), strict=True))
        return [losses[text] for text in asked]

    @torch.no_grad()
    def plain() -> list[float]:
        found = []
        for start in range(0, len(asked), 16):
            rows = [[*chat.template.encode(text), *wanted] for text in asked[start : start + 16]]
            longest = max(map(len, rows))
            pads = [longest - len(row) for row in rows]
            ids = torch.tensor([row + [0] * pad for pad, row in zip(pads, rows, strict=True)])
            mask = torch.tensor([[1] * (longest - pad) + [0] * pad for pad in pads])
            scores = chat.inner(input_ids=ids, attention_mask=mask).logits
            for row, own in zip(rows, scores, strict=True):
                last = own[len(row) - len(wanted) - 1 : len(row) - 1]
                loss = torch.nn.functional.cross_entropy(last, torch.tensor(wanted))
                found.append(float(loss))
        return found

    compare("autodan", chat, ours, plain, close, 2)


if __name__ == "__main__":
    main()
