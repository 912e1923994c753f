"""`es2 layers`: each layer's separability, and the critical two."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict, replace

import tyro
from rich.table import Table

from es2.commands.options import Dtype, PromptOptions, load_model
from es2.errors import Es2Error
from es2.progress import output
from es2.separation.layers import LayerRow, choose, given, parse_layers, survey
from es2.separation.probe import read_states


def layers(
    model: str,
    limit: int | None = None,
    prompts: PromptOptions = PromptOptions(),
    layers: str | None = None,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str | None = None,
    json: bool = False,
) -> None:
    """Shows probe accuracy, distance, spread and norm per layer, and chooses the critical layers.

    Args:
        model: an embedded name (smollm2-aligned), a Hub id, a folder, or an adapter folder.
        limit: at most this many prompts of each class.
        prompts: what to fit on.
        layers: your own critical layers, such as 15,30.
        seed: of the probes and of which prompts a limit draws.
        dtype: of the weights; auto is float32 on CPU and bfloat16 on an accelerator.
        device: default the accelerator if there is one.
        json: print JSON on standard output, and nothing else.
    """
    wanted = None if layers is None else parse_layers(layers)
    if limit is not None and limit < 1:
        raise Es2Error(f"--limit {limit}: has to be at least 1")
    fit = replace(prompts, at_most=limit or prompts.at_most).load(seed)
    chat = load_model(model, dtype, device)
    chosen = None if wanted is None else given(wanted, chat.depth)
    states = read_states(chat, fit)
    rows = survey(states, seed)
    chosen = chosen or choose(rows)
    if json:
        print(jsonlib.dumps({"chosen": chosen.record(), "layers": [asdict(row) for row in rows]}))
        return
    console = output(highlight=True)
    console.print(table(rows, chosen.layers))
    console.print(f"critical layers {', '.join(map(str, chosen.layers))}: {chosen.why}")


def table(rows: list[LayerRow], chosen: tuple[int, ...]) -> Table:
    """The survey for a terminal; the chosen layers in bold."""
    shown = Table(title="separability of harmful and harmless prompts, by layer")
    for name in (
        "layer",
        "accuracy",
        "margin",
        "distance",
        "spread",
        "separation",
        "norm",
        "cosine",
    ):
        shown.add_column(name, justify="right")
    for row in rows:
        values = (row.margin, row.distance, row.spread, row.separation, row.norm, row.cosine)
        shown.add_row(
            f"{row.layer}{' *' if row.layer in chosen else ''}",
            f"{row.accuracy:.3f}",
            *(f"{value:.2f}" for value in values),
            style="bold" if row.layer in chosen else None,
        )
    return shown


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(layers, args=argv, prog="es2 layers")
