"""The one place that decodes: batched over a shared-prefix cache; finished rows leave the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from es2.models.activations import Edit, edit
from es2.models.blocks import logits
from es2.models.forward import prefix_cache, shared_prefix, slides, view_of
from es2.models.loading import ChatModel

Result = TypeVar("Result")

Edits = Mapping[int, Edit] | Callable[[list[int]], Mapping[int, Edit]]
"""Changes to the residual stream by layer: the same for all rows, or made for rows by their places."""


@dataclass(frozen=True)
class Sampling:
    """Draw tokens instead of taking the likeliest.

    What a row is given does not depend on the rows beside it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


def in_batches(
    chat: ChatModel,
    rows: Sequence[Sized],
    function: Callable[[list[int]], list[Result]],
    progress: Callable[[int], None] = lambda done: None,
    size: int | None = None,
) -> list[Result]:
    """Applies a function to batches of rows of like length; results in the rows' order.

    The function is given the rows' places, so that it finds what else belongs to a row. No row of a
    batch is over twice as long as another. A batch that does not fit into memory is halved, once for
    all later ones. None has more rows than `size`, where that is given.
    """
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    results: dict[int, Result] = {}
    while len(results) < len(order):
        left = order[len(results) :][: min(chat.batch_size, size or len(order))]
        batch = [place for place in left if len(rows[place]) <= 2 * len(rows[left[0]])]
        try:
            done = function(batch)
        except RuntimeError as error:
            if not out_of_memory(error) or len(batch) == 1:
                raise
            done = None
        if done is None:  # not in `except`, where the error keeps the batch's tensors alive
            chat.batch_size = len(batch) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        results.update(zip(batch, done, strict=True))
        progress(len(batch))
    return [results[place] for place in range(len(rows))]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


def generate(
    chat: ChatModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    edits: Edits | None = None,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] = lambda done: None,
    keep: int | None = None,
) -> list[list[int]]:
    """Continues token rows until a stop token or `max_new_tokens`; greedy unless sampled.

    Args:
        chat: the model.
        rows: token ids of each templated prompt, with any start of the response.
        max_new_tokens: at most this many tokens a row.
        edits: changes to the residual stream, by layer. They see the rows' own tokens (not the
            shared prefix), left-padded, so that index -1 is the last token of every row; then one
            new token at a time. Made for a batch, they are told the places of its rows, in the
            batch's order; rows that are finished leave it from then on.
        sampling: draw tokens instead.
        progress: called with the number of rows that a finished batch held.
        keep: share at most this many tokens, so that edits see the rows from there on.

    Returns:
        The new tokens of each row, without the stop token.
    """
    found = _continued(chat, rows, max_new_tokens, edits, sampling, progress, keep, reads=False)
    return [tokens for tokens, _ in found]


def generate_and_read(
    chat: ChatModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[list[int], Float[Tensor, "_ d"]]]:
    """Continues rows as `generate` does, greedily, and keeps what decoding has read on the way.

    Args:
        chat: the model.
        rows: token ids of each templated prompt.
        max_new_tokens: at most this many tokens a row; 0 reads the prompt's end alone.
        progress: called with the number of rows that a finished batch held.

    Returns:
        Of each row, the new tokens, and the final hidden states at the row's last token and at each
        new one.
    """
    found = _continued(chat, rows, max_new_tokens, None, None, progress, None, reads=True)
    return [(tokens, torch.stack(hidden)) for tokens, hidden in found]


Continued = tuple[list[int], list[Tensor]]
"""A row's new tokens, and final hidden states before each and after the last, if they are read."""


