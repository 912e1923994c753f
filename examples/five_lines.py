"""Harden the embedded model as published and attack it before and after, in five lines."""

import es2

base, prompts = es2.load("smollm2-aligned"), es2.load_prompts("harmful:test", limit=8)
few, paper = es2.bundled_fit().at_most(32), es2.Es2Paper()
hardened = es2.harden(es2.load(base.name), "runs/five_lines", fit=few, defence=paper)
for name, chat in {"base": base, "hardened": hardened.chat}.items():
    print(name, es2.attack(chat, es2.Scav(p0=(1e-3,)), prompts, base=base, fit=few).dsr.judged)
