"""The terminal's table holds the same numbers as the page."""

import io

import pytest
from rich.console import Console
from synthetic import results as made_results

from es2.report.table import table
from es2.results.schema import Results


@pytest.fixture
def results():
    return made_results()


def shown(results, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(results))
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_rates_settings_and_changes_are_in_their_rows(results):
    lines = shown(results)
    scav = lines.index("SCAV")
    assert lines[scav + 1] == "keyword 5 (1–24) 75 (53–89) +70"
    assert lines[scav + 3] == "judged, best for each prompt 5 (1–24) 75 (53–89) +70"
    assert lines[scav + 4] == "judged, mean of settings – –"
    assert lines[scav + 5] == "best setting p0=1e-05 p0=1e-05"
    published = lines.index("SCAV, published setting")
    assert lines[published + 1] == "keyword 15 (5–36) 85 (64–95) +70"
    assert "KL from base, nats 0 0.012" in lines
    assert "perplexity, × base 1 1.02" in lines


def test_change_inside_the_intervals_is_marked(results):
    lines = shown(results)
    assert "harmless refused 6 (3–12) 7 (3–14) ~+1" in lines
    assert "harmless incoherent 1 (0–5) 5 (2–11) ~+4" in lines
    assert "keyword 70 (52–83) 27 (14–45) −43" in lines


def test_it_fits_eighty_columns(results):
    assert not any("…" in line for line in shown(results, 80))


def test_names_are_not_read_as_markup(results):
    attacks = results["defences"]["es2"]["attacks"]
    attacks["[red]odd[/red]"] = attacks["direct"]
    assert "[red]odd[/red]" in shown(results)


def test_what_was_not_measured_is_a_dash(results):
    del results["defences"]["base"]["attacks"]["prefill"]
    results["defences"]["base"]["cost"] = {}
    lines = shown(results)
    assert "keyword – 30 (17–48) –" in lines
    assert "harmless refused – 7 (3–14) –" in lines


def test_with_several_defences_each_has_a_column_and_none_is_singled_out(results):
    results["defences"]["lat"] = results["defences"]["es2"]
    text = "\n".join(shown(results, 120))
    assert "base ES2 LAT" in text and "Change" not in text


def test_checked_and_plain_results_make_the_same_table(results):
    assert shown(results) == shown(Results.model_validate(results))
