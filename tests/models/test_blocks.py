"""Blocks are found by structure, and hidden states give the model's own logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from es2.defences.trainer import TrainSettings, attach_lora
from es2.errors import Es2Error
from es2.models.blocks import find_decoder, logits, unwrap
from es2.models.loading import ChatModel
from tiny import encode, make_model, randomise

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def assert_own_logits(model: PreTrainedModel, ids: torch.Tensor) -> None:
    decoder, _ = find_decoder(model)
    with torch.no_grad():
        hidden = decoder(input_ids=ids).last_hidden_state
        own = unwrap(model)(input_ids=ids).logits
        torch.testing.assert_close(logits(model, hidden), own.float(), rtol=1e-5, atol=1e-5)
        # Leading shapes are free: the positions of interest, and no others.
        torch.testing.assert_close(logits(model, hidden[0, -1]), own[0, -1].float())


def test_logits_are_the_models_own(chat: ChatModel) -> None:
    assert_own_logits(chat.model, torch.tensor([encode(chat)[0]]))


def test_softcapped_logits_stay_below_the_cap() -> None:
    model = make_model("gemma3", 64)
    hidden = 100 * torch.randn(4, 32)
    assert logits(model, hidden).abs().max().item() <= 3.0


SCALED: dict[str, Callable[[], PreTrainedModel]] = {
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**_SMALL, logits_scaling=4.0)),
    "cohere2": lambda: Cohere2ForCausalLM(Cohere2Config(**_SMALL, logit_scale=0.25)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_SMALL, head_dim=8, final_logit_softcapping=2.0, sliding_window=4)
    ),
}


@pytest.mark.parametrize("family", SCALED)
def test_logits_follow_scalings_named_in_the_config(family: str) -> None:
    model = randomise(SCALED[family]().eval())
    assert_own_logits(model, torch.tensor([[5, 9, 2, 33, 8]]))


def test_logits_are_float32_whatever_the_weights_are() -> None:
    model = make_model("llama", 64).to(torch.bfloat16)
    assert logits(model, torch.randn(2, 32, dtype=torch.bfloat16)).dtype == torch.float32


def test_blocks_are_the_decoders_layers_in_order(chat: ChatModel) -> None:
    decoder, blocks = find_decoder(chat.model)
    assert decoder is chat.inner.get_decoder()
    assert blocks is decoder.layers
    assert len(blocks) == 4


def test_blocks_are_found_through_an_adapter(own_chat: ChatModel) -> None:
    decoder, blocks = own_chat.decoder, own_chat.blocks
    wrapped = attach_lora(own_chat, TrainSettings(rank=2), (2, 4))
    assert wrapped.model is not own_chat.model
    assert wrapped.decoder is decoder
    assert wrapped.blocks is blocks


@pytest.mark.parametrize("vision_layers", [2, 3], ids=["other depth", "same depth"])
def test_blocks_of_the_text_decoder_are_found_in_a_multimodal_model(vision_layers: int) -> None:
    text = {**_SMALL, "head_dim": 8}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    decoder, blocks = find_decoder(model)
    assert decoder is model.model.language_model
    assert blocks is model.model.language_model.layers


def test_a_model_without_decoder_blocks_is_refused_by_the_name_of_its_class() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2))
    with pytest.raises(Es2Error, match=r"^MambaForCausalLM: found 0 lists of 2") as error:
        find_decoder(model)
    assert "\n" not in str(error.value)
