"""Loading prompts: what comes out of each kind of source, and what a user is told when it fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from es2.data import PUBLIC, Prompt, load_prompts, split_classes
from es2.errors import Es2Error

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file into a fresh folder and gives back its path."""

    def write_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return str(path)

    return write_file


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def complaint(source: str, **options: object) -> str:
    """What a user is told; always one line."""
    with pytest.raises(Es2Error) as caught:
        load_prompts(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The sets that are shipped


def test_the_shipped_sets_say_what_they_are():
    harmful = load_prompts("harmful")[0]
    harmless = load_prompts("harmless")[0]
    borderline = load_prompts("borderline")[0]
    assert (harmful.harmful, harmful.borderline) == (True, False)
    assert (harmless.harmful, harmless.borderline) == (False, False)
    assert (borderline.harmful, borderline.borderline) == (False, True)
    assert harmful.target is not None
    assert harmful.target.startswith("Sure, here")
    assert harmless.target is None
    assert (harmful.id, harmful.category, harmful.source) == ("harmful-0001", "malware", "harmful")


def test_a_split_is_named_after_the_set_or_as_an_option():
    named = load_prompts("harmful:test")
    assert texts(named) == texts(load_prompts("harmful", split="test"))
    assert 0 < len(named) < len(load_prompts("harmful"))


def test_a_split_given_twice_has_to_be_the_same():
    assert load_prompts("harmful:test", split="test")
    assert "split is also given as 'train'" in complaint("harmful:test", split="train")


def test_an_unknown_split_is_answered_with_those_there_are():
    message = complaint("harmful:tests")
    assert "no split 'tests'" in message
    assert all(split in message for split in ("train", "validation", "test"))


# Files


def test_csv_columns_are_guessed_in_any_case_and_quoted_commas_and_line_breaks_are_kept(
    write: Write,
):
    path = write("set.csv", 'Goal,target,category\n"First, and\nmore",Sure,a\nSecond,,b\n')
    first, second = load_prompts(path)
    assert (first.text, first.target, first.category) == ("First, and\nmore", "Sure", "a")
    assert (second.text, second.target, second.category) == ("Second", None, "b")
    assert first.harmful is None
    assert (first.id, second.id, first.source) == ("set-0001", "set-0002", path)


def test_csv_saved_with_a_byte_order_mark_keeps_its_first_column(write: Write):
    assert texts(load_prompts(write("set.csv", "\ufeffprompt,x\r\nOne,1\r\n"))) == ["One"]


def test_the_likeliest_prompt_column_wins_over_its_position(write: Write):
    path = write("set.csv", "text,prompt\nnot me,me\n")
    assert texts(load_prompts(path)) == ["me"]


def test_columns_can_be_named(write: Write):
    path = write("set.csv", "prompt,ask,start,bad\nno,One,Yes,1\nno,Two,Of course,0\n")
    one, two = load_prompts(path, prompt_column="ask", target_column="start", label_column="bad")
    assert (one.text, one.target, one.harmful) == ("One", "Yes", True)
    assert (two.text, two.target, two.harmful) == ("Two", "Of course", False)


def test_jsonl_takes_objects_and_bare_texts_and_skips_blank_lines(write: Write):
    path = write(
        "set.jsonl", '{"id": "x", "question": "One?"}\n\n{"id": "y", "question": "Two?"}\n'
    )
    assert [(prompt.id, prompt.text) for prompt in load_prompts(path)] == [
        ("x", "One?"),
        ("y", "Two?"),
    ]
    assert texts(load_prompts(write("bare.jsonl", '"One"\n"Two"\n'))) == ["One", "Two"]


def test_jsonl_is_not_split_at_line_separators_inside_a_text(write: Write):
    path = write("set.jsonl", '{"prompt": "One\u2028still one"}\n')
    assert texts(load_prompts(path)) == ["One\u2028still one"]


def test_json_is_a_list_of_objects_or_texts(write: Write):
    assert texts(load_prompts(write("a.json", '[{"instruction": "One"}]'))) == ["One"]
    assert texts(load_prompts(write("b.json", '["One", "Two"]'))) == ["One", "Two"]


def test_txt_holds_one_prompt_a_line(write: Write):
    assert texts(load_prompts(write("set.txt", "One, two\n\n  Three \n"))) == ["One, two", "Three"]


def test_ids_that_are_not_unique_are_replaced_by_row_numbers(write: Write):
    path = write("set.csv", "id,prompt\n7,One\n7,Two\n")
    assert [prompt.id for prompt in load_prompts(path)] == ["set-0001", "set-0002"]


def test_a_files_split_column_selects_rows(write: Write):
    path = write("set.csv", "prompt,split\nOne,train\nTwo,test\n")
    assert texts(load_prompts(path, split="test")) == ["Two"]
    assert texts(load_prompts(path)) == ["One", "Two"]
    assert "no split 'dev'; choose one of train, test" in complaint(path, split="dev")


@pytest.mark.parametrize(
    ("harmful", "harmless"),
    [
        ("unsafe", "safe"),
        ("harmful", "harmless"),
        ("1", "0"),
        ("True", "False"),
        ("UNSAFE", "Safe"),
    ],
)
def test_labels_are_read_in_the_words_people_use(write: Write, harmful: str, harmless: str):
    path = write("set.csv", f"prompt,label\nOne,{harmful}\nTwo,{harmless}\nThree,\n")
    assert [prompt.harmful for prompt in load_prompts(path)] == [True, False, None]


def test_json_labels_may_be_booleans_or_numbers(write: Write):
    rows = [{"prompt": "x", "harmful": value} for value in (True, False, 1, 0)]
    path = write("set.json", json.dumps(rows))
    assert [prompt.harmful for prompt in load_prompts(path)] == [True, False, True, False]


def test_a_label_for_all_rows_wins_over_a_label_column(write: Write):
    path = write("set.csv", "prompt,label\nOne,entailment\nTwo,neutral\n")
    assert [prompt.harmful for prompt in load_prompts(path, harmful=False)] == [False, False]


# The limit


def test_a_limit_draws_evenly_over_the_file_and_keeps_its_order(write: Write):
    path = write("set.txt", "".join(f"{number}\n" for number in range(100)))
    drawn = [int(text) for text in texts(load_prompts(path, limit=10, seed=3))]
    assert [number // 10 for number in drawn] == list(range(10))


def test_a_limit_draws_the_same_for_the_same_seed_and_else_others(write: Write):
    path = write("set.txt", "".join(f"{number}\n" for number in range(100)))
    first, again = (texts(load_prompts(path, limit=10, seed=3)) for _ in range(2))
    assert first == again
    assert first != texts(load_prompts(path, limit=10, seed=4))


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 50])
def test_a_limit_gives_that_many_different_prompts_where_there_are_so_many(
    write: Write, limit: int
):
    path = write("set.txt", "".join(f"{number}\n" for number in range(7)))
    drawn = texts(load_prompts(path, limit=limit))
    assert len(drawn) == len(set(drawn)) == min(limit, 7)


