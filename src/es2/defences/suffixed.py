"""Behind a suffix of free vectors: refusal is kept where an attack on the input embeddings stands.

Harmful prompts get a suffix of free vectors, as a soft prompt has it (Schwinn et al., arXiv
2402.09063), and before every update it climbs a few signed steps towards compliance: adversarial
training in the embedding space (Xhonneux et al., "Efficient Adversarial Training in LLMs with
Continuous Attacks", arXiv 2405.15589). A hundred steps make any start likely; so most rows are to
refuse behind one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from jaxtyping import Float
from torch import Tensor

from es2.attacks.soft_prompt import embedded, gradients, in_columns, room_at, word_suffix
from es2.attacks.target import AFFIRMATION
from es2.defences.after_start import OPENINGS, begun
from es2.defences.reference import Reference
from es2.defences.responses import read_responses
from es2.models.forward import Held, forward
from es2.models.loading import ChatModel

TOKENS = 20
"""Length of a suffix, as published."""

RATE = 0.5
"""A signed step, in mean absolute coordinates of the embeddings: few steps have to go far."""


@dataclass(frozen=True)
class Suffixed:
    """Harmful rows with room for a suffix.

    Attributes:
        heads: templated prompts with room.
        rows: the same with their responses: nothing or an affirmative opening, and a refusal.
        begins: where the refusals start.
    """

    heads: Sequence[list[int]]
    rows: Sequence[list[int]]
    begins: Sequence[int]

    def loss(
        self,
        chat: ChatModel,
        picked: Sequence[int],
        steps: int,
        seed: torch.Generator,
        first: float = 1.0,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The refusals' cross-entropy under suffixes that have been looked for just now.

        Args:
            chat: the model in training.
            picked: rows of the batch.
            steps: of the search.
            seed: of the tokens that suffixes start from.
            first: weight of a refusal's first token, against 1 for every other.
        """
        heads = [self.heads[i] for i in picked]
        rows = [self.rows[i] for i in picked]
        vectors, metrics = climb(chat, heads, steps, seed)
        firsts = [len(head) - chat.template.tail - TOKENS for head in heads]
        edit = in_columns(vectors, firsts, max(map(len, rows)))
        out = forward(chat, rows, keep=min(firsts), edits={0: edit})
        read = read_responses(chat, out, rows, [self.begins[i] for i in picked])
        loss = read.cross_entropy(first)[0]
        return loss, metrics | {"cross_entropy_suffixed": float(loss.detach())}


def climb(
    chat: ChatModel, heads: Sequence[list[int]], steps: int, seed: torch.Generator
) -> tuple[Float[Tensor, "n tokens d"], dict[str, float]]:
    """Suffixes by signed steps on an affirmation's loss, and that loss.

    Every other one starts from words, as published, the rest from random tokens.

    Args:
        chat: the model in training; its weights and their gradients are left alone.
        heads: templated prompts with room for a suffix.
        steps: of the search.
        seed: of the tokens.
    """
    ids = torch.randint(len(chat.tokenizer), (len(heads), TOKENS), generator=seed)
    ids[::2] = word_suffix(chat, TOKENS)
    vectors = embedded(chat, ids)
    far = RATE * vectors.abs().mean()
    targets = [chat.template.encode_response(AFFIRMATION)] * len(heads)
    held, losses = Held(), []
    for _ in range(steps):
        each, gradient = gradients(chat, heads, targets, vectors, held=held)
        vectors -= far * gradient.sign()
        losses.append(float(each.mean()))
    return vectors, {"suffix_first": losses[0], "suffix_last": losses[-1]} if losses else {}


def record_suffixed(chat: ChatModel, harmful: Reference) -> Suffixed:
    """Rows whose responses start with nothing and with openings, in turn.

    Args:
        chat: the model.
        harmful: rows whose responses refuse.
    """
    openings = [[], *(chat.template.encode_response(text) for text in OPENINGS)]
    heads, rows, begins = [], [], []
    for row, first, opening in zip(harmful.rows, harmful.firsts, cycle(openings)):
        cut = first + 1 - chat.template.tail
        whole, begin = begun(chat, row, first, opening)
        heads.append(room_at(chat, row[: first + 1], cut, TOKENS))
        rows.append(room_at(chat, whole, cut, TOKENS))
        begins.append(begin + TOKENS)
    return Suffixed(heads, rows, begins)
