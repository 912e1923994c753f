"""Harden the embedded model a little and attack it before and after, in five lines."""

import es2

base, prompts = es2.load("smollm2-aligned"), es2.load_prompts("harmful:test", limit=8)
light, short = es2.Es2(suffixed=0, ablated=0), es2.TrainSettings(steps=6, validate_every=0)
hardened = es2.harden(es2.load(base.name), "runs/five_lines", defence=light, settings=short)
for name, chat in {"base": base, "hardened": hardened.chat}.items():
    print(name, es2.attack(chat, es2.Scav(p0=(1e-3,)), prompts, base=base).dsr.judged)
