"""A model's size from its config alone: no weight is loaded, or even allocated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from es2.errors import Es2Error
from es2.models.blocks import LINEAR, check_targets, find_decoder
from es2.models.loading import adapter_base, source_of


@dataclass(frozen=True)
class Shape:
    """What an estimate has to know of a model.

    Attributes:
        name: as the user named it.
        parameters: of all of it; tied weights count once.
        blocks: parameters of the decoder's blocks, through which every token goes.
        layers: the number of blocks.
        hidden: width of the residual stream.
        inner: width of the feed-forward layers.
        cached: numbers that one token leaves in the cache, over all layers.
        vocabulary: tokens.
        widths: inputs and outputs of the blocks' linear maps, summed over the maps of each name: a
            LoRA has so many parameters a rank.
    """

    name: str
    parameters: int
    blocks: int
    layers: int
    hidden: int
    inner: int
    cached: int
    vocabulary: int
    widths: Mapping[str, int]

    def lora(self, targets: Collection[str]) -> int:
        """Parameters a rank of a LoRA in every block.

        Args:
            targets: names of the linear maps that it is in; none for all.

        Raises:
            Es2Error: if there is no such map.
        """
        check_targets(targets, self.widths, self.name)
        return sum(self.widths[name] for name in targets or self.widths)


def shape_of(name: str) -> Shape:
    """The shape of a model that `load` would load.

    Args:
        name: an embedded name, a Hub id, a folder that holds a `config.json` at the least, or an
            adapter folder.

    Raises:
        Es2Error: if its config cannot be had, or is not of a decoder-only model.
    """
    if (Path(name) / "adapter_config.json").is_file():
        return shape_of(adapter_base(Path(name)))
    source = source_of(name)
    try:
        config = AutoConfig.from_pretrained(source)
        factory: Any = AutoModelForCausalLM
        with torch.device("meta"):
            model: nn.Module = factory.from_config(config)
    except Exception as error:  # damaged or missing files raise a dozen types, from three libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Es2Error(
            f"{name}: no config to plan with, neither in a folder nor from the Hub ({reason}); give "
            "a folder that holds the model's config.json"
        ) from error
    _, blocks = find_decoder(model)
    text: Any = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    widths: Counter[str] = Counter()
    for path, module in blocks.named_modules():
        if isinstance(module, LINEAR):
            widths[path.rpartition(".")[2]] += sum(module.weight.shape)
    return Shape(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        blocks=sum(parameter.numel() for parameter in blocks.parameters()),
        layers=len(blocks),
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        cached=2 * kept * size * len(blocks),
        vocabulary=text.vocab_size,
        widths=dict(widths),
    )
