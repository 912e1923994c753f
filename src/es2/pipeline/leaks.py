"""Leaks: prompts that are evaluated on and were fitted on, so that a rate says nothing of new ones.

Whatever is evaluated is compared with whatever was fitted: a defence's training and validation prompts
and the prompts of an attacker's probes. Copies, word for word or but for case, punctuation and spaces,
are refused unless forced. Reworded prompts are counted and reported, not refused: of what
`find_overlap` calls near, some is a look-alike that asks for something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from es2.data.overlap import find_overlap
from es2.errors import Es2Error
from es2.progress import console

KINDS = ("exact", "normalised", "near")
"""From the surest to the least sure."""

REFUSED = ("exact", "normalised")
"""Copies."""

Leak = dict[str, Any]
"""`a`, the evaluated set; `b`, the fitted one; `kind`; `count`, how many of a's prompts; `of`, of
how many."""


def check_leaks(
    evaluated: Mapping[str, Sequence[str]], fitted: Mapping[str, Sequence[str]], force: bool
) -> list[Leak]:
    """Compares every evaluated set with every fitted one, warns, and refuses copies.

    Args:
        evaluated: prompts of each set that is about to be measured on, by its name.
        fitted: prompts of each set that a model, a layer choice or a probe was fitted on.
        force: go on all the same; what is returned belongs into the results.

    Returns:
        plain records of what was found, for `run.json` and the report; see `Leak`.

    Raises:
        Es2Error: for copies, unless forced.
    """
    found = find_leaks(evaluated, fitted)
    refuse(found, force)
    warn(found)
    return found


def find_leaks(
    evaluated: Mapping[str, Sequence[str]], fitted: Mapping[str, Sequence[str]]
) -> list[Leak]:
    """Every evaluated prompt counts once for each fitted set, under the surest kind."""
    found = []
    for a, prompts in evaluated.items():
        for b, others in fitted.items():
            surest: dict[int, str] = {}
            for pair in find_overlap(prompts, others):
                known = surest.get(pair.a_index, "near")
                surest[pair.a_index] = min(known, pair.kind, key=KINDS.index)
            counts = {kind: list(surest.values()).count(kind) for kind in KINDS}
            found += [
                {"a": a, "b": b, "kind": kind, "count": count, "of": len(prompts)}
                for kind, count in counts.items()
                if count
            ]
    return found


def refuse(found: Sequence[Leak], force: bool) -> None:
    """Refuses copies unless forced.

    Raises:
        Es2Error: naming the sets, how many prompts and of what kind.
    """
    copies = [leak for leak in found if leak["kind"] in REFUSED]
    if copies and not force:
        told = "; ".join(note(leak) for leak in copies)
        raise Es2Error(f"{told}; take them out of one of the two, or add --force to go on")


def warn(found: Sequence[Leak]) -> None:
    """Says on standard error what was found."""
    for leak in found:
        text = f"warning: {note(leak)}"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def note(leak: Leak) -> str:
    """Such as `harmful:test: 3 of 120 prompts are also in harmful:train (exact)`."""
    return (
        f"{leak['a']}: {leak['count']} of {leak['of']} prompts are also in {leak['b']} "
        f"({leak['kind']})"
    )
