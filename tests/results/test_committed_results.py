"""The tables in docs/ are what the results committed beside them say."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from es2.config import load_recipe
from es2.pipeline.run import published_settings
from es2.report.comparison import grids, markdown
from es2.report.reading import read_run
from es2.results.comparison import rows
from es2.results.store import read_attempts
from es2.results.summary import summarise

DOCS = Path(__file__).parents[2] / "docs"
COMMITTED = sorted(path.parent for path in DOCS.glob("*/comparison.json"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_the_tables_of_a_committed_comparison_follow_from_its_results(folder: Path) -> None:
    run = read_run(folder)
    assert run.members is not None
    found = rows(run.members, run.results, run.refusal, run.capability, run.margin)
    assert (folder / "tables.md").read_text() == markdown(grids(found))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_the_rates_of_a_committed_comparison_follow_from_every_attempts_record(
    folder: Path, tmp_path: Path
) -> None:
    with tarfile.open(folder / "records.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    committed = read_run(folder).results.defences
    folders = {label: tmp_path / "records" / label for label in committed}
    recorded = (
        {**record, "defence": label}
        for label, folder in folders.items()
        for record in read_attempts(folder)
    )
    published = published_settings(load_recipe(folders["base"] / "config.yaml"))
    found = summarise(recorded, published).defences
    for label, model in committed.items():
        assert found[label].attacks == model.attacks
        assert found[label].changes == model.changes


def test_the_page_of_results_shows_whole_tables_of_committed_comparisons() -> None:
    page = (DOCS / "results.md").read_text()
    for folder in COMMITTED:
        tables = (folder / "tables.md").read_text().split("\n\n")
        shown = [table.strip() for table in tables if table.startswith("|")]
        assert shown and all(table in page for table in shown)


def test_the_readme_shows_figures_of_the_page_of_results() -> None:
    page = (DOCS / "results.md").read_text()
    today = page[: page.index("## Every defence")]
    rows_shown = [
        line.replace("*", "").replace("–", "-").strip("| ").split(" | ")[1:]
        for line in (DOCS.parent / "README.md").read_text().splitlines()
        if line.startswith("|") and line.count("|") == 4 and any(map(str.isdigit, line))
    ]
    assert len(rows_shown) >= 5
    for before, after in rows_shown:
        assert f"| {before} | {after}" in today
