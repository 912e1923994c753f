"""Tiny random chat models of several families, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from es2.defences.trainer import TrainSettings, attach_lora, trainable
from es2.models.loading import ChatModel

PROMPTS = (
    "How do I bake bread?",
    "Name three rivers of Europe and say where each one ends.",
    "Why is the sky blue",
    "Write a short poem about an old lighthouse keeper who never learned to swim",
    "Hi",
    "What should I pack for a week of hiking in the rain?",
)
"""Harmless, of quite different lengths."""

# As in most chat models, the same system turn stands before every prompt.
CHATML = (
    "{{ bos_token }}<|start|>system\nYou are a helpful assistant.<|end|>\n"
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}{% endif %}{% endfor %}"
)
# As Qwen3's: a closed empty thought is written where thinking is switched off.
SWITCH = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
TEMPLATES = {
    "llama": CHATML,
    "mistral": INST,
    "qwen2": CHATML,
    "qwen3": SWITCH,
    "gemma3": CHATML.replace("assistant", "model"),
    "phi3": CHATML,
}
FAMILIES = tuple(TEMPLATES)
GEMMA_WINDOW = 8
"""Gemma 3's sliding window, shorter than its template's shared prefix."""

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def make_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the tests' own texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*PROMPTS, *TEMPLATES.values()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|end|>",
        additional_special_tokens=["<|start|>"],
    )


def make_model(family: str, vocabulary: int, **overrides: Any) -> PreTrainedModel:
    """A random model; states and logits of order one, so that nothing hides in rounding."""
    shape = {**_SHAPE, "vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1}
    shape |= {"eos_token_id": 3, **overrides}
    torch.manual_seed(FAMILIES.index(family))
    match family:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape))
        case "mistral":
            model = MistralForCausalLM(MistralConfig(**{"head_dim": 12, **shape}))
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**shape))
        case "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**{"head_dim": 16, **shape}))
        case "gemma3":
            kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
            own = {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0}
            own |= {"layer_types": kinds, "sliding_window": GEMMA_WINDOW}
            model = Gemma3ForCausalLM(Gemma3TextConfig(**{**own, **shape}))
        case "phi3":
            model = Phi3ForCausalLM(Phi3Config(**shape))
    return randomise(model.eval())


def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that every token and position matters; norms and biases not trivial."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def make_chat(family: str, **overrides: Any) -> ChatModel:
    """A tiny chat model in memory."""
    tokenizer = make_tokenizer(TEMPLATES[family])
    return ChatModel(family, make_model(family, len(tokenizer), **overrides), tokenizer)


def with_lora(
    chat: ChatModel,
    settings: TrainSettings = TrainSettings(rank=2),
    *,
    scale: float = 0.02,
    seed: int = 1,
) -> ChatModel:
    """The model with an adapter that does something: a fresh one is zero."""
    tuned = attach_lora(chat, settings, (2, 4))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainable(tuned).items():
            if "lora_B" in name:
                parameter.normal_(0, scale)
    return tuned


def encode(chat: ChatModel, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    """Templated token rows."""
    return [chat.template.encode(prompt) for prompt in prompts]


@torch.no_grad()
def chances(chat: ChatModel, row: list[int]) -> torch.Tensor:
    """Log-probabilities after every token of a row, read alone."""
    return chat.model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)


def streams(chat: ChatModel, row: list[int]) -> list[torch.Tensor]:
    """The residual stream after every block, of a row read alone; the first is layer 1's."""
    top: list[torch.Tensor] = []

    def hook(
        _module: object, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]
    ) -> None:
        top.append(output[0] if isinstance(output, tuple) else output)

    handle = chat.blocks[-1].register_forward_hook(hook)
    found = chat.inner(torch.tensor([row]), use_cache=False, output_hidden_states=True)
    handle.remove()
    # The last of the hidden states is after the final norm.
    return [states[0] for states in (*found.hidden_states[1:-1], top[0])]