def test_a_limit_on_a_shipped_set_covers_every_category():
    categories = {prompt.category for prompt in load_prompts("harmful:test", limit=24)}
    assert len(categories) == 12


def test_a_limit_below_one_is_refused():
    assert "the limit is 0" in complaint("harmful", limit=0)


# What users get wrong


def test_a_missing_file_is_named_with_the_folder_it_was_looked_for_from():
    message = complaint("nowhere/set.csv")
    assert message.startswith("nowhere/set.csv: there is no such file")
    assert str(Path.cwd()) in message


@pytest.mark.parametrize("name", ["set.csv", "set.jsonl", "set.json", "set.txt"])
def test_a_file_without_prompts_is_refused(write: Write, name: str):
    assert "holds no prompts" in complaint(write(name, "\n"))


def test_a_header_alone_is_a_file_without_prompts(write: Write):
    assert "holds no prompts" in complaint(write("set.csv", "prompt,target\n"))


@pytest.mark.parametrize("option", ["prompt_column", "target_column", "label_column"])
def test_a_column_that_is_not_there_is_answered_with_those_that_are(write: Write, option: str):
    message = complaint(write("set.csv", "prompt,mood\nOne,1\n"), **{option: "moo"})
    assert "no column 'moo'; choose one of prompt, mood" in message


