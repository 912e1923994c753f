"""Embedding space separation by hand: the whole method in one flat script, to read and to change.

    python examples/separate_by_hand.py --steps 12

A chat model, a LoRA and a loop, with nothing to look up. The model is pushed so that harmful and
harmless prompts lie far apart at two layers, while it answers harmless prompts, and refuses harmful
ones, as before. The paper: arXiv 2603.20206. `es2 harden` does the same faster, validates as it goes
and measures what it bought; this script is for trying out what a loss does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from es2.data.sources import load_prompts
from es2.models import embedded

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--batch", type=int, default=6, help="prompts of each class")
parser.add_argument("--layers", type=int, nargs=2, default=[15, 30], help="1-based")
parser.add_argument("--cap", type=float, default=4.0, help="in distances of the base model")
parser.add_argument("--kl-weight", type=float, default=5.0, help="lambda, harmless prompts")
parser.add_argument("--kl-threshold", type=float, default=0.05, help="stop beyond, in nats")
parser.add_argument("--keep-refusal", type=float, default=1.0, help="the KL on harmful prompts")
parser.add_argument("--lr", type=float, default=2e-4)
parser.add_argument("--save", help="a folder for the adapter")
args = parser.parse_args()

torch.manual_seed(0)
folder = embedded.folder("smollm2-aligned")  # or any chat model's folder or Hub id
tokenizer = AutoTokenizer.from_pretrained(folder)
model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

# A LoRA on every linear module of every block. Its second factor starts at zero: at first the tuned
# model is the base, and with the adapter switched off it is the base for ever.
model = get_peft_model(
    model,
    LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
blocks = model.get_base_model().model.layers

# What a block puts out is the residual stream: layer l is the output of block l. A hook, because
# transformers' last hidden state is not that of the last block but has the final norm applied.
states: dict[int, torch.Tensor] = {}


def keep(layer: int) -> Callable[..., None]:
    """A hook that leaves a layer's output in `states`."""

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        states[layer] = output[0] if isinstance(output, tuple) else output

    return hook


for layer in args.layers:
    blocks[layer - 1].register_forward_hook(keep(layer))


def encode(prompts: list[str]) -> dict[str, torch.Tensor]:
    """Prompts in the model's template, up to where the answer starts, padded on the left.

    The template ends with the header of the assistant's turn, so the last token is where the model
    has read everything and decides how to begin. Left padding puts it at index -1 of every row.
    """
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    return tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )


def read(prompts: list[str]) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Embeddings of prompts, [prompts, d] at each of the layers, and next-token logits."""
    # Only the last position's logits: a whole vocabulary at every position is most of the memory.
    logits = model(**encode(prompts), use_cache=False, logits_to_keep=1).logits[:, -1]
    return {layer: state[:, -1] for layer, state in states.items()}, logits


def distances(bad: dict[int, torch.Tensor], good: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """Mean L2 distance of all harmful-harmless pairs, at each layer."""
    return [torch.cdist(bad[layer], good[layer]).mean() for layer in args.layers]


def kl(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """KL(base || tuned) in nats, where the answer starts: there the model refuses or complies."""
    p, q = base.log_softmax(-1), tuned.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def measure() -> list[float]:
    """Distances of the held-out prompts."""
    with torch.no_grad():
        bad, good = read(held["harmful"])[0], read(held["harmless"])[0]
        return [distance.item() for distance in distances(bad, good)]


def texts(source: str, count: int) -> list[str]:
    """Some of es2's own prompts."""
    return [prompt.text for prompt in load_prompts(source, limit=count)]


train = {name: texts(f"{name}:train", 128) for name in ("harmful", "harmless")}
held = {name: texts(f"{name}:validation", 16) for name in ("harmful", "harmless")}
# Prompts that look harmful and are not, so that looks are not what is pushed away.
train["harmless"] += texts("borderline:train", 64)

base_distance = measure()
optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr)
recent: list[float] = []  # KLs: one batch's is noisy, so four decide

for step in range(1, args.steps + 1):
    bad_prompts, good_prompts = (
        [train[name][i] for i in torch.randperm(len(train[name]))[: args.batch]]
        for name in ("harmful", "harmless")
    )

    # The base model's distributions: the same model with its adapter switched off.
    with torch.no_grad(), model.disable_adapter():
        base_bad, base_good = read(bad_prompts)[1], read(good_prompts)[1]

    bad, tuned_bad = read(bad_prompts)
    good, tuned_good = read(good_prompts)

    # Push: the paper's term is -distance. Dividing by the base's makes two layers of quite different
    # norms weigh the same, and a cap ends the push where it only costs.
    reached = [d / b for d, b in zip(distances(bad, good), base_distance, strict=True)]
    push = -sum(ratio.clamp(max=args.cap) for ratio in reached)

    # Hold: harmless prompts are answered as before, harmful ones refused as before.
    kl_good, kl_bad = kl(base_good, tuned_good), kl(base_bad, tuned_bad)
    loss = push + args.kl_weight * kl_good + args.keep_refusal * kl_bad

    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()

    ratios = "  ".join(
        f"layer {layer} x{ratio.item():.2f}"
        for layer, ratio in zip(args.layers, reached, strict=True)
    )
    print(f"step {step:3}  {ratios}  KL harmless {kl_good.item():.4f}  harmful {kl_bad.item():.4f}")

    recent = [*recent, kl_good.item()][-4:]
    if len(recent) == 4 and sum(recent) / 4 > args.kl_threshold:
        print(f"stopped: the KL on harmless prompts passed {args.kl_threshold}")
        break

print("\nmean distance of held-out harmful and harmless prompts")
for layer, before, after in zip(args.layers, base_distance, measure(), strict=True):
    print(f"  layer {layer:2}: {before:8.2f} before, {after:8.2f} after  (x{after / before:.2f})")

if args.save:
    model.save_pretrained(args.save)
    print(f"adapter saved in {args.save}; es2 load, plain peft and vLLM all read it")