@torch.no_grad()
def _continued(
    chat: ChatModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    edits: Edits | None,
    sampling: Sampling | None,
    progress: Callable[[int], None],
    keep: int | None,
    reads: bool,
) -> list[Continued]:
    """For the arguments see `generate`; `reads` keeps hidden states, for one pass more."""
    length = shared_prefix(rows)
    length = length if keep is None else min(length, keep)
    cache = prefix_cache(chat, rows[0][:length])
    if cache is not None and slides(cache, max(len(row) for row in rows) + max_new_tokens):
        cache = None
    length = length if cache is not None else 0

    draws = _draws(rows, max_new_tokens, sampling) if sampling else None

    def run(batch: list[int]) -> list[Continued]:
        tails = [rows[place][length:] for place in batch]
        longest = max(len(tail) for tail in tails)
        pads = torch.tensor([longest - len(tail) for tail in tails], device=chat.device)
        pad = chat.template.pad_id
        ids = torch.tensor([[pad] * (longest - len(t)) + list(t) for t in tails]).to(chat.device)
        past = view_of(cache, len(batch)) if cache is not None else None
        mask = torch.ones(len(batch), length + longest, dtype=torch.long, device=chat.device)
        columns = torch.arange(longest, device=chat.device)
        mask[:, length:] = (columns >= pads[:, None]).long()
        positions = length + (columns - pads[:, None]).clamp(min=0)
        live = torch.arange(len(batch), device=chat.device)
        drawn = None if draws is None else draws[batch].to(chat.device)
        new: list[Continued] = [([], []) for _ in batch]
        for step in range(max_new_tokens + reads):
            out = chat.decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            last = out.last_hidden_state[:, -1]
            if reads:
                for row, vector in zip(live.tolist(), last.clone(), strict=True):
                    new[row][1].append(vector)
            if step == max_new_tokens:
                break
            scores = logits(chat.model, last)
            if sampling is None or drawn is None:
                tokens = scores.argmax(-1)
            else:
                tokens = _sampled(scores, sampling, drawn[live, step])
            goes_on = torch.tensor([t not in chat.stop_ids for t in tokens.tolist()])
            for row, token in zip(live.tolist(), tokens.tolist(), strict=True):
                if token not in chat.stop_ids:
                    new[row][0].append(token)
            if not goes_on.any():
                break
            stay = goes_on.nonzero()[:, 0]
            if len(stay) < len(live):
                past.batch_select_indices(stay)  # from the CPU: layers may be on several devices
            stay = stay.to(chat.device)
            live, tokens, mask = live[stay], tokens[stay], mask[stay]
            ids, positions = tokens[:, None], positions[stay, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(stay), 1)], dim=1)
        return new

    def edited(batch: list[int]) -> list[Continued]:
        with edit(chat.blocks, edits(batch) if callable(edits) else edits or {}):
            return run(batch)

    return in_batches(chat, rows, edited, progress)


def _draws(
    rows: Sequence[Sequence[int]], count: int, sampling: Sampling
) -> Float[Tensor, "rows count"]:
    """Uniform numbers for each row, whatever other rows there are: a function of the seed and the row.

    A row that stands there more than once is given others each time.
    """
    times: Counter[bytes] = Counter()
    found = []
    for row in rows:
        key = repr(list(row)).encode()
        mixed = f"{sampling.seed} {times[key]} ".encode() + key
        seed = int.from_bytes(sha256(mixed).digest()[:7], "big")
        found.append(torch.rand(count, generator=torch.Generator().manual_seed(seed)))
        times[key] += 1
    return torch.stack(found)


def _sampled(
    scores: Float[Tensor, "batch vocab"], sampling: Sampling, drawn: Float[Tensor, "batch"]
) -> Int[Tensor, "batch"]:
    """The token at which the nucleus' cumulative probability reaches the number drawn."""
    chances = (scores / sampling.temperature).softmax(-1)
    ordered, order = chances.sort(-1, descending=True)
    # A token belongs to the nucleus while the mass before it is below top_p; the first always does.
    outside = ordered.cumsum(-1) - ordered >= sampling.top_p
    outside[:, 0] = False
    ordered[outside] = 0
    mass = ordered.cumsum(-1)
    place = (mass < drawn[:, None] * mass[:, -1:]).sum(-1, keepdim=True)
    return order.gather(-1, place.clamp(max=scores.shape[-1] - 1))[:, 0]