def test_columns_of_unknown_names_ask_for_the_right_one(write: Write):
    message = complaint(write("set.csv", "a,b\nOne,1\n"))
    assert "choose one of a, b with prompt_column" in message


def test_a_broken_jsonl_line_is_named_by_its_number(write: Write):
    path = write("set.jsonl", '{"prompt": "One"}\n\n{"prompt": \n')
    assert complaint(path).startswith(f"{path}, line 3: is not valid JSON")


def test_a_broken_json_file_names_the_line(write: Write):
    path = write("set.json", '[{"prompt": "One"},\n{"prompt": }]')
    assert complaint(path).startswith(f"{path}, line 2: is not valid JSON")


def test_json_lines_under_the_name_of_json_are_told_the_right_name(write: Write):
    message = complaint(write("set.json", '{"prompt": "One"}\n{"prompt": "Two"}\n'))
    assert "name the file .jsonl" in message


def test_json_that_is_no_list_and_rows_that_are_no_objects_are_refused(write: Write):
    assert "no list at its top level" in complaint(write("a.json", '{"prompt": "One"}'))
    assert "item 2: is neither an object nor a text" in complaint(write("b.json", '["One", 2]'))


def test_an_unquoted_comma_in_a_csv_is_named_by_its_line(write: Write):
    message = complaint(write("set.csv", "prompt,target\nOne,Sure\nTwo, three,Sure\n"))
    assert "line 3: more cells than the header" in message


def test_an_open_quote_in_a_csv_is_refused(write: Write):
    assert "is not valid CSV" in complaint(write("set.csv", 'prompt,target\n"One,Sure\n'))


def test_an_empty_prompt_is_named_by_its_line(write: Write):
    message = complaint(write("set.csv", "prompt,target\nOne,Sure\n ,Sure\n"))
    assert "line 3: column 'prompt' holds no text" in message


def test_a_label_of_another_kind_is_named_with_the_words_that_are_known(write: Write):
    message = complaint(write("set.csv", "prompt,label\nOne,neutral\n"))
    assert "line 2: 'neutral' in column 'label' is no label" in message
    assert "unsafe" in message
    assert "label_column" in message


def test_a_label_column_and_a_label_for_all_do_not_go_together(write: Write):
    path = write("set.csv", "prompt,label\nOne,safe\n")
    assert "give only one" in complaint(path, label_column="label", harmful=True)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\x00\x00", b"prompt\ncaf\xe9\n"])
def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "set.csv"
    path.write_bytes(data)
    message = complaint(str(path))
    assert "is not UTF-8 text" in message
    assert "save it as UTF-8" in message


def test_utf16_is_not_taken_for_text(tmp_path: Path):
    path = tmp_path / "set.txt"
    path.write_text("One\nTwo\n", encoding="utf-16-le")
    assert "UTF-16" in complaint(str(path))


def test_a_file_of_another_kind_is_answered_with_the_kinds_there_are(write: Write):
    message = complaint(write("set.yaml", "- One\n"))
    assert "'.yaml' cannot be read" in message
    assert ".jsonl" in message


