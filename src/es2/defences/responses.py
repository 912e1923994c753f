"""How likely a model makes given responses: cross-entropy, and what a model pays for saying them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from es2.models.blocks import logits
from es2.models.forward import Forward
from es2.models.loading import ChatModel


@dataclass(frozen=True)
class Responses:
    """A pass's logits for the tokens of some rows' responses, one after the other.

    Attributes:
        scores: logits before each token.
        tokens: of the responses.
        opening: whether a token is its response's first.
    """

    scores: Float[Tensor, "n vocab"]
    tokens: Int[Tensor, "n"]
    opening: Bool[Tensor, "n"]

    def cross_entropy(self, first: float = 1.0) -> tuple[Float[Tensor, ""], float]:
        """The weighed mean over all tokens, in nats; and that of the first tokens alone.

        Args:
            first: weight of a response's first token, against 1 for every other.
        """
        each = cross_entropy(self.scores, self.tokens, reduction="none")
        weights = torch.where(self.opening, first, 1.0)
        mean = (weights * each).sum() / weights.sum()
        return mean, float(each.detach()[self.opening].mean())

    def refrain(self, floor: float = -5.0) -> Float[Tensor, ""]:
        """Mean of -log(1 - p) over all tokens: to be minimised where they are not to be said.

        Source: the "away" loss of HarmBench's code (arXiv 2402.04249).

        Args:
            floor: a token whose log-probability is below this is unlikely enough and counts 0.
        """
        others = self.scores.scatter(1, self.tokens[:, None], -torch.inf)
        every = self.scores.logsumexp(-1)
        chance = self.scores.gather(1, self.tokens[:, None])[:, 0] - every
        return torch.where(chance < floor, 0.0, every - others.logsumexp(-1)).mean()


def read_responses(
    chat: ChatModel,
    out: Forward,
    rows: Sequence[Sequence[int]],
    begins: Sequence[int],
    shift: int = 0,
) -> Responses:
    """What a pass says of rows' responses.

    Args:
        chat: the model.
        out: its pass over a batch in which these rows stand.
        rows: token ids, templated prompt then response.
        begins: where each row's response starts.
        shift: the place of the first of these rows in the batch.
    """
    assert out.final is not None
    places = [(i, p) for i, row in enumerate(rows) for p in range(begins[i], len(row))]
    hidden = out.at(out.final, [shift + i for i, _ in places], [p - 1 for _, p in places])
    tokens = torch.tensor([rows[i][p] for i, p in places], device=hidden.device)
    opening = torch.tensor([p == begins[i] for i, p in places], device=hidden.device)
    return Responses(logits(chat.model, hidden), tokens, opening)
