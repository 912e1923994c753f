"""GCG: a suffix of real tokens, found by greedy coordinate gradient.

Source: Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models" (arXiv
2307.15043). Each step the gradient in the suffix's one-hot tokens names the most promising
replacements at every position, some are drawn, and the suffix of the lowest loss becomes the next.
The options: mellowmax (arXiv 2402.12329, in place of cross-entropy), momentum of the gradient (arXiv
2405.01229), a buffer of suffixes of which the best is changed next (arXiv 2407.17447).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from es2.attacks.base import ATTACKS, Attempt, Report, ThreatModel, Victim, silent
from es2.attacks.budget import Budget, metered
from es2.attacks.soft_prompt import Sharing, embedded, gradients
from es2.attacks.target import AFFIRMATION, Loss, all_said, losses_of
from es2.data.fitting import spread
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.generation import generate
from es2.models.loading import ChatModel

Rule = Literal["lowest loss", "first success"]
RULES: tuple[Rule, ...] = ("lowest loss", "first success")


@dataclass(frozen=True)
class Task:
    """Prompts that one suffix is to work for.

    Attributes:
        prompts: their texts.
        heads: their tokens up to the end of the text.
        tail: the template's tokens behind the text.
        targets: the tokens that the responses are to start with.
    """

    prompts: Sequence[str]
    heads: Sequence[list[int]]
    tail: list[int]
    targets: Sequence[list[int]]

    def rows(self, suffix: Sequence[int]) -> list[list[int]]:
        """The templated prompts with a suffix at the end of their text."""
        return [[*head, *suffix, *self.tail] for head in self.heads]


@dataclass
class Found:
    """What a search has come to.

    Attributes:
        lowest: the suffix of the lowest loss.
        first: the first suffix after which every target is the greedy response; None so far.
        losses: the lowest loss of every step's candidates.
        spent: the search's budget.
        candidates: how many suffixes were tried.
    """

    lowest: list[int]
    first: list[int] | None = None
    losses: list[float] = field(default_factory=list)
    spent: Budget = field(default_factory=Budget)
    candidates: int = 0


@ATTACKS.register
@dataclass(frozen=True)
class Gcg:
    """Searches a suffix for each prompt, or one for all, fitted on training prompts.

    Both the suffix of the lowest loss and the first that makes the target the greedy response are
    answered and reported.

    Attributes:
        steps: at most so many. Published: 250 to 500.
        width: candidates a step.
        top_k: replacements considered at each position.
        replace: positions changed in a candidate.
        start: the suffix before the first step.
        loss: `cross_entropy`, or `mellowmax`, which looks at the worst tokens of the target most.
        momentum: weight of the earlier steps' gradients.
        buffer: so many of the best suffixes are kept and the best of them changed next; 0 always
            goes on from the last step's.
        stop: stop once the target is the greedy response.
        sharing: a suffix for each `prompt`, or a `universal` one.
        fit: training prompts that a universal suffix is fitted on.
        max_new_tokens: length of the answer.
        seed: of the draws.
    """

    name: ClassVar[str] = "gcg"
    threat: ClassVar[ThreatModel] = "prompt text"
    published: ClassVar[tuple[str, ...]] = RULES
    steps: int = 250
    width: int = 512
    top_k: int = 256
    replace: int = 1
    start: str = " x x x x x x x x x x x x x x x x x x x x"
    loss: Loss = "cross_entropy"
    momentum: float = 0.0
    buffer: int = 0
    stop: bool = True
    sharing: Sharing = "prompt"
    fit: int = 8
    max_new_tokens: int = 48
    seed: int = 0

    def settings(self) -> Sequence[str]:
        """By which rule the suffix is selected."""
        return RULES

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Searches, then answers every prompt with its suffix."""
        wanted = [rule for rule in RULES if rule not in skip]
        if not wanted:
            return
        chat, known = victim.chat, victim.known
        table = token_table(known)
        if self.sharing == "universal":
            texts = spread(victim.fit.harmful, self.fit)
            task = self.task(known, texts, [AFFIRMATION] * len(texts))
            whole = self.search(known, task, table, partial(told, progress, "one for all"))
            spent = whole.spent.among(len(prompts))
            found = [replace(whole, spent=spent)] * len(prompts)
        else:
            found = []
            for prompt in prompts:
                task = self.task(known, [prompt.text], [prompt.target or AFFIRMATION])
                where = f"prompt {len(found) + 1} of {len(prompts)}"
                found.append(self.search(known, task, table, partial(told, progress, where)))
        for rule in wanted:
            suffixes = [
                (one.first or one.lowest) if rule == "first success" else one.lowest
                for one in found
            ]
            asked = [
                prompt.text + str(chat.tokenizer.decode(suffix))
                for prompt, suffix in zip(prompts, suffixes, strict=True)
            ]
            rows = [chat.template.encode(text) for text in asked]
            with metered(chat) as answering:
                answers = generate(chat, rows, self.max_new_tokens, progress=progress)
            share = answering.among(len(prompts))
            yield [
                Attempt.of(
                    self,
                    rule,
                    prompt,
                    chat.template.decode(answer),
                    replace(one.spent + share, steps=len(one.losses)),
                    seed=self.seed,
                    losses=list(one.losses),
                    rule=rule,
                    details={
                        "asked": text,
                        "candidates": float(one.candidates),
                        "succeeded": float(one.first is not None),
                    },
                )
                for prompt, answer, text, one in zip(prompts, answers, asked, found, strict=True)
            ]

    def task(self, chat: ChatModel, texts: Sequence[str], targets: Sequence[str]) -> Task:
        """The prompts and targets as tokens."""
        template = chat.template
        bare = [template.encode(text) for text in texts]
        return Task(
            texts,
            [row[: len(row) - template.tail] for row in bare],
            bare[0][len(bare[0]) - template.tail :],
            [template.encode_response(target) for target in targets],
        )

    def search(
        self,
        chat: ChatModel,
        task: Task,
        table: Float[Tensor, "vocab d"],
        report: Callable[[Found], None] = lambda found: None,
    ) -> Found:
        """Greedy coordinate gradient from the start suffix; a pure function of the seed.

        Args:
            chat: the model.
            task: what the suffix is to work for.
            table: what the first block reads for every token, see `token_table`.
            report: called after every step.

        Raises:
            Es2Error: if the start suffix does not survive being written and read again.
        """
        now = list(chat.tokenizer(self.start, add_special_tokens=False)["input_ids"])
        if not survives(chat, task, [now])[0]:
            raise Es2Error(
                f"gcg: the start suffix {self.start!r} is other tokens after a prompt than alone; "
                "give another start"
            )
        random = torch.Generator().manual_seed(self.seed)
        found = Found(now)
        held: list[tuple[float, list[int]]] = []
        velocity: Tensor | None = None
        with metered(chat) as found.spent:
            for _ in range(self.steps):
                gradient = self.token_gradient(chat, task, now, table)
                velocity = gradient if velocity is None else self.momentum * velocity + gradient
                drawn = self.draw(now, velocity, random)
                tried = [
                    suffix
                    for suffix, kept in zip(drawn, survives(chat, task, drawn), strict=True)
                    if kept
                ]
                if not tried:
                    found.losses.append(found.losses[-1] if found.losses else float("inf"))
                    continue
                losses = self.losses(chat, task, tried)
                found.candidates += len(tried)
                best = int(losses.argmin())
                low, chosen = float(losses[best]), tried[best]
                if low <= min(found.losses, default=float("inf")):
                    found.lowest = chosen
                found.losses.append(low)
                now = chosen
                if self.buffer:
                    held = sorted([*held, (low, chosen)])[: self.buffer]
                    now = held[0][1]
                if found.first is None and all_said(chat, task.rows(chosen), task.targets):
                    found.first = chosen
                report(found)
                if self.stop and found.first is not None:
                    break
        return found

    def token_gradient(
        self,
        chat: ChatModel,
        task: Task,
        suffix: Sequence[int],
        table: Float[Tensor, "vocab d"],
    ) -> Float[Tensor, "tokens vocab"]:
        """Gradient of the loss in the suffix's one-hot tokens; of several prompts, normed and added."""
        rows = task.rows(suffix)
        vectors = table[list(suffix)][None].expand(len(rows), -1, -1)
        _, gradient = gradients(chat, rows, task.targets, vectors, self.loss)
        each = gradient / gradient.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        return each.sum(0) @ table.T

    def draw(
        self,
        suffix: Sequence[int],
        gradient: Float[Tensor, "tokens vocab"],
        random: torch.Generator,
    ) -> list[list[int]]:
        """Different candidates, in the order of the first position that they change.

        Those that change the same position stand together, so that a batch shares the most tokens.
        """
        best = (-gradient).topk(min(self.top_k, gradient.shape[1]), dim=1).indices.cpu()
        ids: Int[Tensor, "width tokens"] = torch.tensor([list(suffix)] * self.width)
        for row in ids:
            places = torch.randperm(len(suffix), generator=random)[: self.replace]
            picks = torch.randint(best.shape[1], (len(places),), generator=random)
            row[places] = best[places, picks]
        different = {tuple(row): None for row in ids.tolist() if row != list(suffix)}

        def changed(row: tuple[int, ...]) -> int:
            return next(
                i for i, (new, old) in enumerate(zip(row, suffix, strict=True)) if new != old
            )

        return [list(row) for row in sorted(different, key=changed, reverse=True)]

    def losses(
        self, chat: ChatModel, task: Task, suffixes: Sequence[Sequence[int]]
    ) -> Float[Tensor, "n"]:
        """Each suffix's loss, the mean over the prompts."""
        of_each = zip(*(task.rows(suffix) for suffix in suffixes), strict=True)
        found = [
            losses_of(chat, rows, target, loss=self.loss)
            for rows, target in zip(of_each, task.targets, strict=True)
        ]
        return torch.stack(found).mean(0)


