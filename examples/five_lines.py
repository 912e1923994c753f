"""Harden the embedded model a little and attack it before and after, in five lines."""

import es2

base, few = es2.load("smollm2-aligned"), es2.bundled_fit().at_most(64)
light, short = es2.Es2(suffixed=0, ablated=0), es2.TrainSettings(steps=6, validate_every=0)
hard = es2.harden(es2.load(base.name), "runs/five_lines", fit=few, defence=light, settings=short)
scav, prompts = es2.Scav(p0=(1e-3,)), es2.load_prompts("harmful:test", limit=8)
print(*(es2.attack(c, scav, prompts, base=base, fit=few).dsr.judged for c in (base, hard.chat)))
