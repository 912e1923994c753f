"""Batched forward passes in which rows share the cost of the tokens they all start with.

A chat template puts the same tokens before every prompt. Attention is causal, so their keys and
values are the same for every row: they are computed once for a batch, with gradient in training,
and every row attends to a view of them. The result is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from es2.models.activations import Edit, Reached, capture, edit
from es2.models.loading import ChatModel


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows start with, leaving each row at least one of its own."""
    most = min(len(row) for row in rows) - 1
    first = rows[0]
    for index in range(most):
        if any(row[index] != first[index] for row in rows):
            return index
    return most


def prefix_cache(chat: ChatModel, prefix: Sequence[int]) -> DynamicCache | None:
    """Keys and values of a prefix (batch of 1), or None where the model cannot share them.

    Only plain attention layers can be shared; recurrent state and gradient checkpointing cannot.
    """
    if not prefix or _recomputes(chat):
        return None
    ids = torch.tensor([list(prefix)], device=chat.device)
    cache = chat.decoder(input_ids=ids, use_cache=True).past_key_values
    return cache if shareable(cache) else None


def _recomputes(chat: ChatModel) -> bool:
    # transformers has renamed its own question for this.
    flags = (getattr(module, "gradient_checkpointing", False) for module in chat.inner.modules())
    return chat.model.training and any(flags)


def shareable(cache: DynamicCache) -> bool:
    """Whether all layers keep keys and values and nothing else."""
    # Not isinstance: layers that keep more are subclasses of these.
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def slides(cache: DynamicCache, tokens: int) -> bool:
    """Whether a row of so many tokens outgrows a sliding window.

    The window is counted over the cache, where padding between a start and what follows it would
    take up room in it.
    """
    windows = [getattr(layer, "sliding_window", tokens) for layer in cache.layers]
    return min(windows) < tokens


def view_of(cache: DynamicCache, batch: int) -> DynamicCache:
    """A fresh cache for `batch` rows over the keys and values of one row.

    Caches grow in place, so every forward pass takes its own. A layer with a sliding window holds
    fewer tokens than it has seen; its copy remembers how many.
    """
    fresh = copy(cache)
    fresh.layers = [copy(layer) for layer in cache.layers]
    layer: Any
    for layer in fresh.layers:
        layer.keys = layer.keys.expand(batch, -1, -1, -1)
        layer.values = layer.values.expand(batch, -1, -1, -1)
    return fresh


def cropped(cache: DynamicCache, tokens: int) -> DynamicCache | None:
    """A fresh cache of the first tokens alone; None if a sliding window has dropped some of them."""
    fresh = view_of(cache, 1)
    layer: Any
    for layer in fresh.layers:
        if layer.get_seq_length() > layer.keys.shape[-2] and layer.get_seq_length() != tokens:
            return None
        layer.keys, layer.values = layer.keys[..., :tokens, :], layer.values[..., :tokens, :]
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = tokens
    return fresh


@dataclass(frozen=True)
class Starts:
    """Keys and values of what each row starts with, for passes that differ only behind it.

    Attributes:
        lengths: the number of tokens of each start.
        mask: 1 where there is a token; shorter starts are padded behind what all share.
        cache: keys and values.
    """

    lengths: list[int]
    mask: Int[Tensor, "batch longest"]
    cache: DynamicCache

    def pick(self, rows: Sequence[int]) -> Starts:
        """Some of the rows, in the order given; a row may come more than once."""
        index = torch.tensor(list(rows), device=self.mask.device)
        cache = view_of(self.cache, len(self.lengths))
        layer: Any
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        return Starts([self.lengths[row] for row in rows], self.mask[index], cache)


def read_starts(chat: ChatModel, prefixes: Sequence[Sequence[int]], longest: int) -> Starts | None:
    """What a batch's rows start with, with gradient; None where the model cannot keep it.

    Args:
        chat: the model.
        prefixes: the rows' starts, each of one token at least.
        longest: tokens of the longest row that is to follow from one.
    """
    head = shared_prefix(prefixes)
    shared = prefix_cache(chat, prefixes[0][:head])
    if shared is None and (head or _recomputes(chat)):
        return None
    own = [prefix[head:] for prefix in prefixes]
    most = max(map(len, own))
    groups = like_lengths([len(row) for row in own])
    read = [_read_own(chat, head, shared, [own[place] for place in group]) for group in groups]
    if not all(shareable(cache) and not slides(cache, head + most + longest) for _, cache in read):
        return None
    (mask, cache), *rest = read
    lengths = [len(prefixes[place]) for group in groups for place in group]
    if not rest:
        return Starts(lengths, mask, cache)
    mask, cache = _beside((mask, cache), rest[0], head)
    return Starts(lengths, mask, cache).pick(_back(groups))


