"""es2's GCG beside nanoGCG 0.3.0: same machine, model, prompts, seed and width.

Launch: python benchmarks/gcg.py [--prompts 3] [--steps 16] [--width 64]

Makes nanoGCG's environment in .peers/ at first (it wants an older transformers). For each test prompt:
the losses of nanoGCG's own first candidates are computed here too and have to agree to 1e-4; then es2
takes as many steps with the same settings, for the candidates a second; then it searches with the
options below until it has nanoGCG's lowest loss. Those were chosen on validation prompts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from machine import peak

import es2
from es2.attacks import Gcg
from es2.attacks.gcg import Found, token_table
from es2.attacks.target import AFFIRMATION
from es2.models import embedded
from es2.models.forward import Held

PEER = Path(".peers/nanogcg")
PACKAGES = ("torch==2.13.0", "transformers==4.47.1", "nanogcg==0.3.0")
MODEL = "smollm2-aligned"


def python_of_peer() -> Path:
    """The peer's interpreter; its environment is made if it is not there."""
    python = PEER / "bin" / "python"
    if not (PEER / ".installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (PEER / ".installed").touch()
    return python


FASTER: dict[str, Any] = {"width": 32, "merge": 8}
"""Settings with which a search is faster to the same loss."""


class Reached(Exception):
    """The loss aimed at."""


def run_peer(prompt: str, target: str, options: argparse.Namespace) -> dict[str, Any]:
    """What nanoGCG found, see benchmarks/peers/nanogcg_run.py."""
    script = Path(__file__).parent / "peers" / "nanogcg_run.py"
    arguments = [embedded.folder(MODEL), prompt, target, options.steps, options.width, options.seed]
    command = list(map(str, [python_of_peer(), script, *arguments]))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    chat = es2.load(MODEL)
    table, best = token_table(chat), peak()
    rates, times = [], []
    for prompt in es2.load_prompts("harmful:test", limit=options.prompts):
        target = prompt.target or AFFIRMATION
        peer = run_peer(prompt.text, target, options)
        aim = min(peer["history"])
        plain = Gcg(steps=options.steps, width=options.width, seed=options.seed, stop=False)
        task = plain.task(chat, [prompt.text], [target])
        again, _ = plain.read(chat, task, peer["ids"], [Held()])
        difference = float((again - torch.tensor(peer["losses"])).abs().max())
        found = plain.search(chat, task, table)
        rate = found.candidates / found.spent.seconds
        rates.append(rate / (peer["candidates"] / peer["seconds"]))
        share = found.spent.flops / found.spent.seconds / best
        print(
            f"{prompt.id}: losses of {len(again)} candidates differ by {difference:.0e}; candidates "
            f"a second {rate:.1f}, {rates[-1]:.2f}x ({share:.0%} of matmul peak); "
            f"lowest loss {min(found.losses):.3f} against {aim:.3f}",
            flush=True,
        )

        def note(found: Found, aim: float = aim) -> None:
            if found.losses[-1] <= aim:
                raise Reached

        started = time.perf_counter()
        try:
            replace(plain, **FASTER, steps=8 * options.steps).search(chat, task, table, note)
            reached = "NOT REACHED"
        except Reached:
            reached = "reached"
        seconds = time.perf_counter() - started
        times.append(peer["seconds"] / seconds)
        print(
            f"{prompt.id}: with {FASTER} nanoGCG's lowest loss {reached} in {seconds:.1f} s against "
            f"{peer['seconds']:.1f} s, {times[-1]:.1f}x",
            flush=True,
        )
    print(f"candidates a second: {geometric_mean(rates):.2f}x (aim 1.4x)")
    print(f"time to the same loss: {geometric_mean(times):.1f}x (aim 3x)")


if __name__ == "__main__":
    main()
