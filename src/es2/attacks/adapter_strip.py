"""Adapter strip: the defence's change of the weights, found by comparison and turned down.

What anyone can do who has the hardened weights and the public model they came from; that low-rank
defences are undone so is reported for several of them (see docs/attacks.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from es2.attacks.base import ATTACKS, Attempt, Report, ThreatModel, Victim, silent
from es2.attacks.budget import metered
from es2.attacks.weights import restored
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.generation import generate
from es2.models.loading import ChatModel


def changes(base: ChatModel, defended: ChatModel) -> dict[str, Float[Tensor, "..."]]:
    """What a defence added to each weight that it changed, by the weight's name.

    Raises:
        Es2Error: if the models have different weights, so that one cannot come from the other.
    """
    before, after = (dict(chat.inner.named_parameters()) for chat in (base, defended))
    if {n: p.shape for n, p in before.items()} != {n: p.shape for n, p in after.items()}:
        raise Es2Error(
            f"adapter_strip: {defended.name} does not have the weights of {base.name}; give the "
            "model that it was made from as the base"
        )
    found = {name: (after[name] - before[name]).detach() for name in after}
    return {name: change for name, change in found.items() if bool(change.any())}


def rank(change: Float[Tensor, "m n"], share: float = 0.99) -> int:
    """How many singular values hold a share of a matrix's squared norm: low after a LoRA."""
    energy = torch.linalg.svdvals(change.float()).square().cumsum(0)
    return int((energy < share * energy[-1]).sum()) + 1


@contextmanager
def turned_down(
    chat: ChatModel, added: dict[str, Float[Tensor, "..."]], left: float
) -> Iterator[None]:
    """Within the context only a share of the change is left in the weights."""
    weights = dict(chat.inner.named_parameters())
    with restored([weights[name] for name in added]):
        for name, change in added.items():
            weights[name].sub_((1 - left) * change)
        yield


@ATTACKS.register
@dataclass(frozen=True)
class AdapterStrip:
    """Asks the model with a share of the defence's change left.

    Nothing left is the undefended model; below zero the change is turned round.

    Attributes:
        left: shares of the change to leave.
        max_new_tokens: length of the answer.
    """

    name: ClassVar[str] = "adapter_strip"
    threat: ClassVar[ThreatModel] = "weights"
    published: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[Mapping[str, float]] = {"max_new_tokens": 1}
    left: tuple[float, ...] = (0.75, 0.5, 0.25, 0.0, -0.5)
    max_new_tokens: int = 48

    def settings(self) -> Sequence[str]:
        """One for each share."""
        return [f"left={left:g}" for left in self.left]

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Finds the change, then answers every prompt under each share of it.

        Raises:
            Es2Error: if the victim's base is not known.
        """
        if victim.base is None:
            raise Es2Error("adapter_strip needs the undefended model; give it with --base")
        if set(self.settings()) <= set(skip):
            return
        chat, added = victim.chat, changes(victim.base, victim.chat)
        matrices = [change for change in added.values() if change.ndim == 2]
        details = {
            "matrices": float(len(matrices)),
            "rank": float(rank(max(matrices, key=torch.Tensor.norm))) if matrices else 0.0,
        }
        rows = [chat.template.encode(prompt.text) for prompt in prompts]
        for left, setting in zip(self.left, self.settings(), strict=True):
            if setting in skip:
                continue
            with turned_down(chat, added, left), metered(chat) as spent:
                answers = generate(chat, rows, self.max_new_tokens, progress=progress)
            yield [
                Attempt.of(
                    self,
                    setting,
                    prompt,
                    chat.template.decode(answer),
                    spent.among(len(prompts)),
                    details=dict(details),
                )
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
