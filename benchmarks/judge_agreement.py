"""How far es2's offline judges agree with labels given by hand.

Launch:

    python benchmarks/judge_agreement.py --collect FOLDER --adapter runs/demo/adapter [--rounds 5]
    python benchmarks/judge_agreement.py --completions FOLDER [FOLDER] [--json]

The first writes the completions anew (minutes) and then measures; the second reads what was written.
Labels belong to completions by their hash, so that what another machine's rounding changes is left
out, and counted. The judge is calibrated as a run's is, on the undefended model's own harmless answers.

`judge_labels.jsonl` holds the labels, docs/judge_quality.md how they came about. A prompt's labels are
all in one split: rules may be tuned on all rounds of samples but the last, which is held out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from judge_samples import ALIGNED, ROUNDS, UNALIGNED, Sample, collect, read
from sklearn.metrics import cohen_kappa_score, confusion_matrix

import es2
from es2.data.fitting import bundled_fit
from es2.judges.base import VERDICTS, VERSION
from es2.judges.refusal import keyword_refusal, refuses
from es2.pipeline.attack import judge_of
from es2.results.rates import Rate, wilson

LABELS = Path(__file__).with_name("judge_labels.jsonl")
SPLITS = ("tune", "held-out")


@dataclass(frozen=True)
class Label:
    """What a reader made of one completion.

    Attributes:
        model: that wrote it.
        source: the attack, or the set of prompts.
        setting: of the attack.
        prompt_id: in es2's own test prompts.
        sha256: of the completion.
        label: refused, incoherent or complied.
        doubt: whether another reader might well say otherwise.
        split: tune, which all rounds of samples but the last are, or held-out, which that one is.
    """

    model: str
    source: str
    setting: str
    prompt_id: str
    sha256: str
    label: str
    doubt: bool
    split: str

    @property
    def key(self) -> tuple[str, ...]:
        """What a sample has to have in common with it."""
        return (self.model, self.source, self.setting, self.prompt_id, self.sha256)


@dataclass(frozen=True)
class Case:
    """A labelled completion that was found again, and the judge's verdict."""

    sample: Sample
    label: Label
    verdict: str


Reading = Callable[[Case], bool]

READINGS: dict[str, Reading] = {
    "the whole judge": lambda case: case.verdict == "refused",
    "refusal rule alone": lambda case: refuses(case.sample.completion),
    "keywords, jailbreakbench": lambda case: listed(case, "jailbreakbench"),
    "keywords, gcg": lambda case: listed(case, "gcg"),
    "keywords, autodan": lambda case: listed(case, "autodan"),
}
"""What tells refusals from everything else."""


def listed(case: Case, keywords: str) -> bool:
    """Whether a string of a published list stands in the completion."""
    return keyword_refusal(case.sample.completion, keywords)


def read_labels() -> list[Label]:
    """All labels, in the order of the samples."""
    lines = LABELS.read_text(encoding="utf-8").splitlines()
    return [Label(**json.loads(line)) for line in lines]


def judged(samples: Sequence[Sample], labels: Sequence[Label]) -> list[Case]:
    """The samples that have labels, with the judge's verdicts."""
    known = {label.key: label for label in labels}
    found = []
    for base in (UNALIGNED, ALIGNED):
        judge = judge_of(es2.load(base), bundled_fit(extra=False).at_most(200))
        own = [
            (sample, known[key])
            for sample in samples
            if (sample.model == UNALIGNED) == (base == UNALIGNED)
            and (key := (*_place(sample), sample.sha256)) in known
        ]
        judgements = judge([s.prompt for s, _ in own], [s.completion for s, _ in own])
        found += [
            Case(sample, label, judgement.verdict)
            for (sample, label), judgement in zip(own, judgements, strict=True)
        ]
    return found


def _place(sample: Sample) -> tuple[str, str, str, str]:
    return (sample.model, sample.source, sample.setting, sample.prompt_id)


def agreement(cases: Iterable[Case]) -> dict[str, object]:
    """Agreement, kappa, precision and recall, and who said what."""
    pairs = [(case.label.label, case.verdict) for case in cases]
    told, said = [one for one, _ in pairs], [other for _, other in pairs]
    table = confusion_matrix(told, said, labels=list(VERDICTS))
    return {
        "agreement": _share(int(table.trace()), len(pairs)),
        "kappa": float(cohen_kappa_score(told, said)),
        "classes": {
            name: {
                "precision": _share(int(table[i, i]), int(table[:, i].sum())),
                "recall": _share(int(table[i, i]), int(table[i].sum())),
            }
            for i, name in enumerate(VERDICTS)
        },
        "confusion": {
            name: dict(zip(VERDICTS, map(int, table[i]), strict=True))
            for i, name in enumerate(VERDICTS)
        },
    }


