"""Probe sampling: a small draft model says which candidates the model itself need not read.

Source: Zhao et al., "Accelerating Greedy Coordinate Gradient and General Prompt Optimization via Probe
Sampling" (arXiv 2403.01251). The model reads a random few, the probe set. The better the draft's
ranking agrees with the model's there, the fewer of the draft's favourites the model reads besides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SHARE = 16
"""One candidate in so many is in the probe set (published)."""

REDUCTION = 8
"""With no agreement at all, one candidate in so many is read besides (published)."""

Read = Callable[[Sequence[Sequence[int]]], tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]]
"""Losses of suffixes by the model itself, and whether the targets are said."""


def agreement(one: Float[Tensor, "n"], two: Float[Tensor, "n"]) -> float:
    """Spearman's rank correlation of two rankings, mapped from [-1, 1] to [0, 1].

    Of fewer than two nothing is known: one half.
    """
    count = len(one)
    if count < 2:
        return 0.5
    ranks = [values.argsort(stable=True).argsort().float() for values in (one, two)]
    gaps = float((ranks[0] - ranks[1]).square().sum())
    return 1 - 3 * gaps / (count * (count**2 - 1))


def narrowed(
    tried: Sequence[list[int]],
    guesses: Float[Tensor, "n"],
    read: Read,
    random: torch.Generator,
) -> tuple[list[list[int]], tuple[Float[Tensor, "m"], Bool[Tensor, "m"]]]:
    """The candidates that the model read, with what it made of them.

    Args:
        tried: all candidates.
        guesses: their losses by the draft.
        read: the model.
        random: of the probe set.
    """
    count = len(tried)
    probe = torch.randperm(count, generator=random)[: max(1, count // SHARE)].sort().values
    losses, said = read([tried[index] for index in probe.tolist()])
    doubt = 1 - agreement(guesses[probe], losses)
    others = [index for index in guesses.argsort().tolist() if index not in set(probe.tolist())]
    best = sorted(others[: max(1, int(doubt * count / REDUCTION))])
    if not best:
        return [tried[index] for index in probe.tolist()], (losses, said)
    more, more_said = read([tried[index] for index in best])
    kept = [tried[index] for index in [*probe.tolist(), *best]]
    return kept, (torch.cat([losses, more]), torch.cat([said, more_said]))
