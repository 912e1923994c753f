"""Soft prompt: a suffix of free vectors in the input embeddings, optimised towards the target.

Source: Schwinn et al., "Soft Prompt Threats" (arXiv 2402.09063): signed gradient steps on the
cross-entropy of an affirmative target; one suffix a prompt, or one for all.

The vectors are what the first block reads, behind any scaling of embeddings that a family has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from es2.attacks.base import (
    ATTACKS,
    Attempt,
    Report,
    ThreatModel,
    Victim,
    as_given,
    silent,
)
from es2.attacks.budget import Budget, metered
from es2.attacks.target import AFFIRMATION, Loss, read_targets
from es2.data.fitting import spread
from es2.data.sources import Prompt
from es2.models.activations import Edit
from es2.models.forward import Held, forward
from es2.models.generation import generate, in_batches
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, answering, training

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
    least: ClassVar[Mapping[str, float]] = {
        "tokens": 1,
        "steps": 1,
        "checkpoints": 1,
        "fit": 1,
        "max_new_tokens": 1,
    }
    tokens: int = 20
    lr: float = 0.01
    steps: int = 100
    checkpoints: int = 5
    start: Start = "words"
    sharing: Sharing = "prompt"
    fit: int = 32
    max_new_tokens: int = 48
    seed: int = 0

    @property
    def published(self) -> tuple[str, ...]:
        """The last step, at a published size of steps and number of them."""
        pace = (self.lr == 0.01 and self.steps == 100) or (
            self.lr == 0.001 and 500 <= self.steps <= 1000
        )
        whole = pace and as_given(self, "lr", "steps", "checkpoints")
        return (f"step={self.steps}",) if whole else ()

    @classmethod
    def long(cls) -> SoftPrompt:
        """The published long form: small steps, many of them, twenty answers."""
        return cls(lr=0.001, steps=1000, checkpoints=20)

    def settings(self) -> Sequence[str]:
        """One for each checkpoint."""
        return [f"step={step}" for step in self._stops()]

    def expected(self, lengths: Lengths, prompts: int, rows: int) -> Work:
        """Steps with gradient over what stands behind the prompt, and the checkpoints' answers."""
        size = max(1, rows // 2)
        universal = self.sharing == "universal"
        fitted = self.fit if universal else prompts
        batches = math.ceil(fitted / size)
        behind = self.tokens + lengths.tail + lengths.target - 1
        climb = training(self.steps, min(fitted, size), behind, min(fitted, size) * lengths.target)
        # What stands before the suffix is read once; a universal suffix sees all batches each step.
        before = Work(
            read=fitted * (lengths.head + lengths.prompt), passes=3 * self.steps * batches
        )
        own = lengths.own + self.tokens
        answers = answering(
            prompts, own, self.max_new_tokens, rows if universal else size, lengths.head
        )
        return (
            climb.times(fitted / min(fitted, size)) + before + answers.times(len(self.settings()))
        )

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
        """Optimises, stopping to answer, batch after batch of prompts; all at once with one suffix.

        A skipped checkpoint is passed, not answered.
        """
        left = [step for step in self._stops() if f"step={step}" not in skip]
        if not left:
            return
        known = victim.known
        if self.sharing == "universal":
            texts = spread(victim.fit.harmful, self.fit)
            targets = [AFFIRMATION] * len(texts)
            suffixes = self._begin(known, 1)
            yield from self._portion(victim, prompts, texts, targets, suffixes, left, progress)
            return
        size = max(1, known.batch_size // 2)
        for first in range(0, len(prompts), size):
            batch = prompts[first : first + size]
            texts = [prompt.text for prompt in batch]
            targets = [prompt.target or AFFIRMATION for prompt in batch]
            suffixes = self._begin(known, len(batch))
            yield from self._portion(victim, batch, texts, targets, suffixes, left, progress)

    def _portion(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        targets: Sequence[str],
        suffixes: Suffixes,
        left: Sequence[int],
        progress: Report,
    ) -> Iterator[list[Attempt]]:
        """Fits suffixes on texts, and answers prompts with them at each checkpoint."""
        chat, known = victim.chat, victim.known
        heads = [with_room(known, text, self.tokens) for text in texts]
        wanted = [known.template.encode_response(target) for target in targets]
        rows = [with_room(chat, prompt.text, self.tokens) for prompt in prompts]
        spent, done = Budget(), 0
        for stop in left:
            with metered(known) as climbing:
                self._climb(known, heads, wanted, suffixes, stop - done, progress)
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
                    range(len(prompts)) if len(suffixes.now) > 1 else [0] * len(prompts),
                    strict=True,
                )
            ]

    def _begin(self, chat: ChatModel, count: int) -> Suffixes:
        """The embeddings of words or of random tokens, as the first block reads them."""
        if self.start == "words":
            ids = word_suffix(chat, self.tokens).repeat(count, 1)
        else:
            random = torch.Generator().manual_seed(self.seed)
            size = len(chat.tokenizer)
            ids = torch.randint(size, (1, self.tokens), generator=random).repeat(count, 1)
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
        heads: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        suffixes: Suffixes,
        steps: int,
        progress: Report,
    ) -> None:
        """Signed gradient steps; a universal suffix sees all prompts at once."""
        held = Held()
        for _ in range(steps):
            losses, gradient = gradients(chat, heads, targets, suffixes.now, held=held)
            if self.sharing == "universal":
                losses = losses.mean(0, keepdim=True)
            better = losses < suffixes.lowest
            suffixes.lowest = torch.where(better, losses, suffixes.lowest)
            suffixes.best[better] = suffixes.now[better]
            suffixes.now -= self.lr * gradient.sign()
            for history, loss in zip(suffixes.losses, losses.tolist(), strict=True):
                history.append(loss)
            progress(0, f"step {len(suffixes.losses[0])}, loss {float(losses.mean()):.2f}")

    def _answer(
        self,
        chat: ChatModel,
        rows: Sequence[Sequence[int]],
        vectors: Float[Tensor, "n tokens d"],
        progress: Report,
    ) -> list[list[int]]:
        each = vectors.expand(len(rows), -1, -1)  # a universal suffix is every row's

        def edits(batch: list[int]) -> Mapping[int, Edit]:
            return {0: placed(each[batch], chat.template.tail)}

        return generate(
            chat, rows, self.max_new_tokens, edits, progress=progress, keep=chat.template.head
        )