def like_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """The places of a batch's rows: shorter ones apart where that halves what padded rows take up."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    longest = lengths[order[-1]]
    taken = {
        cut: cut * lengths[order[cut - 1]] + (len(order) - cut) * longest
        for cut in range(1, len(order) + 1)
    }
    cut = min(taken, key=lambda cut: taken[cut])
    if 2 * taken[cut] > len(order) * longest:
        return [list(range(len(order)))]
    return [order[:cut], order[cut:]]


def _back(groups: Sequence[Sequence[int]]) -> list[int]:
    """Where each row of a batch stands when its groups stand one after the other."""
    order = [place for group in groups for place in group]
    return sorted(range(len(order)), key=order.__getitem__)


Own = tuple[Int[Tensor, "_ _"], DynamicCache]
"""A mask that is 1 where there is a token, and keys and values."""


def _read_own(
    chat: ChatModel, head: int, shared: DynamicCache | None, rows: Sequence[Sequence[int]]
) -> Own:
    """What rows hold behind the tokens that they share, padded between the two."""
    most, none = max(map(len, rows)), [chat.template.pad_id]
    ids = torch.tensor([none * (most - len(row)) + list(row) for row in rows], device=chat.device)
    counts = torch.tensor([len(row) for row in rows], device=chat.device)
    real = (torch.arange(most, device=chat.device) >= most - counts[:, None]).long()
    mask = torch.cat([real.new_ones(len(rows), head), real], 1)
    cache = chat.decoder(
        input_ids=ids,
        attention_mask=mask,
        position_ids=head + (real.cumsum(1) - 1).clamp(min=0),
        past_key_values=None if shared is None else view_of(shared, len(rows)),
        use_cache=True,
    ).past_key_values
    return mask, cache


def _beside(short: Own, long: Own, head: int) -> Own:
    """Two groups as one batch; what is short gets more padding."""
    more = long[0].shape[1] - short[0].shape[1]

    def both(one: Tensor, other: Tensor, axis: int) -> Tensor:
        shared, own = one.split([head, one.shape[axis] - head], axis)
        none = own.new_zeros([*own.shape[:axis], more, *own.shape[axis + 1 :]])
        return torch.cat([torch.cat([shared, none, own], axis), other])

    cache = view_of(long[1], len(long[0]))
    layer: Any
    was: Any
    for layer, was in zip(cache.layers, short[1].layers, strict=True):
        layer.keys = both(was.keys, layer.keys, 2)
        layer.values = both(was.values, layer.values, 2)
    return both(short[0], long[0], 1), cache


@dataclass
class Held:
    """Keys and values of earlier passes, so that passes that start alike need not compute them again.

    A holder serves one model, for as long as its weights stay as they are. What it holds has no
    gradient.

    Attributes:
        tokens: of the last prefix.
        cache: its keys and values (batch of 1).
        batches: starts of whole batches.
    """

    tokens: list[int] = field(default_factory=list)
    cache: DynamicCache | None = None
    batches: dict[tuple[tuple[int, ...], ...], Starts | None] = field(default_factory=dict)

    @torch.no_grad()
    def of(self, chat: ChatModel, prefix: Sequence[int]) -> DynamicCache | None:
        """As `prefix_cache`."""
        known = shared_prefix([[*prefix, -1], [*self.tokens, -2]])
        start = cropped(self.cache, known) if self.cache is not None and known else None
        if start is None:
            self.tokens, self.cache = list(prefix), prefix_cache(chat, prefix)
            return self.cache
        if known < len(prefix):
            ids = torch.tensor([list(prefix[known:])], device=chat.device)
            start = chat.decoder(input_ids=ids, past_key_values=start).past_key_values
            self.tokens, self.cache = list(prefix), start
        return start

    @torch.no_grad()
    def starts(
        self, chat: ChatModel, prefixes: Sequence[Sequence[int]], longest: int
    ) -> Starts | None:
        """As `read_starts`."""
        key = tuple(map(tuple, prefixes))
        if key not in self.batches:
            self.batches[key] = read_starts(chat, prefixes, longest)
        return self.batches[key]


@dataclass(frozen=True)
class Forward:
    """What a batched forward pass left, in coordinates of the rows' tokens after the prefix.

    Attributes:
        states: the residual stream at the layers asked for, each [batch, suffix, d].
        final: hidden state after the final norm [batch, suffix, d]; None if stopped before.
        offset: the length of the shared prefix, or of each row's own.
    """

    states: dict[int, Float[Tensor, "batch suffix d"]]
    final: Float[Tensor, "batch suffix d"] | None
    offset: int | list[int]

    def at(
        self, tensor: Float[Tensor, "batch suffix d"], rows: Sequence[int], positions: Sequence[int]
    ) -> Float[Tensor, "n d"]:
        """The vectors at (row, position) pairs, position counted in the whole row."""
        device = tensor.device
        # An empty list has no type of its own.
        row_index, place = (
            torch.tensor(list(pair), dtype=torch.long, device=device) for pair in (rows, positions)
        )
        offset = torch.tensor(self.offset, device=device).expand(len(tensor))
        return tensor[row_index, place - offset[row_index]]


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> Int[Tensor, "batch longest"]:
    """Rows as one tensor, padded at the end: under causal attention no real token sees a pad."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows])


