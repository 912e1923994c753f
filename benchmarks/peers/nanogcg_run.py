"""Runs nanoGCG 0.3.0 in an environment of its own and prints what it did as JSON.

Called by benchmarks/gcg.py: MODEL_FOLDER PROMPT TARGET STEPS WIDTH SEED
"""

import json
import sys
import time
from pathlib import Path

import nanogcg
import torch
from nanogcg import gcg
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

folder, prompt, target, steps, width, seed = sys.argv[1:]
# The folder was saved by a later transformers, which names the rotary base elsewhere.
saved = json.loads((Path(folder) / "config.json").read_text())
config = AutoConfig.from_pretrained(folder)
config.rope_theta = saved.get("rope_parameters", saved)["rope_theta"]
model = AutoModelForCausalLM.from_pretrained(folder, config=config, torch_dtype=torch.float32)
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
if (Path(folder) / "chat_template.jinja").is_file():
    tokenizer.chat_template = (Path(folder) / "chat_template.jinja").read_text()
# nanoGCG cuts the first token's text out of the whole template; here it opens every turn.
tokenizer.bos_token = None

seen = {"candidates": 0, "ids": [], "losses": []}
evaluate, keep = gcg.GCG._compute_candidates_loss_original, gcg.filter_ids


def evaluated(self, size, embeds):
    losses = evaluate(self, size, embeds)
    # The very first call is for the suffix it starts from.
    seen["candidates"] += len(losses)
    if seen["ids"] and not seen["losses"] and len(losses) == len(seen["ids"]):
        seen["losses"] = losses.tolist()
    return losses


def kept(ids, of):
    found = keep(ids, of)
    if not seen["ids"]:
        seen["ids"] = found.tolist()
    return found


gcg.GCG._compute_candidates_loss_original = evaluated
gcg.filter_ids = kept
settings = nanogcg.GCGConfig(
    num_steps=int(steps), search_width=int(width), seed=int(seed), verbosity="ERROR"
)
started = time.perf_counter()
result = nanogcg.run(model, tokenizer, prompt, target, settings)
seconds = time.perf_counter() - started
print(json.dumps({**seen, "seconds": seconds, "history": result.losses}))
