"""The finding in plain words, computed from the numbers: what rose, what fell, what is noise."""

from __future__ import annotations

import math
from collections.abc import Mapping

from es2.report.change import Change
from es2.report.formats import SPACE, decimal, interval, listing, name, percent, points, signed
from es2.report.reading import READINGS, Reading, models, rate_of
from es2.results.paired import Difference
from es2.results.schema import AttackResult, Cost, DefenceResult, Results

_INTERVAL = f"95{SPACE}% interval"
_WORTH_SAYING = 0.05


def findings(results: Results) -> dict[str, str]:
    """One paragraph a defended model, by its name; of the base alone if nothing was defended."""
    measured = models(results)
    base = measured.pop("base", None)
    if base is None or not measured:
        alone = {"base": base} if base else measured
        return {key: _alone(key, model) for key, model in alone.items()}
    return {key: compare(base, model) for key, model in measured.items()}


def compare(base: DefenceResult, defended: DefenceResult) -> str:
    """What a defence bought and what it cost, as a paragraph."""
    shared = [key for key in base.attacks if key in defended.attacks]
    lead = "scav" if "scav" in shared else next(iter(shared), None)
    sentences = []
    if lead:
        sentences += _lead(lead, base, defended)
        sentences += _others({key: _both(base, defended, key) for key in shared if key != lead})
        sentences += _collapse(lead, defended.attacks[lead])
    sentences += _price(base.cost, defended.cost, defended.changes)
    if not sentences:
        return "Nothing was measured on both the base and the defended model."
    return " ".join(sentences)


def moved(change: Change) -> str:
    """A change of a rate as a clause, saying whether it goes beyond the intervals."""
    before, after = percent(change.before.rate), percent(change.after.rate)
    if before == after:
        return f"is unchanged at {after} ({_INTERVAL} {interval(change.after)})"
    if change.clear:
        return f"{_way(change)} from {before} to {after} ({_INTERVAL} {interval(change.after)})"
    return (
        f"went from {before} to {after}, a difference inside the noise "
        f"({interval(change.before)} before, {interval(change.after)} after{_shows(change)})"
    )


def _lead(key: str, base: DefenceResult, defended: DefenceResult) -> list[str]:
    """The sentences on the attack that the report leads with: as published, then at its best."""
    before, after = base.attacks[key], defended.attacks[key]
    under = f"Under {_inline(key)} refitted on the defended model"
    if key == "direct":
        under = "Asked directly"
    best = _both(base, defended, key)
    if not (before.published and after.published):
        return [_readings(under, "", best)]
    published = {
        r: Change(
            rate_of(before.published.dsr, r),
            rate_of(after.published.dsr, r),
            defended.changes.get(f"{key} published {r}"),
        )
        for r in READINGS
    }
    return [
        _readings(under, " at the published P0", published),
        "At the setting that suits the attacker best, keyword defence success "
        f"{moved(best['keyword'])}.",
    ]


def _both(base: DefenceResult, defended: DefenceResult, key: str) -> dict[Reading, Change]:
    """An attack's two readings, each at its lowest."""
    before, after = base.attacks[key].dsr, defended.attacks[key].dsr
    return {
        r: Change(rate_of(before, r), rate_of(after, r), defended.changes.get(f"{key} {r}"))
        for r in READINGS
    }


def _readings(under: str, at: str, changes: Mapping[Reading, Change]) -> str:
    keyword, judged = changes["keyword"], changes["judged"]
    return f"{under}, keyword defence success{at} {moved(keyword)}; judged, it {moved(judged)}."


def _others(outcomes: Mapping[str, Mapping[Reading, Change]]) -> list[str]:
    """One sentence on all other attacks, sorted into better, worse and not settled."""
    groups: dict[str, list[str]] = {"rose": [], "fell": [], "same": []}
    for key, changes in outcomes.items():
        change, judged = changes["keyword"], changes["judged"]
        also = f"; judged, {_span(judged)}" if _way(judged) != _way(change) else ""
        groups[_way(change)].append(f"{_inline(key)} ({_span(change)}{also})")
    clauses = [
        f"{words} under {listing(groups[group])}"
        for group, words in (
            ("rose", "rose"),
            ("fell", "fell"),
            ("same", "did not move beyond the noise"),
        )
        if groups[group]
    ]
    return [f"Keyword defence success {'; it '.join(clauses)}."] if clauses else []


def _way(change: Change) -> str:
    if not change.clear:
        return "same"
    return "rose" if change.points > 0 else "fell"


def _span(change: Change) -> str:
    before, after = percent(change.before.rate), percent(change.after.rate)
    return f"still {after}" if before == after else f"{before} to {after}"


def _collapse(key: str, after: AttackResult) -> list[str]:
    """Says when defence success is babble as well as refusal."""
    share = after.verdicts.get("incoherent", 0.0)
    if share < _WORTH_SAYING:
        return []
    source = "to direct requests" if key == "direct" else f"under {_inline(key)}"
    return [
        f"{percent(share)}{SPACE}% of the defended model's completions {source} are incoherent, "
        "not refusals."
    ]


def _price(before: Cost, after: Cost, changes: Mapping[str, Difference]) -> list[str]:
    clauses = [
        f"{what} prompts {_cost(Change(a, b, changes.get(key)))}"
        for what, key, a, b in (
            ("refusals of harmless", "harmless refused", before.over_refusal, after.over_refusal),
            (
                "incoherent answers to harmless",
                "harmless incoherent",
                before.incoherent,
                after.incoherent,
            ),
            (
                "refusals of borderline",
                "borderline refused",
                before.borderline_refusal,
                after.borderline_refusal,
            ),
            (
                "refusals of structured",
                "structured refused",
                before.structured_refusal,
                after.structured_refusal,
            ),
        )
        if a and b
    ]
    if after.perplexity_ratio is not None:
        clauses.append(f"perplexity {_relative(after.perplexity_ratio)}")
    if after.kl is not None:
        clauses.append(f"KL from the base {decimal(after.kl, 2)} nats")
    return [f"The price: {'; '.join(clauses)}."] if clauses else []


def _shows(change: Change) -> str:
    """What so many prompts could have shown, where that is known."""
    if change.paired is None:
        return ""
    least = math.ceil(100 * change.paired.detectable)
    return f"; {change.paired.n} prompts show differences from {least} points on"


def _cost(change: Change) -> str:
    before, after = percent(change.before.rate), percent(change.after.rate)
    if before == after:
        return f"unchanged at {after}{SPACE}%"
    settled = "" if change.clear else ", inside the noise"
    return f"{points(change)} ({before} to {after}{SPACE}%{settled})"


def _relative(ratio: float) -> str:
    text = signed(100 * (ratio - 1))
    return "unchanged" if text == "±0" else f"{text}{SPACE}%"


def _alone(key: str, model: DefenceResult) -> str:
    """What there is to say of one model with nothing to compare it with."""
    clauses = [
        f"{percent(rate.rate)} under {_inline(attack)} ({_INTERVAL} {interval(rate)})"
        for attack, result in model.attacks.items()
        for rate in [result.dsr.keyword]
    ]
    if not clauses:
        return f"No attack was run on {name(key)}."
    return (
        f"Only one side was measured, so nothing can be said of a change. "
        f"Keyword defence success of {name(key)}: {'; '.join(clauses)}."
    )


def _inline(key: str) -> str:
    """An attack's name inside a sentence: initialisms keep their capitals."""
    text = name(key)
    return text if any(c.isupper() for c in text[1:]) else text[:1].lower() + text[1:]
