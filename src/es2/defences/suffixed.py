"""Behind a suffix of free vectors: refusal is kept where an attack on the input embeddings stands.

Harmful prompts get a suffix of free vectors, as a soft prompt has it (Schwinn et al., arXiv
2402.09063), and before every update it climbs a few signed steps towards compliance: adversarial
training in the embedding space (Xhonneux et al., "Efficient Adversarial Training in LLMs with
Continuous Attacks", arXiv 2405.15589). An attack takes a hundred steps, and a step of training has
time for few; so suffixes start from those that an attack on the base has come to. A hundred steps make
any start of a response likely; so most rows are to refuse behind one. A model that learns this of
harmful answers breaks off harmless ones too; so those are held to the base's as far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.attacks.soft_prompt import embedded, gradients, in_columns, room_at, word_suffix
from es2.attacks.target import AFFIRMATION
from es2.data.fitting import spread
from es2.defences.after_start import begun
from es2.defences.base import Material
from es2.defences.beginnings import longest
from es2.defences.reference import Reference, kl_from
from es2.defences.responses import read_responses
from es2.defences.trainer import TrainSettings, seeded
from es2.models.forward import Held, Starts, forward
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, reading, training
from es2.progress import bar

TOKENS = 20
"""Length of a suffix, as published."""

RATE = 0.25
"""A signed step, in mean absolute coordinates of the embeddings: twice the attack's on Llama's."""

RECORDED = 8
"""Prompts whose attack on the base is recorded."""

PARTS, PART = 5, 10
"""An attack is recorded after each of so many parts, of so many steps."""


@dataclass(frozen=True)
class Suffixed:
    """Harmful rows with room for a suffix, and harmless answers.

    Attributes:
        heads: templated prompts with room.
        rows: the same with their responses: nothing or the start of an answer, and a refusal.
        begins: where the refusals start.
        starts: suffixes that an attack on the base has come to.
        far: length of a signed step.
        harmless: what the base does along its answers, which have no suffix.
    """

    heads: Sequence[list[int]]
    rows: Sequence[list[int]]
    begins: Sequence[int]
    starts: Float[Tensor, "k tokens d"]
    far: float
    harmless: Reference

    def read(
        self,
        chat: ChatModel,
        bad: Sequence[int],
        steps: int,
        seed: torch.Generator,
        first: float = 1.0,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Cross-entropy of refusals behind suffixes that have been looked for just now; and metrics.

        Args:
            chat: the model in training.
            bad: which harmful rows are in the batch.
            steps: of the search.
            seed: of the suffixes that the search starts from.
            first: weight of a refusal's first token, against 1 for every other.
        """
        heads, rows = [self.heads[i] for i in bad], [self.rows[i] for i in bad]
        drawn = torch.randint(len(self.starts), (len(bad),), generator=seed)
        vectors, losses = climb(chat, heads, self.starts[drawn], steps, self.far)
        firsts = [len(head) - chat.template.tail - TOKENS for head in heads]
        edit = in_columns(vectors, firsts, max(map(len, rows)))
        out = forward(chat, rows, keep=min(firsts), edits={0: edit})
        read = read_responses(chat, out, rows, [self.begins[i] for i in bad])
        refusal, opening = read.cross_entropy(first)
        metrics = {"cross_entropy_suffixed": float(refusal.detach()), "first_suffixed": opening}
        if losses:
            metrics |= {"suffix_first": losses[0], "suffix_last": losses[-1]}
        return refusal, metrics

    def drift(
        self, chat: ChatModel, good: Sequence[int], before: Starts | None = None
    ) -> Float[Tensor, ""]:
        """The KL from the base along harmless answers, every token alike.

        Args:
            chat: the model in training.
            good: which harmless rows are in the batch.
            before: what these rows start with, if it has been read.
        """
        rows = [self.harmless.rows[i] for i in good]
        keep = min(self.harmless.starts[i] for i in good)
        out = forward(chat, rows, keep=keep, starts=before)
        return kl_from(self.harmless, good, chat, out, 0, 1.0)


