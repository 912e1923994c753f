"""Finding a model's decoder blocks by structure, not by a table of model names."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from es2.errors import Es2Error

LINEAR = (nn.Linear, Conv1D)
"""The linear maps that PEFT puts a LoRA on; `Conv1D` is what GPT-2 has for them."""


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper (its adapters stay in place)."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def find_decoder(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder (embedding, blocks, final norm) and its list of blocks.

    The blocks are the one `ModuleList` with as many entries as the text config says there are
    layers; the decoder is the module that holds it. Multimodal wrappers are looked through.

    Raises:
        Es2Error: if no module, or more than one, fits.
    """
    inner = unwrap(model)
    depth = inner.config.get_text_config(decoder=True).num_hidden_layers
    found = [(module, child) for module in inner.modules() for child in _block_lists(module, depth)]
    if len(found) > 1:  # a vision tower may be as deep as the text decoder
        text = set(inner.get_decoder().modules())
        found = [(module, child) for module, child in found if module in text]
    if len(found) != 1:
        raise Es2Error(
            f"{type(inner).__name__}: found {len(found)} lists of {depth} decoder blocks where one "
            "was expected; es2 supports decoder-only chat models"
        )
    return found[0]


def _block_lists(module: nn.Module, depth: int) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if (
            isinstance(child, nn.ModuleList)
            and len(child) == depth
            and all(any(_attends(part) for part in block.modules()) for block in child)
        ):
            yield child


def _attends(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def check_targets(targets: Collection[str], maps: Collection[str], model: str) -> None:
    """Sees to it that every target names one of the linear maps of the model's blocks.

    Args:
        targets: where a LoRA is wanted, by name.
        maps: the names that there are.
        model: the model's name.

    Raises:
        Es2Error: if there is no such map.
    """
    if missing := [target for target in targets if target not in maps]:
        raise Es2Error(
            f"train.targets: no linear module is called {missing[0]!r} in the blocks of {model}; "
            f"there are {', '.join(sorted(maps))}"
        )


def logits(model: nn.Module, hidden: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch vocab"]:
    """Next-token logits from the decoder's final hidden state (after the final norm).

    Equal to the model's own logits, in float32, for the positions given and no others. The scalings
    that some families add after the output embedding are read from the config.
    """
    inner = unwrap(model)
    config = inner.config.get_text_config(decoder=True)
    out = inner.get_output_embeddings()(hidden).float()
    if scale := getattr(config, "logit_scale", None):
        out = out * scale
    if scaling := getattr(config, "logits_scaling", None):
        out = out / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        out = cap * torch.tanh(out / cap)
    return out