def test_a_folder_is_refused_with_the_way_to_load_it(tmp_path: Path):
    assert f"hub:{tmp_path}" in complaint(str(tmp_path))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("harmfull", "harmful"),
        ("AdvBench", "advbench"),
        ("jailbreak_bench", "jailbreakbench"),
        ("harmles:test", "harmless"),
        ("someone/some-set", "hub:someone/some-set"),
    ],
)
def test_an_unknown_name_is_answered_with_a_guess_at_what_was_meant(typed: str, meant: str):
    assert f"did you mean '{meant}'?" in complaint(typed)


def test_a_name_like_no_other_is_answered_with_all_names():
    message = complaint("qqqqq")
    assert "did you mean" not in message
    assert all(name in message for name in ("harmful", "xstest", ".csv", "hub:OWNER/NAME"))


# The Hub, by way of folders: tests stay offline


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path, own_cache: None) -> str:
    """A data set as it lies on the Hub: a file a split."""
    path = tmp_path / "hub-set"
    path.mkdir()
    for split in ("train", "test"):
        rows = [{"query": f"{split} {n}", "label": ("safe", "unsafe")[n % 2]} for n in range(3)]
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"hub:{path}"


def test_a_data_set_in_a_folder_loads_like_one_on_the_hub(folder: str):
    prompts = load_prompts(folder, split="test")
    assert texts(prompts) == ["test 0", "test 1", "test 2"]
    assert [prompt.harmful for prompt in prompts] == [False, True, False]


def test_a_data_set_with_several_splits_asks_for_one(folder: str):
    assert "choose one of train, test with split" in complaint(folder)
    assert "no split 'dev'; choose one of train, test" in complaint(folder, split="dev")


def test_a_wrong_column_of_a_data_set_is_answered_with_those_there_are(folder: str):
    message = complaint(folder, split="test", prompt_column="ask")
    assert "no column 'ask'; choose one of query, label" in message


