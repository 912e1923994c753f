"""Loading a chat model: an embedded name, a Hub id, a local folder, or a PEFT adapter folder."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from es2.data.chat import ChatTemplate
from es2.errors import Es2Error
from es2.models import embedded
from es2.models.blocks import find_decoder, logits, unwrap

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ChatModel:
    """A chat model and what es2 needs to know of it.

    Attributes:
        name: as the user named it.
        model: the transformers model, or a PEFT model around it.
        tokenizer: its tokenizer.
        template: its chat template.
        batch_size: rows a forward pass without gradient; halved when memory runs out, and kept.
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate = field(init=False)
    batch_size: int = 32

    def __post_init__(self) -> None:
        self.template = ChatTemplate(self.tokenizer, self.name)

    @property
    def inner(self) -> PreTrainedModel:
        """The transformers model, without a PEFT wrapper."""
        return unwrap(self.model)

    @cached_property
    def decoder(self) -> nn.Module:
        """Embedding, blocks and final norm; no output embedding."""
        return find_decoder(self.model)[0]

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder's blocks; layer `l` is the output of `blocks[l - 1]`."""
        return find_decoder(self.model)[1]

    @property
    def depth(self) -> int:
        """The number of layers L."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the model's input goes."""
        weight: torch.Tensor = self.inner.get_input_embeddings().weight  # type: ignore[assignment]
        return weight.device

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        config = self.inner.generation_config
        stops = config.eos_token_id if config is not None else None
        found = set(stops if isinstance(stops, list) else [] if stops is None else [stops])
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        return frozenset(int(token) for token in found)


def load(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    adapter: str | Path | None = None,
    template: str | None = None,
    device_map: str | None = None,
) -> ChatModel:
    """Loads a chat model, ready to be measured.

    Args:
        name: an embedded model (`smollm2`, `smollm2-aligned`), a Hub id, a local folder, or a PEFT
            adapter folder, whose base is found from its `adapter_config.json`.
        dtype: weights' type; default float32 on CPU, bfloat16 on an accelerator.
        device: default the accelerator if there is one.
        adapter: a PEFT adapter folder to merge into the model.
        template: a chat template for a model whose tokenizer has none, such as a classifier.
        device_map: `auto` spreads the layers over all accelerators, see `transformers`; default: all
            on `device`.

    Raises:
        Es2Error: if there is no such model, it has no chat template, or an adapter is damaged.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    if adapter is not None:
        base = load(name, dtype=dtype, device=device, device_map=device_map)
        return _with_adapter(base, Path(adapter))
    if (Path(name) / "adapter_config.json").is_file():
        source = adapter_base(Path(name))
        base = load(source, dtype=dtype, device=device, device_map=device_map)
        return _with_adapter(base, Path(name))
    source = source_of(name)
    model: Any
    weights: dict[str, Any]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.chat_template = tokenizer.chat_template or template
        # Before the weights: a base model is turned away without a long download.
        ChatTemplate(tokenizer, name)
        config = AutoConfig.from_pretrained(source)
        if config.is_encoder_decoder:
            raise Es2Error(
                f"{name}: an encoder-decoder model; es2 supports decoder-only chat models"
            )
        factory: Any = AutoModelForCausalLM
        model, weights = factory.from_pretrained(
            source, dtype=dtype, output_loading_info=True, device_map=device_map
        )
    except Es2Error:
        raise
    except Exception as error:  # damaged files raise a dozen types, from three libraries
        raise Es2Error(f"cannot load model {name!r}: {_reason(error)}") from error
    if missing := sorted(weights["missing_keys"]):  # transformers would leave these random
        raise Es2Error(
            f"{name}: its weights lack {len(missing)} of the tensors of a {type(model).__name__}, "
            f"{missing[0]} among them; download or save it again"
        )
    if device_map is None:
        model.to(device)
    else:
        _come_home(model)
    model.eval().requires_grad_(False)
    chat = ChatModel(name, model, tokenizer, batch_size=32 if device == "cpu" else 128)
    _check_logits(chat)
    return chat


def _come_home(model: PreTrainedModel) -> None:
    """Makes what spread layers come to end where the input is: there all else is computed."""
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    home = weight.device

    def hidden(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.to(home)
        return output

    def scores(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(home)

    find_decoder(model)[0].register_forward_hook(hidden)
    model.get_output_embeddings().register_forward_hook(scores)


def _reason(error: Exception) -> str:
    """The first line of another library's error."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@torch.no_grad()
def _check_logits(chat: ChatModel) -> None:
    """Families scale their logits in ways of their own; better to stop than to be wrong."""
    ids = torch.tensor([chat.template.encode("Hi")[:8]], device=chat.device)
    own = chat.inner(input_ids=ids).logits[0, -1].float()
    found = logits(chat.model, chat.decoder(input_ids=ids).last_hidden_state[0, -1])
    if (found - own).norm() > 0.05 * own.norm():
        raise Es2Error(
            f"{chat.name}: {type(chat.inner).__name__} scales its logits in a way that es2 does "
            "not know, so every KL and every answer would be wrong; es2 does not support it yet"
        )


def adapter_base(folder: Path) -> str:
    """The base model named in an adapter folder; a path there may be relative to the folder."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        base = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not base or not isinstance(base, str):
        raise Es2Error(
            f"{folder}/adapter_config.json is damaged or names no base model; save the adapter "
            "again"
        )
    return str(folder / base) if (folder / base).is_dir() else base


def source_of(name: str) -> str:
    """Where transformers finds the model: a folder for embedded names, else the name itself."""
    if name in embedded.NAMES:
        return str(embedded.folder(name))
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise Es2Error(f"{name}: no config.json in this folder, so it holds no model")
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise Es2Error(f"{name}: no such folder")
    if not path.is_dir() and "/" not in name:
        known = ", ".join(embedded.NAMES)
        raise Es2Error(
            f"unknown model {name!r}: not an embedded model ({known}), a folder, or a Hub id "
            "(OWNER/NAME)"
        )
    return name


def _with_adapter(chat: ChatModel, folder: Path) -> ChatModel:
    """The model with an adapter merged into its weights."""
    try:
        with warnings.catch_warnings():
            # PEFT would leave weights that the file lacks at their random start.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(chat.inner, str(folder), low_cpu_mem_usage=False)
        placed = get_peft_model_state_dict(model, save_embedding_layers=True)
        if strange := sorted(load_peft_weights(str(folder), device="cpu").keys() - placed.keys()):
            raise ValueError(f"{chat.name} has no place for {strange[0]}; is it the right base?")
        merged = model.merge_and_unload(safe_merge=True)
    except Exception as error:  # damaged files raise a dozen types, from three libraries
        raise Es2Error(f"cannot load adapter {folder}: {_reason(error)}") from error
    merged.eval().requires_grad_(False)
    return ChatModel(str(folder), merged, chat.tokenizer, batch_size=chat.batch_size)