def climb(
    chat: ChatModel,
    heads: Sequence[list[int]],
    vectors: Float[Tensor, "n tokens d"],
    steps: int,
    far: float,
) -> tuple[Float[Tensor, "n tokens d"], list[float]]:
    """Suffixes by signed steps down an affirmation's loss, and that loss before each step.

    Args:
        chat: the model; its weights and their gradients are left alone.
        heads: templated prompts with room for a suffix.
        vectors: where the search starts.
        steps: of the search.
        far: length of a step in every coordinate.
    """
    targets = [chat.template.encode_response(AFFIRMATION)] * len(heads)
    held, losses = Held(), []
    for _ in range(steps):
        each, gradient = gradients(chat, heads, targets, vectors, held=held)
        vectors = vectors - far * gradient.sign()
        losses.append(float(each.mean()))
    return vectors, losses


def attack(
    chat: ChatModel,
    heads: Sequence[list[int]],
    seed: torch.Generator,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Float[Tensor, "k tokens d"], float]:
    """The suffixes after each part of an attack on the base, and how long its steps are.

    Args:
        chat: the base model.
        heads: templated prompts with room for a suffix.
        seed: of random tokens that every other suffix starts from; the rest start from words.
        progress: called with the number of steps done.
    """
    ids = torch.randint(len(chat.tokenizer), (len(heads), TOKENS), generator=seed)
    ids[::2] = word_suffix(chat, TOKENS)
    vectors, found = embedded(chat, ids), []
    far = RATE * float(vectors[:1].abs().mean())
    for _ in range(PARTS):
        vectors, _losses = climb(chat, heads, vectors, PART, far)
        found.append(vectors)
        progress(PART)
    return torch.cat(found), far


def record_suffixed(
    material: Material, harmful: Reference, starts: Sequence[list[int]], harmless: Reference
) -> Suffixed:
    """Rows whose responses start with nothing, one in five, or well; and an attack on some of them.

    Args:
        material: what the defence is given.
        harmful: rows whose responses refuse.
        starts: how their responses begin, as token ids.
        harmless: what the base does along answers as long as harmful ones stand.
    """
    chat, seed = material.chat, seeded(material.settings.seed, 0)
    heads, rows, begins = [], [], []
    for index, (row, first, start) in enumerate(
        zip(harmful.rows, harmful.firsts, starts, strict=True)
    ):
        cut = first + 1 - chat.template.tail
        whole, begin = begun(chat, row, first, start if index % 5 else [])
        heads.append(room_at(chat, row[: first + 1], cut, TOKENS))
        rows.append(room_at(chat, whole, cut, TOKENS))
        begins.append(begin + TOKENS)
    with bar("an attack on the base's embeddings", PARTS * PART) as advance:
        found, far = attack(chat, spread(heads, RECORDED), seed, advance)
    return Suffixed(heads, rows, begins, found, far, harmless)


def expected_suffixed(
    settings: TrainSettings, lengths: Lengths, harmful: int, rows: int, steps: int, response: int
) -> Work:
    """Recording an attack; in every step a search and a pass for half the batch.

    Args:
        settings: of the training loop.
        lengths: of the prompts, in tokens.
        harmful: prompts to fit on.
        rows: of a batch without gradient.
        steps: of a search.
        response: length of a refusal.
    """
    bad = (min(settings.batch_size, harmful) + 1) // 2
    own, target, head = lengths.own, lengths.count(AFFIRMATION), lengths.head
    behind = TOKENS + lengths.tail + target
    work = training(PARTS * PART, RECORDED, behind, RECORDED * target)
    work += reading(settings.steps * bad, lengths.prompt, rows, head)
    work += training(settings.steps * steps, bad, behind, bad * target)
    row = own + TOKENS + longest(lengths) + response
    return work + training(settings.steps, bad, row, bad * response, head)
