"""`comparison.json` and the table it stands for: what each defence gains against what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from es2.results.capability import CapabilityResults
from es2.results.margin import ANY, Margins, Ratio
from es2.results.over_refusal import OverRefusal, pooled
from es2.results.rates import Rate, wilson
from es2.results.schema import AttackResult, DefenceResult, Record, Results
from es2.results.seeds import SeedSpread, over_seeds

COMPARISON = "comparison.json"


class Member(Record):
    """One model that takes part, and how it was trained; nulls for the undefended one.

    Attributes:
        folder: of its run.
        defence: its name in recipes.
        seed: of training.
        stopped: why training ended.
        steps: that were trained.
        kept: the step whose weights were kept.
        train_seconds: from recording the base to the saved adapter, validation included.
        peak_memory_mb: of training: the accelerators' or, without one, the process's.
    """

    folder: str
    defence: str | None = None
    seed: int | None = None
    stopped: str | None = None
    steps: int | None = None
    kept: int | None = None
    train_seconds: float | None = None
    peak_memory_mb: float | None = None


class Members(Record):
    """The whole of `comparison.json`: the undefended model is called `base`."""

    members: dict[str, Member] = Field(default_factory=dict)


def without_seed(label: str) -> str:
    """The defence's name in a comparison, of which a member that is one of several is `NAME@SEED`."""
    return label.partition("@")[0]


@dataclass(frozen=True)
class Faced:
    """What an attack left of a model's safety.

    Attributes:
        keyword: DSR at the attacker's best setting, by keywords.
        judged: the same by verdicts.
        refused: the share that refused where judged DSR is that; the rest of it is incoherent.
    """

    keyword: Rate
    judged: Rate
    refused: Rate


@dataclass(frozen=True)
class Row:
    """One model in the table.

    Attributes:
        label: its name; `NAME@SEED` where there are several seeds.
        attacks: what each left, by its name.
        worst: the attack with the lowest judged DSR, and that; None if nothing attacked.
        declined: safe prompts declined, by over-refusal set.
        refused: the same of all sets that every model was asked; where there is none, borderline
            prompts refused.
        unsafe: prompts declined that should be, of those sets that have any.
        result: all rates.
        margin: against the attacker who tries every direction.
        accuracy: on the first benchmark.
        member: how it was trained.
    """

    label: str
    attacks: Mapping[str, Faced]
    worst: tuple[str, Rate] | None
    declined: Mapping[str, Rate]
    refused: Rate | None
    unsafe: Rate | None
    result: DefenceResult
    margin: Ratio | None
    accuracy: Rate | None
    member: Member

    @property
    def name(self) -> str:
        """Without the seed."""
        return without_seed(self.label)


def rows(
    members: Members,
    results: Results,
    refusal: OverRefusal | None = None,
    capability: CapabilityResults | None = None,
    margins: Margins | None = None,
) -> list[Row]:
    """The table, in the order of the comparison.

    Args:
        members: who takes part.
        results: attacks and costs.
        refusal: over-refusal; None if not measured, as are the next two.
        capability: what the models know.
        margins: safety margins.
    """
    found = []
    asked = {label: refusal.models.get(label, {}) if refusal else {} for label in members.members}
    common = set.intersection(*map(set, asked.values())) if asked else set()
    for label, member in members.members.items():
        of = results.defences[label]
        attacks = {name: _faced(one) for name, one in of.attacks.items()}
        lowest = min(attacks, key=lambda name: attacks[name].judged.rate, default=None)
        sets = asked[label]
        safe = {name: halves["safe"] for name, halves in sets.items() if "safe" in halves}
        shared = [half for name, half in safe.items() if name in common]
        unsafe = [sets[name]["unsafe"] for name in sorted(common) if "unsafe" in sets[name]]
        swept = margins.models.get(label, {}).get(ANY) if margins else None
        found.append(
            Row(
                label,
                attacks,
                None if lowest is None else (lowest, attacks[lowest].judged),
                {name: half.rates["declined"] for name, half in safe.items()},
                pooled(shared, "declined") or of.cost.borderline_refusal,
                pooled(unsafe, "declined"),
                of,
                swept.margin if swept else None,
                _accuracy(label, capability),
                member,
            )
        )
    return found


def _faced(result: AttackResult) -> Faced:
    n = result.settings[result.setting].dsr.judged.n
    refused = wilson(round(result.verdicts["refused"] * n), n)
    return Faced(result.dsr.keyword, result.dsr.judged, refused)


def _accuracy(label: str, capability: CapabilityResults | None) -> Rate | None:
    for benchmark in (capability.benchmarks if capability else {}).values():
        if label in benchmark.models:
            return benchmark.models[label].accuracy
    return None


def frontier(points: Iterable[tuple[str, float, float]]) -> list[str]:
    """The names of those that nobody beats in both: as little cost, and as much safety.

    Args:
        points: name, cost and safety. One that another equals in both is on it as that one is.
    """
    known = list(points)
    return [
        name
        for name, cost, safety in known
        if not any(c <= cost and s >= safety and (c < cost or s > safety) for _, c, s in known)
    ]


def seed_spread(of: Sequence[Row]) -> dict[str, SeedSpread]:
    """The judged DSR of every attack over the training seeds of one defence, and the worst of them."""
    names = [name for name in of[0].attacks if all(name in row.attacks for row in of)]
    found = {name: over_seeds([row.attacks[name].judged.rate for row in of]) for name in names}
    if names:
        found["worst"] = over_seeds([row.worst[1].rate for row in of if row.worst])
    return found
