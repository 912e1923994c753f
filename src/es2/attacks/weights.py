"""Attacks on the weights leave the model as they found it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def restored(weights: Sequence[Tensor]) -> Iterator[None]:
    """Within the context weights may be changed in place; at its end they are what they were."""
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
