"""Soft prompt: a suffix of free vectors in the input embeddings, optimised towards the target.

Source: Schwinn et al., "Soft Prompt Threats" (arXiv 2402.09063): signed gradient steps on the
cross-entropy of an affirmative target; one suffix a prompt, or one for all.

The vectors are what the first block reads, behind any scaling of embeddings that a family has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from es2.attacks.base import ATTACKS, Attempt, Report, ThreatModel, Victim, silent
from es2.attacks.budget import Budget, metered
from es2.attacks.target import AFFIRMATION, Loss, target_losses
from es2.data.fitting import spread
from es2.data.sources import Prompt
from es2.models.activations import Edit
from es2.models.forward import forward
from es2.models.generation import generate
from es2.models.loading import ChatModel

Start = Literal["words", "random"]
Sharing = Literal["prompt", "universal"]

WORD = "!"
"""What the suffix is made of before the first step, where it starts from words."""


@dataclass
class Suffixes:
    """Suffixes in training, one a prompt or one for all.

    Attributes:
        start: the vectors before the first step.
        now: the vectors.
        best: the vectors of each prompt's lowest loss so far.
        lowest: that loss.
        losses: each prompt's loss at every step.
    """

    start: Float[Tensor, "n tokens d"]
    now: Float[Tensor, "n tokens d"]
    best: Float[Tensor, "n tokens d"]
    lowest: Float[Tensor, "n"]
    losses: list[list[float]] = field(default_factory=list)


@ATTACKS.register
@dataclass(frozen=True)
class SoftPrompt:
    """Optimises the suffix, and answers after each checkpoint with the best vectors so far.

    Attributes:
        tokens: length of the suffix.
        lr: size of a signed step. Published: 0.01 for 100 steps, 0.001 for 500 to 1000.
        steps: optimisation steps.
        checkpoints: answers are made after so many equal parts of the steps. Published: 20 for long
            runs.
        start: `words` starts from the embeddings of exclamation marks (published), `random` from
            those of random tokens.
        sharing: a suffix for each `prompt`, or a `universal` one, fitted on training prompts.
        fit: how many prompts a universal suffix is fitted on.
        max_new_tokens: length of the answer.
        seed: of random tokens.
    """

    name: ClassVar[str] = "soft_prompt"
    threat: ClassVar[ThreatModel] = "input embeddings"
    tokens: int = 20
    lr: float = 0.01
    steps: int = 100
    checkpoints: int = 5
    start: Start = "words"
    sharing: Sharing = "prompt"
    fit: int = 32
    max_new_tokens: int = 48
    seed: int = 0
    published: ClassVar[tuple[str, ...]] = ("step=100",)

    @classmethod
    def long(cls) -> SoftPrompt:
        """The published long form: small steps, many of them, twenty answers."""
        return cls(lr=0.001, steps=1000, checkpoints=20)

    def settings(self) -> Sequence[str]:
        """One for each checkpoint."""
        return [f"step={step}" for step in self._stops()]

    def _stops(self) -> list[int]:
        parts = min(self.checkpoints, self.steps)
        return [self.steps * (part + 1) // parts for part in range(parts)]

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Optimises, stopping to answer; a skipped checkpoint is passed, not answered."""
        left = [step for step in self._stops() if f"step={step}" not in skip]
        if not left:
            return
        chat, known = victim.chat, victim.known
        shared = self.sharing == "universal"
        texts = spread(victim.fit.harmful, self.fit) if shared else [p.text for p in prompts]
        own = [p.target or AFFIRMATION for p in prompts]
        targets = [AFFIRMATION] * len(texts) if shared else own
        suffixes = self._begin(known, 1 if shared else len(prompts))
        rows = [with_room(chat, prompt.text, self.tokens) for prompt in prompts]
        spent, done = Budget(), 0
        for stop in left:
            with metered(known) as climbing:
                self._climb(known, texts, targets, suffixes, stop - done, progress)
            spent, done = spent + climbing, stop
            with metered(chat) as answering:
                answers = self._answer(chat, rows, suffixes.best, progress)
            budget = (spent + answering).among(len(prompts))
            moved = (suffixes.best - suffixes.start).norm(dim=-1).mean(1)
            size = suffixes.start.norm(dim=-1).mean(1)
            yield [
                Attempt.of(
                    self,
                    f"step={stop}",
                    prompt,
                    chat.template.decode(answer),
                    replace(budget, steps=stop),
                    seed=self.seed,
                    norm=float(moved[own]),
                    relative_norm=float(moved[own] / size[own]),
                    losses=list(suffixes.losses[own]),
                    rule="lowest loss",
                )
                for prompt, answer, own in zip(
                    prompts,
                    answers,
                    [0] * len(prompts) if shared else range(len(prompts)),
                    strict=True,
                )
            ]

    def _begin(self, chat: ChatModel, count: int) -> Suffixes:
        """The embeddings of words or of random tokens, as the first block reads them."""
        if self.start == "words":
            word = chat.tokenizer(WORD, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([word[:1] * self.tokens] * count)
        else:
            random = torch.Generator().manual_seed(self.seed)
            size = len(chat.tokenizer)
            ids = torch.randint(size, (count, self.tokens), generator=random)
        start = embedded(chat, ids)
        return Suffixes(
            start,
            start.clone(),
            start.clone(),
            torch.full((count,), float("inf"), device=start.device),
            [[] for _ in range(count)],
        )

    def _climb(
        self,
        chat: ChatModel,
        texts: Sequence[str],
        targets: Sequence[str],
        suffixes: Suffixes,
        steps: int,
        progress: Report,
    ) -> None:
        """Signed gradient steps, batch after batch of prompts; a universal suffix sees all at once."""
        heads = [with_room(chat, text, self.tokens) for text in texts]
        wanted = [chat.template.encode_response(target) for target in targets]
        shared = self.sharing == "universal"
        size = len(texts) if shared else max(1, chat.batch_size // 2)
        for first in range(0, len(texts), size):
            batch = slice(first, first + size)
            own = slice(0, 1) if shared else batch
            for _ in range(steps):
                losses, gradient = gradients(chat, heads[batch], wanted[batch], suffixes.now[own])
                if shared:
                    losses = losses.mean(0, keepdim=True)
                better = losses < suffixes.lowest[own]
                suffixes.lowest[own] = torch.where(better, losses, suffixes.lowest[own])
                suffixes.best[own][better] = suffixes.now[own][better]
                suffixes.now[own] -= self.lr * gradient.sign()
                progress(
                    0, f"step {len(suffixes.losses[own][0]) + 1}, loss {float(losses.mean()):.2f}"
                )
                for history, loss in zip(suffixes.losses[own], losses.tolist(), strict=True):
                    history.append(loss)

    def _answer(
        self,
        chat: ChatModel,
        rows: Sequence[Sequence[int]],
        vectors: Float[Tensor, "n tokens d"],
        progress: Report,
    ) -> list[list[int]]:
        place = {id(row): index if len(vectors) > 1 else 0 for index, row in enumerate(rows)}

        def edits(batch: Sequence[Sequence[int]]) -> Mapping[int, Edit]:
            return {0: placed(vectors[[place[id(row)] for row in batch]], chat.template.tail)}

        return generate(
            chat, rows, self.max_new_tokens, edits, progress=progress, keep=chat.template.head
        )


def with_room(chat: ChatModel, prompt: str, tokens: int) -> list[int]:
    """The templated prompt with places for a suffix at the end of the user's text."""
    row = chat.template.encode(prompt)
    cut = len(row) - chat.template.tail
    return row[:cut] + [chat.template.pad_id] * tokens + row[cut:]


@torch.no_grad()
def embedded(chat: ChatModel, ids: Tensor) -> Float[Tensor, "n tokens d"]:
    """Token ids as the first block reads them, in float32."""
    seen: list[Tensor] = []

    def look(stream: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
        seen.append(stream.detach().float())
        return stream

    forward(chat, ids.tolist(), layers=(1,), stop=True, keep=0, edits={0: look})
    return seen[0].clone()


def placed(vectors: Float[Tensor, "n tokens d"], tail: int) -> Edit:
    """The vectors put where a left-padded row's suffix stands: just before the template's tail.

    While the model answers it reads one token at a time, and nothing is changed.
    """
    tokens = vectors.shape[1]

    def change(stream: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
        if stream.shape[1] == 1:
            return stream
        stop = stream.shape[1] - tail
        changed = stream.clone()
        changed[:, stop - tokens : stop] = vectors.to(stream.dtype)
        return changed

    return change


def gradients(
    chat: ChatModel,
    heads: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    vectors: Float[Tensor, "n tokens d"],
    loss: Loss = "cross_entropy",
) -> tuple[Float[Tensor, "m"], Float[Tensor, "n tokens d"]]:
    """The target's loss after every prompt, and the gradient of their sum in the suffixes.

    Args:
        chat: the model; its own weights get no gradient.
        heads: templated prompts with room for the suffix.
        targets: token ids.
        vectors: a suffix for each prompt, or one for all.
        loss: what is to fall.
    """
    free = vectors.detach().clone().requires_grad_(True)
    tail, tokens, keep = chat.template.tail, vectors.shape[1], chat.template.head
    stops = torch.tensor([len(head) - tail - keep for head in heads], device=free.device)
    columns = stops[:, None] - tokens + torch.arange(tokens, device=free.device)

    def change(stream: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
        changed = stream.clone()
        # Without a cache to share, the rows stand there from the template's first token.
        shift = stream.shape[1] - (max(map(len, rows)) - keep)
        index = torch.arange(len(heads), device=free.device)[:, None]
        changed[index, columns + shift] = free.expand(len(heads), -1, -1).to(stream.dtype)
        return changed

    rows = [[*head, *target] for head, target in zip(heads, targets, strict=True)]
    with torch.enable_grad():
        losses = target_losses(chat, heads, targets, {0: change}, keep=keep, loss=loss)
        (gradient,) = torch.autograd.grad(losses.sum(), free)
    return losses.detach(), gradient
