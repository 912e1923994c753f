"""GCG: a suffix of real tokens, found by greedy coordinate gradient.

Source: Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models" (arXiv
2307.15043). Each step the gradient in the suffix's one-hot tokens names the most promising
replacements at every position, some are drawn, and the suffix of the lowest loss becomes the next.
The options: mellowmax (arXiv 2402.12329, in place of cross-entropy), momentum of the gradient (arXiv
2405.01229), a buffer of suffixes of which the best is changed next (arXiv 2407.17447), merging of a
step's best replacements (arXiv 2405.21018), a schedule of positions, and probe sampling
(`probe_sampling.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
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
from es2.attacks.probe_sampling import REDUCTION, SHARE, narrowed
from es2.attacks.soft_prompt import Sharing, embedded, gradients
from es2.attacks.target import AFFIRMATION, Loss, Reading, read_target
from es2.data.fitting import spread
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.forward import Held
from es2.models.generation import generate
from es2.models.loading import ChatModel, load
from es2.models.work import Lengths, Work, answering

Rule = Literal["lowest loss", "first success"]
Positions = Literal["random", "turns"]
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
        positions: which are changed: `random` ones, others in every candidate, or in `turns`, from
            the last to the first, the same in all candidates of a step.
        merge: the step's best so many replacements are tried together too, the best two, the best
            three and so on; 0 or 1 for none.
        start: the suffix before the first step.
        loss: `cross_entropy`, or `mellowmax`, which looks at the worst tokens of the target most.
        momentum: weight of the earlier steps' gradients.
        buffer: so many of the best suffixes are kept and the best of them changed next; 0 always
            goes on from the last step's.
        draft: a small chat model that reads every candidate, so that the model itself reads only
            those that seem good (probe sampling); empty for none.
        stop: stop once the target is the greedy response.
        sharing: a suffix for each `prompt`, or a `universal` one.
        fit: training prompts that a universal suffix is fitted on.
        max_new_tokens: length of the answer.
        seed: of the draws.
    """

    name: ClassVar[str] = "gcg"
    threat: ClassVar[ThreatModel] = "prompt text"
    least: ClassVar[Mapping[str, float]] = {
        "steps": 1,
        "width": 1,
        "top_k": 1,
        "replace": 1,
        "merge": 0,
        "momentum": 0,
        "buffer": 0,
        "fit": 1,
        "max_new_tokens": 1,
    }
    steps: int = 250
    width: int = 512
    top_k: int = 256
    replace: int = 1
    positions: Positions = "random"
    merge: int = 0
    start: str = " x x x x x x x x x x x x x x x x x x x x"
    loss: Loss = "cross_entropy"
    momentum: float = 0.0
    buffer: int = 0
    draft: str = ""
    stop: bool = True
    sharing: Sharing = "prompt"
    fit: int = 8
    max_new_tokens: int = 48
    seed: int = 0

    @property
    def prompt_by_prompt(self) -> bool:
        """Whether each prompt has a search of its own."""
        return self.sharing == "prompt"

    @property
    def published(self) -> tuple[str, ...]:
        """Either rule, at the published length and width."""
        return RULES if as_given(self) else ()

    def settings(self) -> Sequence[str]:
        """By which rule the suffix is selected."""
        return RULES

    def expected(self, lengths: Lengths, prompts: int, rows: int) -> Work:
        """Gradients, candidates and answers; all steps, as if no search ended early."""
        universal = self.sharing == "universal"
        searches, fitted = (1, self.fit) if universal else (prompts, 1)
        suffix = lengths.count(self.start)
        target = lengths.count(AFFIRMATION) if universal else lengths.target
        behind = lengths.tail + target - 1
        size = max(1, rows // 2)
        width: float = self.width
        if self.draft:  # as if its ranking and the model's agreed by half
            width = self.width / SHARE + self.width / REDUCTION / 2
        width += max(0, self.merge - 1)
        read = width * (self._changed(suffix, width, size) + behind)
        graded = suffix + behind
        step = Work(
            read=fitted * read,
            graded=fitted * graded,
            passes=3 * math.ceil(fitted / size),
            drafted=fitted
            * self.width
            * (self._changed(suffix, self.width, rows) + behind if self.draft else 0),
            batch=min(fitted, size) * graded,
            held=lengths.head + lengths.prompt + size * graded,
            scored=min(fitted, size) * target,
        )
        once = Work(read=fitted * (lengths.head + lengths.prompt))
        own = lengths.own + suffix
        new = self.max_new_tokens
        answers = answering(prompts, own, new, rows if universal else 1, lengths.head)
        return (step.times(self.steps) + once).times(searches) + answers.times(len(RULES))

    def _changed(self, suffix: float, width: float, size: int) -> float:
        """How many of the suffix's tokens a candidate's row reads; those before are the batch's own.

        Candidates stand in the order of the first position that they change, so of B batches of equal
        size the b-th shares all but b / B of the suffix: (B + 1) / 2B on average.
        """
        batches = math.ceil(width / size)
        if self.positions == "turns":
            return (min(suffix, self.steps * self.replace) + 1) / 2
        first = suffix * self.replace / (self.replace + 1)  # of several positions, the first
        return min(suffix, first + suffix / (2 * batches))

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Searches and answers, prompt after prompt; all at once with a universal suffix."""
        wanted = [rule for rule in RULES if rule not in skip]
        if not wanted:
            return
        known = victim.known
        table, draft = token_table(known), load(self.draft) if self.draft else None
        universal = self.sharing == "universal"
        portions = [list(prompts)] if universal else [[prompt] for prompt in prompts]
        for number, portion in enumerate(portions, 1):
            where = "one for all" if universal else f"prompt {number} of {len(portions)}"
            texts = spread(victim.fit.harmful, self.fit) if universal else [portion[0].text]
            target = AFFIRMATION if universal else portion[0].target or AFFIRMATION
            task = self.task(known, texts, [target] * len(texts))
            found = self.search(known, task, table, partial(told, progress, where), draft)
            yield [
                attempt
                for rule in wanted
                for attempt in self.answers(victim.chat, portion, rule, found, progress)
            ]

    def answers(
        self,
        chat: ChatModel,
        prompts: Sequence[Prompt],
        rule: Rule,
        found: Found,
        progress: Report,
    ) -> list[Attempt]:
        """Every prompt's attempt with the suffix that a rule selects."""
        suffix = (found.first or found.lowest) if rule == "first success" else found.lowest
        asked = [prompt.text + str(chat.tokenizer.decode(suffix)) for prompt in prompts]
        rows = [chat.template.encode(text) for text in asked]
        with metered(chat) as answering:
            answers = generate(chat, rows, self.max_new_tokens, progress=progress)
        spent = (found.spent + answering).among(len(prompts))
        return [
            Attempt.of(
                self,
                rule,
                prompt,
                chat.template.decode(answer),
                replace(spent, steps=len(found.losses)),
                seed=self.seed,
                losses=list(found.losses),
                rule=rule,
                details={
                    "asked": text,
                    "candidates": float(found.candidates),
                    "succeeded": float(found.first is not None),
                },
            )
            for prompt, answer, text in zip(prompts, answers, asked, strict=True)
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
        draft: ChatModel | None = None,
    ) -> Found:
        """Greedy coordinate gradient from the start suffix; a pure function of the seed.

        Args:
            chat: the model.
            task: what the suffix is to work for.
            table: what the first block reads for every token, see `token_table`.
            report: called after every step.
            draft: the small model of probe sampling.

        Raises:
            Es2Error: if the start suffix does not survive being written and read again.
        """
        now = list(chat.tokenizer(self.start, add_special_tokens=False)["input_ids"])
        if not surviving(chat, task, [now]):
            raise Es2Error(
                f"gcg: the start suffix {self.start!r} is other tokens after a prompt than alone; "
                "give another start"
            )
        random = torch.Generator().manual_seed(self.seed)
        found = Found(now)
        buffer: list[tuple[float, list[int]]] = []
        velocity: Tensor | None = None
        held = [Held() for _ in task.heads]
        read = partial(self.read, chat, task, held=held)
        drafted = nullcontext(Budget()) if draft is None else metered(draft)
        with metered(chat) as found.spent, drafted as drafting:
            for step in range(self.steps):
                gradient = self.token_gradient(chat, task, now, table, held)
                velocity = gradient if velocity is None else self.momentum * velocity + gradient
                tried = surviving(chat, task, self.draw(now, velocity, random, step))
                if not tried:
                    found.losses.append(found.losses[-1] if found.losses else float("inf"))
                    continue
                found.candidates += len(tried)
                if draft is None:
                    losses, said = read(tried)
                else:
                    guesses = self.guesses(chat, draft, task, tried)
                    tried, (losses, said) = narrowed(tried, guesses, read, random)
                if more := surviving(chat, task, merged(now, tried, losses, self.merge)):
                    found.candidates += len(more)
                    more_losses, more_said = read(more)
                    tried += more
                    losses, said = torch.cat([losses, more_losses]), torch.cat([said, more_said])
                best = int(losses.argmin())
                low, now = float(losses[best]), tried[best]
                if low <= min(found.losses, default=float("inf")):
                    found.lowest = now
                found.losses.append(low)
                if found.first is None and said[best]:
                    found.first = now
                if self.buffer:
                    buffer = sorted([*buffer, (low, now)])[: self.buffer]
                    now = buffer[0][1]
                report(found)
                if self.stop and found.first is not None:
                    break
        found.spent = found.spent + replace(drafting, seconds=0.0)
        return found

    def token_gradient(
        self,
        chat: ChatModel,
        task: Task,
        suffix: Sequence[int],
        table: Float[Tensor, "vocab d"],
        held: Sequence[Held],
    ) -> Float[Tensor, "tokens vocab"]:
        """Gradient of the loss in the suffix's one-hot tokens; of several prompts, normed and added."""
        rows = task.rows(suffix)
        vectors = table[list(suffix)][None].expand(len(rows), -1, -1)
        _, gradient = gradients(chat, rows, task.targets, vectors, self.loss, held[0])
        each = gradient / gradient.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        return each.sum(0) @ table.T

    def draw(
        self,
        suffix: Sequence[int],
        gradient: Float[Tensor, "tokens vocab"],
        random: torch.Generator,
        step: int = 0,
    ) -> list[list[int]]:
        """Different candidates, in the order of the first position that they change.

        Those that change the same position stand together, so that a batch shares the most tokens.
        """
        best = (-gradient).topk(min(self.top_k, gradient.shape[1]), dim=1).indices.cpu()
        ids: Int[Tensor, "width tokens"] = torch.tensor([list(suffix)] * self.width)
        turn = torch.arange(self.replace).add(step * self.replace).add(1).neg() % len(suffix)
        for row in ids:
            places = torch.randperm(len(suffix), generator=random)[: self.replace]
            places = turn if self.positions == "turns" else places
            picks = torch.randint(best.shape[1], (len(places),), generator=random)
            row[places] = best[places, picks]
        different = {tuple(row): None for row in ids.tolist() if row != list(suffix)}

        def changed(row: tuple[int, ...]) -> int:
            return next(
                i for i, (new, old) in enumerate(zip(row, suffix, strict=True)) if new != old
            )

        return [list(row) for row in sorted(different, key=changed, reverse=True)]

    def read(
        self,
        chat: ChatModel,
        task: Task,
        suffixes: Sequence[Sequence[int]],
        held: Sequence[Held],
    ) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
        """Each suffix's loss, the mean over the prompts, and whether every target is said.

        Half batches of like suffixes share more tokens than they cost in speed.
        """
        of_each = zip(*(task.rows(suffix) for suffix in suffixes), strict=True)
        size = max(1, chat.batch_size // 2)
        found: list[Reading] = [
            read_target(chat, rows, target, loss=self.loss, held=own, size=size)
            for rows, target, own in zip(of_each, task.targets, held, strict=True)
        ]
        losses = torch.stack([reading.losses for reading in found]).mean(0)
        return losses, torch.stack([reading.said for reading in found]).all(0)

    def guesses(
        self,
        chat: ChatModel,
        draft: ChatModel,
        task: Task,
        suffixes: Sequence[Sequence[int]],
    ) -> Float[Tensor, "n"]:
        """What a draft model, with its own tokens and template, thinks of each suffix."""
        texts = chat.tokenizer.batch_decode([list(suffix) for suffix in suffixes])
        found = []
        for prompt, target in zip(task.prompts, task.targets, strict=True):
            heads = [draft.template.encode(prompt + text) for text in texts]
            wanted = draft.template.encode_response(str(chat.tokenizer.decode(target)))
            found.append(read_target(draft, heads, wanted, loss=self.loss).losses)
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


def surviving(chat: ChatModel, task: Task, suffixes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The suffixes that, written after each prompt and read again, are the same tokens."""
    if not suffixes:  # some versions of transformers decode an empty batch to one empty text
        return []
    texts = chat.tokenizer.batch_decode([list(suffix) for suffix in suffixes])
    left = list(zip(suffixes, texts, strict=True))
    for prompt, head in zip(task.prompts, task.heads, strict=True):
        if not left:
            break
        rendered = [chat.template.render(prompt + text) for _, text in left]
        read = chat.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        left = [
            pair
            for pair, row in zip(left, read, strict=True)
            if list(row) == [*head, *pair[0], *task.tail]
        ]
    return [list(suffix) for suffix, _ in left]


def merged(
    now: Sequence[int],
    tried: Sequence[Sequence[int]],
    losses: Float[Tensor, "n"],
    most: int,
) -> list[list[int]]:
    """The suffix with the replacements of its best two candidates, of its best three, and so on.

    Where two change the same position, the better one's replacement stands.
    """
    order = losses.argsort(stable=True)[:most].tolist()
    whole, found = list(now), []
    for index in order:
        changed = {i: new for i, new in enumerate(tried[index]) if new != now[i] == whole[i]}
        for place, token in changed.items():
            whole[place] = token
        if index != order[0] and changed:
            found.append(list(whole))
    return found
