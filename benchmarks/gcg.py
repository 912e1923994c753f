"""es2's GCG beside nanoGCG 0.3.0: same machine, model, prompt, seed and width.

Launch: python benchmarks/gcg.py [--steps 20] [--width 64]

Makes nanoGCG's environment in .peers/ at first (it wants an older transformers), runs both, and
prints candidates a second and the time to nanoGCG's last loss. Before that the losses of nanoGCG's
own first candidates are computed here too: they have to agree to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

import es2
from es2.attacks import Gcg
from es2.attacks.gcg import Found, token_table
from es2.models import embedded

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    prompt = es2.load_prompts("harmful:validation", limit=1)[0]
    target = prompt.target or "Sure, here is"
    script = Path(__file__).parent / "peers" / "nanogcg_run.py"
    arguments = [embedded.folder(MODEL), prompt.text, target]
    arguments += [options.steps, options.width, options.seed]
    command = [python_of_peer(), script, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    peer = json.loads(done.stdout.splitlines()[-1])

    chat = es2.load(MODEL)
    attack = Gcg(steps=options.steps, width=options.width, seed=options.seed, stop=False)
    task = attack.task(chat, [prompt.text], [target])
    again = attack.losses(chat, task, peer["ids"])
    difference = float((again - torch.tensor(peer["losses"])).abs().max())
    print(f"{len(again)} of nanoGCG's candidates: losses differ by {difference:.1e} at most")
    table = token_table(chat)
    reached: list[float] = []
    started = time.perf_counter()

    def note(found: Found) -> None:
        if min(found.losses) <= min(peer["history"]) and not reached:
            reached.append(time.perf_counter() - started)

    found = attack.search(chat, task, table, note)
    rates = found.candidates / found.spent.seconds, peer["candidates"] / peer["seconds"]
    print(f"candidates a second: {rates[0]:.1f} against {rates[1]:.1f}: {rates[0] / rates[1]:.2f}x")
    print(f"lowest loss: {min(found.losses):.3f} against {min(peer['history']):.3f}")
    if reached:
        times = reached[0], peer["seconds"]
        print(f"to nanoGCG's lowest loss: {times[0]:.1f} s against {times[1]:.1f} s")
    else:
        print("nanoGCG's lowest loss was not reached in these steps")


if __name__ == "__main__":
    main()