def refusals(cases: Sequence[Case], reading: Reading) -> dict[str, object]:
    """How well a reading tells what was labelled a refusal."""
    pairs = [(case.label.label == "refused", reading(case)) for case in cases]
    both = sum(told and said for told, said in pairs)
    return {
        "agreement": _share(sum(told == said for told, said in pairs), len(pairs)),
        "kappa": float(cohen_kappa_score(*zip(*pairs, strict=True))),
        "precision": _share(both, sum(said for _, said in pairs)),
        "recall": _share(both, sum(told for told, _ in pairs)),
    }


def _share(successes: int, n: int) -> Rate | None:
    return wilson(successes, n) if n else None


def agrees(cases: Iterable[Case]) -> Rate | None:
    """How often label and verdict are the same."""
    same = [case.label.label == case.verdict for case in cases]
    return _share(sum(same), len(same))


def measure(cases: Sequence[Case]) -> dict[str, Any]:
    """All of it for one split."""
    sources: dict[str, list[Case]] = {}
    for case in cases:
        sources.setdefault(f"{case.sample.model}, {case.sample.source}", []).append(case)
    # Many completions are the same refusal or the same loop, word for word.
    texts = {case.sample.completion: case for case in reversed(cases)}
    succeeds = [(case.label.label == "complied") == (case.verdict == "complied") for case in cases]
    return {
        **agreement(cases),
        "without_doubt": agrees(case for case in cases if not case.label.doubt),
        "texts": agrees(texts.values()),
        "attack_succeeds": _share(sum(succeeds), len(succeeds)),
        "sources": {name: agrees(own) for name, own in sources.items()},
        "refusals": {name: refusals(cases, reading) for name, reading in READINGS.items()},
    }


def show(split: str, found: dict[str, Any], cases: Sequence[Case]) -> None:
    """Markdown tables of one split."""
    prompts = {case.sample.prompt_id for case in cases}
    doubtful = sum(case.label.doubt for case in cases)
    print(f"\n## {split}: {len(cases)} completions of {len(prompts)} prompts\n")
    print(row("% (95 % interval)", "agreement", "kappa"), row("---", "---", "---"), sep="\n")
    print(row("three verdicts", shown(found["agreement"]), f"{found['kappa']:.2f}"))
    print(row(f"without the {doubtful} in doubt", shown(found["without_doubt"]), ""))
    print(row(f"each of {found['texts'].n} texts once", shown(found["texts"]), ""))
    print(row("complied or not", shown(found["attack_succeeds"]), ""))
    print("\n" + row("label", *(f"judged {name}" for name in VERDICTS), "precision", "recall"))
    print(row(*["---"] * 6))
    for name in VERDICTS:
        rates = found["classes"][name]
        counts = found["confusion"][name].values()
        print(row(name, *counts, shown(rates["precision"]), shown(rates["recall"])))
    print("\n" + row("refused or not", "agreement", "kappa", "precision", "recall"))
    print(row(*["---"] * 5))
    for name, one in found["refusals"].items():
        rates = [shown(one[key]) for key in ("precision", "recall")]
        print(row(name, shown(one["agreement"]), f"{one['kappa']:.2f}", *rates))
    print("\n" + row("source", "n", "agreement"), row("---", "---", "---"), sep="\n")
    for name, rate in found["sources"].items():
        print(row(name, rate.n, shown(rate)))


def shown(rate: Rate | None) -> str:
    """In per cent, with its interval."""
    if rate is None:
        return "-"
    return f"{100 * rate.rate:.0f} ({100 * rate.low:.0f}-{100 * rate.high:.0f})"


def row(*cells: object) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--collect", type=Path, help="folder to write completions to, then read")
    where.add_argument("--completions", type=Path, nargs="+", help="folders they were written to")
    parser.add_argument("--adapter", type=Path, help="of the hardened model; none leaves it out")
    parser.add_argument(
        "--rounds", type=int, nargs="+", default=range(1, len(ROUNDS) + 1), help="to write anew"
    )
    parser.add_argument("--split", choices=SPLITS, help="only this one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    if options.collect:
        samples = collect(options.collect, options.adapter, options.rounds)
    else:
        samples = [sample for folder in options.completions for sample in read(folder)]
    labels = read_labels()
    splits = [options.split] if options.split else SPLITS
    cases = judged(samples, [label for label in labels if label.split in splits])
    found = {}
    for split in splits:
        own = [case for case in cases if case.label.split == split]
        if not own:
            raise SystemExit(f"no completion of the {split} split has the hash of a label")
        found[split] = measure(own)
        found[split]["labels"] = sum(label.split == split for label in labels)
        found[split]["matched"] = len(own)
    if options.json:
        print(json.dumps({"version": VERSION, "splits": found}, indent=2, default=asdict))
        return
    for split in splits:
        print(f"{split}: {found[split]['matched']} of {found[split]['labels']} labels matched")
    for split in splits:
        show(split, found[split], [case for case in cases if case.label.split == split])


if __name__ == "__main__":
    main()
