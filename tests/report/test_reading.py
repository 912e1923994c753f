"""Results are checked; everything else in a run folder is optional."""

import json

import pytest
from synthetic import results, write_run

from es2.errors import Es2Error
from es2.report.reading import attacks, models, read_run
from es2.results.schema import Results


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "demo")


def test_missing_results_say_what_where_and_what_to_do(run):
    (run / "results.json").unlink()
    with pytest.raises(Es2Error, match=r"results\.json: missing; run the stage") as error:
        read_run(run)
    assert "\n" not in str(error.value)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(Es2Error, match="nowhere: no such run folder"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', "\ud800"])
def test_damaged_results_are_one_line_and_name_the_file(run, text):
    (run / "results.json").write_text(text, errors="surrogatepass")
    with pytest.raises(Es2Error, match=r"results\.json: .*again") as error:
        read_run(run)
    assert "\n" not in str(error.value)


def test_missing_field_is_named(run):
    damaged = results()
    del damaged["defences"]["es2"]["attacks"]["scav"]["dsr"]["keyword"]["high"]
    (run / "results.json").write_text(json.dumps(damaged))
    with pytest.raises(Es2Error, match=r"es2\.attacks\.scav\.dsr\.keyword\.high"):
        read_run(run)


def test_base_comes_first_and_es2_next_whatever_the_order_in_the_file():
    made = results()["defences"]
    given = {"lat": made["base"], "es2": made["es2"], "base": made["base"]}
    assert list(models(Results(defences=given))) == ["base", "es2", "lat"]


def test_attacks_that_only_one_model_faced_are_listed_too():
    made = results()
    del made["defences"]["base"]["attacks"]["prefill"]
    found = attacks(Results.model_validate(made))
    assert sorted(found) == ["direct", "prefill", "repe", "scav"]


def test_line_cut_off_by_a_kill_is_left_out(run):
    with (run / "attempts.jsonl").open("a") as file:
        file.write('{"defence": "es2", "compl')
    whole = json.loads((run / "attempts.jsonl").read_text().splitlines()[-2])
    assert read_run(run).attempts[-1] == whole


def test_damaged_optional_file_is_absent_with_its_reason(run):
    (run / "layers.json").write_text("{")
    (run / "config.yaml").write_text("a: [")
    absent = read_run(run).absent
    assert absent["layers.json"] == "layers.json is damaged"
    assert absent["config.yaml"] == "config.yaml is damaged"
