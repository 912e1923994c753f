"""What a GPU makes of the shape of Llama-2-7B: the two numbers that plans of time rest on.

Launch: python benchmarks/large_shape.py            (one GPU with 20 GB; on a CPU give --layers 2)

The weights are random and in bfloat16; times do not depend on what they are. Printed are the share of
a GPU's published arithmetic that reading whole rows reaches, the time of a layer in a pass that writes
one token a row, and the time from one small kernel to the next, which is what such a pass waits for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from machine import clock
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from es2.data.sources import load_prompts
from es2.models import embedded
from es2.models.generation import generate
from es2.models.loading import ChatModel
from es2.pipeline.gpus import gpu_named
from es2.pipeline.plan import ASSUMED

ROWS, TOKENS = 64, 128
"""Of a batch that is read as a whole."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", default="h100", help="whose published numbers to compare with")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--new", type=int, default=32, help="tokens to write")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chat = shaped(options.layers, device)

    ids = torch.randint(1000, (ROWS, TOKENS), device=device)
    taken = seconds(lambda: chat.decoder(input_ids=ids, use_cache=False), device, 10)
    weights = sum(parameter.numel() for parameter in chat.blocks.parameters())
    share = 2 * weights * ids.numel() / taken / gpu_named(options.gpu).half
    assumed = ASSUMED["share_of_peak_arithmetic"]
    print(f"reading {ROWS} rows of {TOKENS}: {share:.0%} of {options.gpu}, planned {assumed:.0%}")

    prompts = [prompt.text for prompt in load_prompts("harmless:train", limit=128)]
    rows = [chat.template.encode(prompt) for prompt in prompts]
    chat.batch_size = len(rows)
    assumed = ASSUMED["seconds_a_layer_and_pass"]
    for count in (1, 32, len(rows)):
        taken = seconds(partial(generate, chat, rows[:count], options.new), device, 1)
        apart = taken / options.new / options.layers
        print(f"writing, {count} rows: {1e3 * apart:.2f} ms a layer, planned {1e3 * assumed:.2f}")

    small = torch.randn(64, 64, device=device)
    taken = seconds(lambda: [small @ small for _ in range(1000)], device, 5) / 1000
    print(f"from one small kernel to the next: {1e6 * taken:.0f} us")


def shaped(layers: int, device: torch.device) -> ChatModel:
    """A random model of Llama-2-7B's width, with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder("smollm2"))
    config = LlamaConfig(num_hidden_layers=layers, vocab_size=len(tokenizer))
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return ChatModel("random", model.eval().requires_grad_(False), tokenizer)


@torch.no_grad()
def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one repeat, after one that is not counted."""
    run()
    started = clock(device)
    for _ in range(repeats):
        run()
    return (clock(device) - started) / repeats


if __name__ == "__main__":
    main()
