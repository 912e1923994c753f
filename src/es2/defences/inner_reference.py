"""What the base model writes and what goes on inside it, for defences that bend inner states.

Its texts are its own, made before training and kept in memory alone: greedy answers, and harmful ones
that it was made to begin (unsafe.py). Its inner states along them are read again in every step, in
one more pass without gradient: the model with its LoRA switched off or, where all weights are trained,
a copy. Recording them once would take rows x tokens x layers x d numbers: 9 GB in float32 for 2000
rows of 80 tokens on a model of 19 layers and d = 576.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.data.fitting import spread
from es2.defences.base import Material, seen_count
from es2.defences.trainer import TrainSettings, adapter_off
from es2.defences.unsafe import Unsafe, expected_unsafe, unsafe_answers
from es2.models.forward import Forward, forward
from es2.models.generation import generate
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, answering, reading, training
from es2.progress import bar
from es2.separation.layers import check_layers


@dataclass(frozen=True)
class Texts:
    """Token rows, each a templated prompt and a response.

    Attributes:
        rows: token ids.
        begins: where in each row the response begins.
    """

    rows: list[list[int]]
    begins: list[int]

    @classmethod
    def of(cls, heads: Sequence[list[int]], responses: Sequence[list[int]]) -> Texts:
        """Templated prompts, each with its response."""
        rows = [head + response for head, response in zip(heads, responses, strict=True)]
        return cls(rows, list(map(len, heads)))

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: Texts) -> Texts:
        return Texts(self.rows + other.rows, self.begins + other.begins)

    def subset(self, indices: Iterable[int]) -> Texts:
        """Some of the rows, in the order given."""
        picked = list(indices)
        return Texts([self.rows[i] for i in picked], [self.begins[i] for i in picked])

    def responses(self) -> list[list[int]]:
        """Token ids of each response."""
        return [row[begin:] for row, begin in zip(self.rows, self.begins, strict=True)]


def own_texts(
    chat: ChatModel,
    prompts: Sequence[str],
    tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Texts:
    """The model's own greedy responses.

    Args:
        chat: the model.
        prompts: texts, to be templated.
        tokens: at most this many are generated for each.
        progress: called with the number of prompts done.
    """
    heads = [chat.template.encode(prompt) for prompt in prompts]
    return Texts.of(heads, generate(chat, heads, tokens, progress=progress))


def unsafe_texts(chat: ChatModel, answers: Sequence[Unsafe]) -> Texts:
    """Harmful prompts with what was answered to them."""
    heads = [chat.template.encode(one.prompt) for one in answers]
    return Texts.of(heads, [one.response for one in answers])


def texts_to_train_on(
    material: Material, tokens: int, openings: Sequence[str], refusals: float
) -> tuple[Texts, Texts]:
    """Unsafe texts, harmful prompts that the model goes along with; and safe ones.

    Safe texts are its answers to harmless prompts and, as far as it does refuse, to harmful ones.

    Args:
        material: what the defence is given.
        tokens: length of what the model writes.
        openings: what unsafe responses may begin with, see `unsafe_answers`.
        refusals: for each answer to a harmless prompt, so many refusals.
    """
    chat, fit = material.chat, material.fit
    bad, good = material.seen(fit.harmful), material.seen(fit.harmless)
    refused = spread(fit.harmful, round(refusals * len(good)))
    total = len(bad) + len(good) + len(refused)
    with bar("the model's own answers", total) as advance:
        begun = unsafe_answers(material, bad, tokens, openings, advance)
        answered = own_texts(chat, good, tokens, progress=advance)
        declined = own_texts(chat, refused, tokens, progress=advance)
    declined = declined.subset(material.telling(declined.responses(), refused=True))
    return unsafe_texts(chat, begun), answered + declined


def expected_bending(
    settings: TrainSettings,
    lengths: Lengths,
    harmful: int,
    harmless: int,
    rows: int,
    tokens: int,
    openings: Sequence[str],
    refusals: float,
    scored: float = 0.0,
) -> Work:
    """Writing the texts, then steps in which both models read a batch of either kind; at most.

    Args:
        settings: of the training loop.
        lengths: of the prompts, in tokens.
        harmful: prompts to fit on.
        harmless: the same.
        rows: of a batch without gradient.
        tokens: see `texts_to_train_on`, as for the next two.
        openings: the same.
        refusals: the same.
        scored: share of a batch's tokens whose logits the loss reads.
    """
    bad, good = (seen_count(settings, count) for count in (harmful, harmless))
    own, head = lengths.own, lengths.head
    work = expected_unsafe(lengths, bad, tokens, openings, rows)
    work += answering(good, own, tokens, rows, head)
    work += answering(min(harmful, round(refusals * good)), own, tokens, rows, head)
    batch = sum(min(settings.batch_size, count) for count in (harmful, harmless))
    text = own + tokens
    work += reading(batch, text, rows, head).times(settings.steps)
    return work + training(settings.steps, batch, text, scored * batch * text, head)


def layers_at(depth: int, given: Sequence[int] | None, shares: Iterable[float]) -> tuple[int, ...]:
    """The layers that a user gives or, if none, those nearest to shares of a model's depth.

    Raises:
        Es2Error: if a given layer is not one of 1 to `depth`.
    """
    if given is None:
        return tuple(sorted({max(1, round(share * depth)) for share in shares}))
    check_layers(given, depth)
    return tuple(sorted(set(given)))


def before_and_now(
    chat: ChatModel,
    copied: ChatModel | None,
    rows: Sequence[Sequence[int]],
    layers: Iterable[int],
    stop: bool = False,
) -> tuple[Forward, Forward]:
    """A batch read by the base model, without gradient, and by the model in training.

    Both can be read from the user's text on: the tokens before it are the same in every row.

    Args:
        chat: the model in training.
        copied: the base, see `frozen_copy`.
        rows: token ids of each row.
        layers: whose outputs to keep.
        stop: do not run the blocks above these layers. Nothing trains them then.
    """
    layers, keep = list(layers), chat.template.head
    with torch.no_grad(), adapter_off(chat) if copied is None else nullcontext():
        before = forward(copied or chat, rows, layers, stop, keep)
    return before, forward(chat, rows, layers, stop, keep)


@dataclass(frozen=True)
class Places:
    """Positions in the rows of a batch.

    Attributes:
        rows: the row of each.
        positions: counted in the whole row.
    """

    rows: list[int]
    positions: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, out: Forward, states: Float[Tensor, "batch suffix d"]) -> Float[Tensor, "n d"]:
        """The vectors at these positions, in float32."""
        return out.at(states, self.rows, self.positions).float()


def places(rows: Sequence[Sequence[int]], starts: Sequence[int], shift: int = 0) -> Places:
    """All positions of some rows of a batch, from a start in each.

    Args:
        rows: one after the other in the batch.
        starts: the first position in each.
        shift: the place of the first of these rows in the batch.
    """
    spans = [
        (shift + i, range(s, len(r))) for i, (r, s) in enumerate(zip(rows, starts, strict=True))
    ]
    return Places(
        [index for index, span in spans for _ in span],
        [position for _, span in spans for position in span],
    )


def drift(before: Forward, now: Forward, layers: Iterable[int], where: Places) -> Float[Tensor, ""]:
    """Mean L2 distance of states from the base's, over layers and positions; 0 if there are none."""
    moved = [
        torch.linalg.vector_norm(
            where.of(now, now.states[n]) - where.of(before, before.states[n]), dim=-1
        )
        for n in layers
    ]
    return torch.stack(moved).sum() / max(1, len(moved) * len(where))
