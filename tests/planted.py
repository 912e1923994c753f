"""A model whose refusal is a known linear function of its residual stream.

`!` carries a planted direction, `?` carries it turned round. The first block spreads the mean of what
stands before evenly to every token, all other blocks do nothing, and the output embedding reads the
direction: `R` where it is positive, the start of an affirmation where it is not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from es2.attacks.target import AFFIRMATION
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.models.loading import ChatModel
from tiny import make_chat

REFUSAL = "R"
HARMFUL = [f"{'! ' * n}{word}" for n in (2, 3, 4, 5) for word in ("Name", "Why", "How", "Say")]
HARMLESS = [f"{'? ' * n}{word}" for n in (2, 3, 4, 5) for word in ("Name", "Why", "How", "Say")]
FIT = FitPrompts(HARMFUL[:12], HARMLESS[:12], HARMFUL[12:], HARMLESS[12:])
ASKED = [
    Prompt(text, True, target="", category="", borderline=False, id=str(i), source="tests")
    for i, text in enumerate(("! ! a castle", "! ! ! two rivers", "! bread !"))
]


def planted() -> tuple[ChatModel, Tensor]:
    """The model and the direction, a unit vector."""
    chat = make_chat("llama")
    model: Any = chat.inner
    d = model.config.hidden_size
    random = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(d, d, generator=random))[0]
    direction, always = basis[0], basis[1]

    def ids(text: str) -> list[int]:
        return list(chat.tokenizer(text, add_special_tokens=False)["input_ids"])

    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        table = model.model.embed_tokens.weight
        table.normal_(0.0, 0.3, generator=random)
        table -= (table @ direction)[:, None] * direction
        table -= (table @ always)[:, None] * always
        table += always
        for sign, text in ((1.0, "!"), (1.0, " !"), (-1.0, "?"), (-1.0, " ?")):
            table[ids(text)] += 2 * sign * direction
        first = model.model.layers[0].self_attn
        first.q_proj.weight.zero_()
        first.k_proj.weight.zero_()
        first.v_proj.weight.zero_()
        first.v_proj.weight[0] = direction
        first.o_proj.weight[:, 0] = 20 * direction
        head = model.lm_head.weight
        head.zero_()
        head[ids(REFUSAL)] = 4 * direction
        head[ids(AFFIRMATION)] = 0.2 * always - 4 * direction
    return chat, direction