def forward(
    chat: ChatModel,
    rows: Sequence[Sequence[int]],
    layers: Iterable[int] = (),
    stop: bool = False,
    keep: int | None = None,
    edits: Mapping[int, Edit] | None = None,
    held: Held | None = None,
    starts: Starts | None = None,
) -> Forward:
    """The decoder (no output embedding) over token rows of any lengths: one pass, or two.

    Rows far longer than the others are read apart, unless there are edits, which are made for one pass.

    Args:
        chat: the model.
        rows: token ids of each row.
        layers: 1-based layers whose outputs to keep.
        stop: do not run the blocks above the highest of `layers`; `final` is then None.
        keep: share at most this many tokens, so that positions from there on can be read.
        edits: changes to the residual stream, by layer. They see the rows' own tokens, not the
            shared prefix, padded at the end.
        held: prefixes of earlier passes; None to compute this one's anew, with gradient.
        starts: what each row starts with, in place of a shared prefix.
    """
    if starts is not None:
        return _forward_from(chat, rows, starts, layers, stop, edits or {})
    length = shared_prefix(rows)
    length = length if keep is None else min(length, keep)
    prefix = rows[0][:length]
    cache = prefix_cache(chat, prefix) if held is None else held.of(chat, prefix)
    length = length if cache is not None else 0
    own, layers = [row[length:] for row in rows], tuple(layers)

    def run(some: Sequence[Sequence[int]]) -> Forward:
        ids = pad_right(some, chat.template.pad_id).to(chat.device)
        past = view_of(cache, len(some)) if cache is not None else None
        options = {"past_key_values": past, "use_cache": past is not None}
        return _run(chat, ids, options, length, layers, stop, edits or {})

    groups = [range(len(own))] if edits else like_lengths([len(row) for row in own])
    return _joined([run([own[place] for place in group]) for group in groups], groups)


def _joined(outs: Sequence[Forward], groups: Sequence[Sequence[int]]) -> Forward:
    """Passes over groups of a batch's rows as one, in the rows' order, padded at the end.

    Args:
        outs: the passes, over what follows the same prefix.
        groups: the places of each pass's rows.
    """
    if len(outs) == 1:
        return outs[0]
    back = _back(groups)

    def stacked(parts: Sequence[Float[Tensor, "_ _ d"]]) -> Float[Tensor, "batch suffix d"]:
        most = max(part.shape[1] for part in parts)
        return torch.cat([pad(part, (0, 0, 0, most - part.shape[1])) for part in parts])[back]

    finals = [out.final for out in outs if out.final is not None]
    states = {layer: stacked([out.states[layer] for out in outs]) for layer in outs[0].states}
    return Forward(states, stacked(finals) if finals else None, outs[0].offset)


def _forward_from(
    chat: ChatModel,
    rows: Sequence[Sequence[int]],
    starts: Starts,
    layers: Iterable[int],
    stop: bool,
    edits: Mapping[int, Edit],
) -> Forward:
    """The pass over what follows the rows' own starts."""
    pairs = zip(rows, starts.lengths, strict=True)
    ids = pad_right([row[length:] for row, length in pairs], chat.template.pad_id).to(chat.device)
    lengths = torch.tensor(starts.lengths, device=chat.device)[:, None]
    options = {
        "attention_mask": torch.cat([starts.mask, torch.ones_like(ids)], 1),
        "position_ids": lengths + torch.arange(ids.shape[1], device=chat.device),
        "past_key_values": view_of(starts.cache, len(rows)),
        "use_cache": True,
    }
    return _run(chat, ids, options, starts.lengths, layers, stop, edits)


def _run(
    chat: ChatModel,
    ids: Int[Tensor, "batch suffix"],
    options: Mapping[str, Any],
    offset: int | list[int],
    layers: Iterable[int],
    stop: bool,
    edits: Mapping[int, Edit],
) -> Forward:
    with edit(chat.blocks, edits), capture(chat.blocks, layers, stop) as states:
        try:
            final = chat.decoder(input_ids=ids, **options).last_hidden_state
        except Reached:
            final = None
    # Layers may be spread over several devices.
    kept = {layer: state.to(ids.device) for layer, state in states.items()}
    return Forward(kept, final, offset)
