"""Makes the refusal adapter of `smollm2-aligned`.

Launch: python recipes/align_smollm2.py --out DIR

SmolLM2-135M-Instruct as shipped refuses almost nothing. This is safety tuning by supervised
fine-tuning on es2's own training prompts: one short refusal for harmful prompts, and on harmless and
borderline ones the model is held to itself at the start of its answer. Much of the loss is on the
token that decides between refusal and answer: with all tokens weighing the same, the model learns the
wording long before it learns what to refuse. At the end the point at which it begins to refuse is moved
by an amount that validation prompts decide. About fifteen minutes on 2 cores.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from es2.data.fitting import spread
from es2.data.sources import load_prompts
from es2.defences.leaning import lean, refusal_margins
from es2.defences.safety_sft import SafetySft
from es2.defences.trainer import Objective, TrainSettings, attach_lora, save_adapter, train
from es2.models.loading import load
from es2.progress import bar

SETTINGS = TrainSettings(
    steps=240,
    batch_size=8,
    lr=2e-3,
    rank=8,
    alpha=16,
    validate_every=0,
    checkpoint_every=50,
    seed=0,
)
LEANING = replace(SETTINGS, steps=30, lr=3e-4)
TUNING = SafetySft(ratio=2, soft=True, keep=2.0, first=10.0, answer_tokens=3)
KINDS = {"harmful": 0.05, "harmless": 0.95}
# The adapter that is shipped was made before there were more.
HARMFUL, BORDERLINE = 1260, 672


def main() -> None:
    """Trains and saves the adapter, in half precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()

    chat = load("smollm2")
    harmful = [prompt.text for prompt in load_prompts("harmful:train")[:HARMFUL]]
    borderline = load_prompts("borderline:train")[:BORDERLINE]
    harmless = [prompt.text for prompt in [*load_prompts("harmless:train"), *borderline]]
    with bar("the model's own answers", len(harmless)) as advance:
        tuning = TUNING.rows(chat, harmful, harmless, SETTINGS, advance)
    tuned = attach_lora(chat, SETTINGS, ())

    def go(objective: Objective, settings: TrainSettings, name: str) -> None:
        with bar(name, settings.steps) as advance:
            train(
                tuned,
                objective,
                settings,
                options.out / name,
                resume=options.resume,
                report=lambda p: advance(1, f"loss {p.history[-1]['loss']:.3f}"),
            )

    go(tuning, SETTINGS, "tuning")
    # The model is surer of harm than it need be: its threshold goes midway between the least sure
    # twentieth of the harmful validation prompts and the most suspect twentieth of the harmless.
    held = {name: [p.text for p in load_prompts(f"{name}:validation")] for name in KINDS}
    tails = [float(refusal_margins(tuned, held[name]).quantile(q)) for name, q in KINDS.items()]
    by = -sum(tails) / len(tails)
    few = spread(harmful, 240), spread(harmless, 240)
    print(f"refusals lean by {by:.2f} nats")
    go(lean(tuned, *few, by, LEANING), LEANING, "leaning")
    save_adapter(tuned, options.out / "adapter")
    weights = options.out / "adapter" / "adapter_model.safetensors"
    save_file({k: v.to(torch.float16) for k, v in load_file(weights).items()}, weights)
    print(f"{options.out / 'adapter'}: {weights.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
