"""What is done to a batch's harmful rows, so that refusal is learnt under attack.

The last rows of a batch are its harmful ones once more, read with their residual stream changed:
moved towards the harmless rows, as SCAV moves them. The way is read off the batch's own rows, so that
it is always that of the model as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from es2.models.activations import Edit


@dataclass(frozen=True)
class Batch:
    """Where the classes stand in a batch whose first rows are plain and whose last ones are changed.

    Attributes:
        split: the first so many rows are harmful, and so are the last so many.
        ends: the last prompt token of every plain row.
        longest: tokens of the longest row.
    """

    split: int
    ends: Sequence[int]
    longest: int

    def offset(self, stream: Float[Tensor, "batch suffix d"]) -> int:
        """Tokens that all rows share and that the stream is without."""
        return self.longest - stream.shape[1]

    def centres(
        self, stream: Float[Tensor, "batch suffix d"]
    ) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """Of the harmful and of the harmless plain rows at the last prompt token."""
        read = self.lasts(stream)
        return read[: self.split].mean(0), read[self.split :].mean(0)

    def lasts(self, stream: Float[Tensor, "batch suffix d"]) -> Float[Tensor, "plain d"]:
        """The plain rows' states at the last prompt token, without gradient."""
        ends = torch.tensor(list(self.ends), device=stream.device) - self.offset(stream)
        return stream[torch.arange(len(ends)), ends].detach().float()

    def columns(self, stream: Float[Tensor, "batch suffix d"]) -> Int[Tensor, "suffix"]:
        """The stream's columns, counted in whole rows."""
        return torch.arange(stream.shape[1], device=stream.device) + self.offset(stream)

    def replaced(
        self, stream: Float[Tensor, "batch suffix d"], changed: Float[Tensor, "n suffix d"]
    ) -> Float[Tensor, "batch suffix d"]:
        """The stream with other last rows."""
        return torch.cat([stream[: len(self.ends)], changed.to(stream.dtype)])


def moved(batch: Batch, shares: Float[Tensor, "n 1"]) -> Edit:
    """Moves the last rows along the line between the centres, from the last prompt token on.

    Args:
        batch: the rows.
        shares: how far each is moved at the least: 0 is the harmful centre, 1 the harmless one.
    """

    def edit(stream: Float[Tensor, "batch suffix d"]) -> Float[Tensor, "batch suffix d"]:
        harmful, harmless = batch.centres(stream)
        way = harmless - harmful
        last = stream[len(batch.ends) :].float()
        along = (last - harmful) @ way / way.dot(way)
        ends = torch.tensor(list(batch.ends[: batch.split]), device=stream.device)
        behind = batch.columns(stream) >= ends[:, None]
        far = (shares.to(stream.device) - along).clamp(min=0.0) * behind
        return batch.replaced(stream, last + far[..., None] * way)

    return edit