def told(progress: Report, where: str, found: Found) -> None:
    """Says how a search goes."""
    progress(0, f"{where}: step {len(found.losses)}, loss {min(found.losses):.2f}")


def token_table(chat: ChatModel) -> Float[Tensor, "vocab d"]:
    """What the first block reads for every token of the vocabulary, in float32.

    Families that scale their embeddings do it by one number, which is measured.
    """
    weight = chat.inner.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    ids = torch.arange(min(16, len(weight)))
    seen, plain = embedded(chat, ids[None])[0], weight[: len(ids)].detach().float()
    return weight.detach().float() * ((seen * plain).sum() / plain.square().sum())


def survives(chat: ChatModel, task: Task, suffixes: Sequence[Sequence[int]]) -> list[bool]:
    """Whether each suffix, written after each prompt and read again, is the same tokens."""
    texts = chat.tokenizer.batch_decode([list(suffix) for suffix in suffixes])
    whole = [True] * len(suffixes)
    for prompt, head in zip(task.prompts, task.heads, strict=True):
        rendered = [chat.template.render(prompt + text) for text in texts]
        read = chat.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        whole = [
            kept and list(row) == [*head, *suffix, *task.tail]
            for kept, row, suffix in zip(whole, read, suffixes, strict=True)
        ]
    return whole