def test_class_indices_of_a_saved_data_set_are_read_by_their_names(tmp_path: Path):
    # Index 0 is harmful here, so that reading indices as labels would turn them round.
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["harmful", "harmless"]),
        }
    )
    rows = {"prompt": ["One", "Two", "Three"], "label": [0, 1, -1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    prompts = load_prompts(f"hub:{tmp_path / 'saved'}")
    assert [prompt.harmful for prompt in prompts] == [True, False, None]


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_do(
    own_cache: None, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        message = complaint("advbench")
    assert message.startswith("advbench: could not load walledai/AdvBench (")
    assert "hf auth login" in message
    assert "https://huggingface.co/datasets/walledai/AdvBench (MIT)" in caplog.text
    assert "could not load nobody/nothing" in complaint("hub:nobody/nothing:some-config")


@pytest.fixture
def local_copies(tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which `datasets` finds OWNER/NAME on disk and does not ask the Hub."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(folder: Path, file: str, rows: list[dict[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_xstest_is_read_with_its_labels_and_its_safe_prompts_are_borderline(local_copies: Path):
    put(
        local_copies / "walledai" / "XSTest",
        "test.jsonl",
        [
            {"prompt": "One", "type": "homonyms", "label": "safe"},
            {"prompt": "Two", "type": "contrast_homonyms", "label": "unsafe"},
        ],
    )
    one, two = load_prompts("xstest")
    assert (one.harmful, one.borderline, one.category) == (False, True, "homonyms")
    assert (two.harmful, two.borderline, two.category) == (True, False, "contrast_homonyms")
    assert (one.id, one.source) == ("xstest-0001", "xstest")


def test_alpaca_leaves_out_instructions_that_need_their_input(local_copies: Path):
    put(
        local_copies / "tatsu-lab" / "alpaca",
        "train.jsonl",
        [
            {"instruction": "Name a river", "input": "", "output": "Rhine"},
            {"instruction": "Sort these", "input": "b, a", "output": "a, b"},
        ],
    )
    (prompt,) = load_prompts("alpaca")
    assert (prompt.text, prompt.harmful, prompt.borderline) == ("Name a river", False, False)


def test_jailbreakbench_has_a_harmful_split_by_default_and_a_benign_one(local_copies: Path):
    folder = local_copies / "JailbreakBench" / "JBB-Behaviors"
    row = {"Goal": "One", "Target": "Sure", "Category": "Fraud"}
    put(folder, "harmful.jsonl", [row])
    put(folder, "benign.jsonl", [row | {"Goal": "Two"}])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: behaviors\n  data_files:\n"
        "  - split: harmful\n    path: harmful.jsonl\n"
        "  - split: benign\n    path: benign.jsonl\n---\n"
    )
    (harmful,) = load_prompts("jailbreakbench")
    assert (harmful.text, harmful.target, harmful.category) == ("One", "Sure", "Fraud")
    assert (harmful.harmful, harmful.borderline) == (True, False)
    (benign,) = load_prompts("jailbreakbench:benign")
    assert (benign.text, benign.harmful, benign.borderline) == ("Two", False, True)


def test_or_benchs_parts_are_configurations_of_one_data_set(local_copies: Path):
    folder = local_copies / "bench-llm" / "or-bench"
    put(folder, "hard.jsonl", [{"prompt": "One", "category": "privacy"}])
    put(folder, "toxic.jsonl", [{"prompt": "Two", "category": "privacy"}])
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: or-bench-hard-1k\n  data_files:\n  - split: train\n    path: hard.jsonl\n"
        "- config_name: or-bench-toxic\n  data_files:\n  - split: train\n    path: toxic.jsonl\n---\n"
    )
    (hard,) = load_prompts("or-bench-hard-1k")
    assert (hard.text, hard.category, hard.harmful, hard.borderline) == (
        "One",
        "privacy",
        False,
        True,
    )
    (toxic,) = load_prompts("or-bench-toxic")
    assert (toxic.text, toxic.harmful, toxic.borderline) == ("Two", True, False)


def test_xstests_own_file_gives_both_halves_with_their_types(write: Write):
    path = write("x.csv", "id,type,prompt,label\nv-1,homonyms,One,safe\nv-2,contrast,Two,unsafe\n")
    safe, unsafe = load_prompts(path)
    assert (safe.id, safe.category, safe.harmful) == ("v-1", "homonyms", False)
    assert (unsafe.category, unsafe.harmful) == ("contrast", True)


def test_public_sets_name_their_licence_and_know_their_splits():
    assert set(PUBLIC) == {
        "advbench",
        "harmbench",
        "jailbreakbench",
        "strongreject",
        "xstest",
        "or-bench-80k",
        "or-bench-hard-1k",
        "or-bench-toxic",
        "alpaca",
    }
    assert all(known.licence and known.splits for known in PUBLIC.values())
    assert "choose one of harmful, benign" in complaint("jailbreakbench:train")


# Classes


def test_classes_are_parted_in_order(write: Write):
    path = write("set.csv", "prompt,label\nOne,1\nTwo,0\nThree,1\n")
    harmful, harmless = split_classes(load_prompts(path), path)
    assert (texts(harmful), texts(harmless)) == (["One", "Three"], ["Two"])


@pytest.mark.parametrize(("label", "missing"), [(True, "harmless"), (False, "harmful")])
def test_a_file_of_one_class_is_refused_by_the_name_of_the_other(
    write: Write, label: bool, missing: str
):
    prompts = load_prompts(write("set.txt", "One\nTwo\n"), harmful=label)
    with pytest.raises(Es2Error, match=rf"^set\.txt: no {missing} prompts among 2;"):
        split_classes(prompts, "set.txt")


def test_prompts_without_labels_are_not_taken_for_harmless(write: Write):
    prompts = load_prompts(write("set.csv", "prompt,label\nOne,1\nTwo,0\nThree,\n"))
    with pytest.raises(Es2Error, match=r"1 of 3 prompts \(first set-0003\) do not say"):
        split_classes(prompts, "set.csv")