def word_suffix(chat: ChatModel, tokens: int) -> Int[Tensor, "1 tokens"]:
    """Token ids of a suffix of one word, again and again."""
    return torch.tensor([chat.tokenizer(WORD, add_special_tokens=False)["input_ids"][:1] * tokens])


def with_room(chat: ChatModel, prompt: str, tokens: int) -> list[int]:
    """The templated prompt with places for a suffix at the end of the user's text."""
    row = chat.template.encode(prompt)
    return room_at(chat, row, len(row) - chat.template.tail, tokens)


def room_at(chat: ChatModel, row: Sequence[int], cut: int, tokens: int) -> list[int]:
    """A row with places for a suffix before the token at `cut`."""
    return [*row[:cut], *[chat.template.pad_id] * tokens, *row[cut:]]


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


def in_columns(
    vectors: Float[Tensor, "n tokens d"], firsts: Sequence[int], longest: int | None
) -> Edit:
    """The vectors put into a pass's right-padded rows, each suffix where its row has room for it.

    Args:
        vectors: a suffix for each row; they may have gradient.
        firsts: where in each row its suffix starts.
        longest: tokens of the longest row, counted as `firsts` are; None where they count from where
            the pass's own tokens start, and not from a prefix that it is without.
    """
    rows = torch.arange(len(firsts), device=vectors.device)[:, None]
    places = torch.tensor(firsts, device=vectors.device)[:, None]
    places = places + torch.arange(vectors.shape[1], device=vectors.device)

    def change(stream: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
        changed = stream.clone()
        missing = 0 if longest is None else longest - stream.shape[1]
        changed[rows, places - missing] = vectors.to(stream.dtype)
        return changed

    return change


def gradients(
    chat: ChatModel,
    heads: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    vectors: Float[Tensor, "n tokens d"],
    loss: Loss = "cross_entropy",
    held: Held | None = None,
) -> tuple[Float[Tensor, "m"], Float[Tensor, "n tokens d"]]:
    """The target's loss after every prompt, and the gradient of their sum in the suffixes.

    Args:
        chat: the model; its own weights get no gradient.
        heads: templated prompts with room for the suffix.
        targets: token ids.
        vectors: a suffix for each prompt, or one for all.
        loss: what is to fall.
        held: prefixes of earlier passes.
    """
    own = vectors.expand(len(heads), -1, -1)

    def run(batch: list[int]) -> list[tuple[Tensor, Tensor]]:
        before, wanted = ([of[place] for place in batch] for of in (heads, targets))
        losses, gradient = _gradients(chat, before, wanted, own[batch], loss, held)
        return list(zip(losses, gradient, strict=True))

    size = max(1, chat.batch_size // 2)  # a pass with gradient takes more memory
    losses, each = zip(*in_batches(chat, heads, run, size=size), strict=True)
    gradient = torch.stack(each)
    return torch.stack(losses), gradient if len(vectors) > 1 else gradient.sum(0, keepdim=True)


def _gradients(
    chat: ChatModel,
    heads: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    vectors: Float[Tensor, "n tokens d"],
    loss: Loss,
    held: Held | None,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n tokens d"]]:
    """One batch of prompts with their targets and suffixes."""
    free = vectors.detach().requires_grad_(True)
    tokens = free.shape[1]
    firsts = [len(head) - chat.template.tail - tokens for head in heads]
    pairs = zip(heads, targets, strict=True)
    longest = max(len(head) + len(target) - 1 for head, target in pairs)
    starts = None
    if held is not None:  # what stands before a suffix is the same at every step
        before = [head[:first] for head, first in zip(heads, firsts, strict=True)]
        starts = held.starts(chat, before, longest)
    if starts is None:
        change = in_columns(free, firsts, longest)
    else:  # each row's own tokens start with its suffix
        change = in_columns(free, [0] * len(heads), None)
    with torch.enable_grad():
        found = read_targets(
            chat, heads, targets, {0: change}, min(firsts), loss, held=held, starts=starts
        )
        (gradient,) = torch.autograd.grad(found.losses.sum(), free)
    return found.losses.detach(), gradient
