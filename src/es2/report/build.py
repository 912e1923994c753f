"""Builds report.html: one page, self-contained, from what the run folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from es2.report import comparison, formats, margin, panels
from es2.report.change import Change
from es2.report.comparisons import comparisons, counted
from es2.report.evaluation import drift_rows, leaks, refusal_sets
from es2.report.finding import findings
from es2.report.looks import PALETTE, looks_of
from es2.report.marks import interval_mark, verdict_bar
from es2.report.opinions import judged_rows
from es2.report.page import environment, write_page
from es2.report.reading import RunFolder, attacks, models, number, read_run
from es2.report.samples import sample, visible
from es2.report.standalone import size, standalone
from es2.results.capability import CapabilityResults
from es2.results.comparison import rows
from es2.results.margin import Margins
from es2.results.over_refusal import OverRefusal
from es2.results.paired import Difference
from es2.results.rates import Rate
from es2.results.schema import Results
from es2.results.store import write_text

REPORT = "report.html"


def build(run: Path) -> Path:
    """Writes `report.html` into a run folder and returns its path.

    A comparison's figures and tables are written as files too: `frontier.svg`, `judged_dsr.svg`,
    `refused.svg`, `keyword_dsr.svg` and `cost.svg` with every rate's interval, and `tables.md`.

    Raises:
        Es2Error: if the folder's results are missing or damaged, or the page cannot be written.
    """
    path = run / REPORT
    folder = read_run(run)
    found = contest(folder)
    write_page(path, render(folder, found, title=run.resolve().name))
    for file, text in (found.files if found else {}).items():
        write_text(run / file, text)
    return path


def render(folder: RunFolder, found: Contest | None, title: str) -> str:
    """The page as HTML; everything that comes from the run is escaped."""
    pages = environment()
    results = folder.results
    measured = models(results)
    parts = (measured, *(part.models for part in _measured(folder)))
    looks = looks_of(list(dict.fromkeys(key for part in parts for key in part)))
    compared = comparisons(results, folder.refusal, folder.capability)
    shown = {
        "number": number,
        "name": formats.name,
        "percent": formats.percent,
        "interval": formats.interval,
        "signed": formats.signed,
        "decimal": formats.decimal,
        "duration": formats.duration,
        "memory": formats.memory,
        "mark": lambda rate, key: Markup(interval_mark(rate, looks[key])),
        "bar": lambda verdicts: Markup(verdict_bar(verdicts)),
        "inches": lambda svg: size(svg)[0] / 72,
        "visible": lambda value: visible(str(value)),
    }
    pages.filters.update(shown)
    return pages.get_template("report.html.j2").render(
        title=title,
        folder=folder,
        run=folder.run,
        origin=_origin(folder.run),
        models=measured,
        attacks=attacks(results),
        faced=lambda attack: [
            (k, m.attacks[attack]) for k, m in measured.items() if attack in m.attacks
        ],
        notes=results.notes,
        findings=findings(results),
        key_figures=[]
        if folder.members
        else [*margin_figures(folder.margin), *key_figures(results)],
        contest=found,
        margin=margin.figure(folder.margin) if folder.margin else None,
        margin_findings=margin.sentences(folder.margin) if folder.margin else [],
        refusal_rows=refusal_sets(folder.refusal),
        capability=folder.capability,
        drift_rows=drift_rows(folder.drift),
        judges=folder.judges,
        judged_rows=judged_rows(folder.judges),
        comparisons=compared,
        counted=counted(compared),
        leaks=leaks(folder.run),
        absent_sets=folder.run.get("absent") or {},
        sweep=panels.sweep(results),
        separability=panels.separability(folder.layers, looks),
        training=panels.training(folder),
        why=_sentence((folder.layers.get("chosen") or {}).get("why")),
        axes=_sentence(folder.embeddings.get("axes")),
        projections=panels.projections(folder.embeddings),
        groups=sample(folder.attempts, results),
        facts=facts(folder.run),
        palette=PALETTE,
    )


@dataclass(frozen=True)
class Contest:
    """What the report shows of a comparison."""

    sentence: str
    figure: panels.Figures | None
    intervals: list[panels.Panel]
    grids: list[comparison.Grid]

    @property
    def files(self) -> dict[str, str]:
        """Its figures and tables, by the names of their files."""
        drawn = {panel.title.lower().replace(" ", "_"): panel for panel in self.intervals}
        if self.figure:
            drawn["frontier"] = self.figure.panels[0]
        files = {f"{name}.svg": standalone(panel.svg) for name, panel in drawn.items()}
        return {**files, "tables.md": comparison.markdown(self.grids)}


def contest(folder: RunFolder) -> Contest | None:
    """The comparison that a folder holds; None for a run."""
    if folder.members is None:
        return None
    found = rows(folder.members, folder.results, folder.refusal, folder.capability, folder.margin)
    return Contest(
        comparison.sentence(found),
        comparison.figure(found),
        comparison.interval_panels(found),
        comparison.grids(found),
    )


@dataclass(frozen=True)
class KeyFigure:
    """A number before and after a defence."""

    label: str
    before: str
    after: str
    note: str


def _measured(folder: RunFolder) -> list[Margins | OverRefusal | CapabilityResults]:
    """What `es2 evaluate` has measured."""
    return [part for part in (folder.margin, folder.refusal, folder.capability) if part]


def key_figures(results: Results) -> list[KeyFigure]:
    """The few numbers to read first; empty without a base and a defended model."""
    measured = models(results)
    base = measured.pop("base", None)
    if base is None or not measured:
        return []
    defended = next(iter(measured.values()))
    found = []
    if "scav" in base.attacks and "scav" in defended.attacks:
        before, after = base.attacks["scav"], defended.attacks["scav"]
        paired = defended.changes
        if before.published and after.published:
            rates = before.published.dsr.keyword, after.published.dsr.keyword
            label = "SCAV at the published P0, keyword DSR"
            found.append(_changed(label, *rates, paired.get("scav published keyword")))
        rates = before.dsr.keyword, after.dsr.keyword
        label = "SCAV at the attacker's best P0, keyword DSR"
        found.append(_changed(label, *rates, paired.get("scav keyword")))
    refused = base.cost.over_refusal, defended.cost.over_refusal
    if refused[0] and refused[1]:
        paired_refusals = defended.changes.get("harmless refused")
        found.append(_changed("Harmless prompts refused", refused[0], refused[1], paired_refusals))
    if defended.cost.perplexity_ratio is not None:
        ratio = formats.decimal(defended.cost.perplexity_ratio)
        found.append(KeyFigure("Perplexity", "1", ratio, "of the base's harmless answers, × base"))
    return found


def margin_figures(margins: Margins | None) -> list[KeyFigure]:
    """The safety margin before and after, at the worst direction of each; empty if not measured."""
    swept = {key: margin.worst(of) for key, of in (margins.models if margins else {}).items()}
    found = [one[1].margin for one in (swept.pop("base", None), *swept.values()) if one]
    if len(found) < 2:
        return []
    note = "push that half comply with over push that leaves half incoherent; > is a bound"
    before, after = (margin.ratio(ratio) for ratio in found[:2])
    return [KeyFigure("Safety margin", before, after, note)]


def _changed(label: str, before: Rate, after: Rate, paired: Difference | None) -> KeyFigure:
    """With the change prompt by prompt; a run without pairs has only its intervals apart."""
    if paired is None:
        low, high = Change(before, after).interval
        note = f"95 %: {formats.signed(low)} to {formats.signed(high)} points, prompts not paired"
    else:
        note = formats.difference(paired)
    return KeyFigure(label, formats.percent(before.rate), formats.percent(after.rate), note)


def facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader needs to place or repeat the run, as terms and their values."""
    terms = {
        "Model": "model",
        "Thinking": "thinking",
        "Seed": "seed",
        "Started": "started",
        "Training ended": "stopped",
        "Step kept": "best_step",
        "Machine": "machine",
        "es2": "es2_version",
        "Git revision": "git",
        "Versions": "versions",
    }
    return [(term, _plain(run[key])) for term, key in terms.items() if run.get(key) is not None]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(part) for part in value)
    return str(value)


def _origin(run: Mapping[str, Any]) -> str:
    """When and with what the run was made, in short sentences."""
    known = (("Started", "started"), ("Seed", "seed"), ("es2", "es2_version"))
    return " ".join(f"{word} {run[key]}." for word, key in known if run.get(key) is not None)


def _sentence(text: Any) -> str:
    """A text that ends in a full stop; empty for none."""
    text = str(text or "").strip()
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
