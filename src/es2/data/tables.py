"""Reads rows out of files and data sets, before anything is known of what their columns mean."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from es2.errors import Es2Error

Rows = list[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Table:
    """Rows of a source.

    Attributes:
        where: the source, for messages.
        rows: each with its place in the source ("line 3"), for messages.
    """

    where: str
    rows: Rows

    @property
    def columns(self) -> list[str]:
        """The names of the columns that any row has, in order."""
        return list(dict.fromkeys(name for _, row in self.rows for name in row))


def rows_of_split(table: Table, split: str | None) -> Table:
    """The rows whose `split` column says so; all rows where no split is asked for."""
    if split is None:
        return table
    if "split" not in table.columns:
        raise Es2Error(
            f"{table.where}: split '{split}' is asked for, but there is no column 'split' among "
            f"{', '.join(table.columns)}; leave split out or add the column"
        )
    rows = [(place, row) for place, row in table.rows if row.get("split") == split]
    if not rows:
        found = dict.fromkeys(str(row.get("split")) for _, row in table.rows)
        raise Es2Error(f"{table.where}: no split '{split}'; choose one of {', '.join(found)}")
    return Table(table.where, rows)


def read_file(path: Path) -> Table:
    """The rows of a .csv, .jsonl, .json (a list) or .txt (a prompt a line) file in UTF-8.

    Raises:
        Es2Error: the file is missing, empty, not text, not of these kinds, or broken.
    """
    if path.is_dir():
        raise Es2Error(
            f"{path}: is a folder; name a file in it, or write hub:{path} for a data set in it"
        )
    if not path.exists():
        raise Es2Error(f"{path}: there is no such file (seen from {Path.cwd()}); check the path")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise Es2Error(
            f"{path}: files of the kind '{path.suffix}' cannot be read; "
            f"use one of {', '.join(READERS)}"
        )
    rows = reader(_text(path), str(path))
    if not rows:
        raise Es2Error(f"{path}: holds no prompts; put at least one in it")
    return Table(str(path), rows)


def read_hub(where: str, address: str, config: str | None, split: str | None) -> Table:
    """The rows of one split of a data set, on the Hugging Face Hub or in a folder.

    Class indices are turned into the names of the classes.

    Args:
        where: the source, for messages.
        address: OWNER/NAME on the Hub, or a folder: of data files, or made by `save_to_disk`.
        config: the configuration, where there are several.
        split: the split; None where there is only one.

    Raises:
        Es2Error: the data set cannot be loaded, is empty, or the split is not clear.
    """
    import datasets  # takes seconds, and most sources do without

    folder = Path(address)
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    try:
        data = datasets.load_from_disk(address) if saved else datasets.load_dataset(address, config)
    # The kinds of error vary with the network library beneath; all mean that the source failed.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Es2Error(
            f"{where}: could not load {address} ({reason}); check the name and the network, log in "
            "with `hf auth login` if it is gated, or give a file"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        data = data[_choose_split(where, list(data), split)]
    elif split is not None and str(data.split) != split:
        raise Es2Error(f"{where}: is saved as one table without split '{split}'; leave split out")
    classes = {
        name: feature.names
        for name, feature in data.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    rows: Rows = [
        (f"row {number}", {name: _class_name(classes.get(name), row[name]) for name in row})
        for number, row in enumerate(data.to_list(), start=1)
    ]
    if not rows:
        raise Es2Error(f"{where}: holds no prompts; choose another split or data set")
    return Table(where, rows)


def jsonl_rows(text: str, where: str) -> Rows:
    """An object, or a bare text, a line."""
    rows: Rows = []
    for number, line in _filled_lines(text):
        place = f"line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise Es2Error(
                f"{where}, {place}: is not valid JSON ({error.msg}); write one object a line"
            ) from error
        rows.append((place, _json_row(value, where, place)))
    return rows


def _json_rows(text: str, where: str) -> Rows:
    if not text.strip():
        return []
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise Es2Error(
            f"{where}, line {error.lineno}: is not valid JSON ({error.msg}); mend it there, or "
            "name the file .jsonl where it holds one object a line"
        ) from error
    if not isinstance(values, list):
        raise Es2Error(f"{where}: holds no list at its top level; write a list of objects or texts")
    places = [f"item {number}" for number in range(1, len(values) + 1)]
    return [
        (place, _json_row(value, where, place)) for place, value in zip(places, values, strict=True)
    ]


def _json_row(value: object, where: str, place: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"prompt": value}
    if isinstance(value, dict):
        return value
    raise Es2Error(f'{where}, {place}: is neither an object nor a text; write {{"prompt": "..."}}')


def _csv_rows(text: str, where: str) -> Rows:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: Rows = []
    try:
        for row in reader:
            if None in row:
                raise Es2Error(
                    f"{where}, line {reader.line_num}: more cells than the header has columns; put "
                    "prompts that hold a comma in double quotes"
                )
            rows.append((f"line {reader.line_num}", row))
    except csv.Error as error:
        raise Es2Error(
            f"{where}, line {reader.line_num}: is not valid CSV ({error}); mend the quotes there"
        ) from error
    return rows


def _txt_rows(text: str, where: str) -> Rows:
    return [(f"line {number}", {"prompt": line}) for number, line in _filled_lines(text)]


READERS: Mapping[str, Callable[[str, str], Rows]] = MappingProxyType(
    {".csv": _csv_rows, ".jsonl": jsonl_rows, ".json": _json_rows, ".txt": _txt_rows}
)


def _filled_lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines: JSON strings may hold the rarer line separators that it splits at.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Es2Error(f"{path}: cannot be read ({error.strerror}); check its rights") from error
    if b"\0" in data:
        raise Es2Error(f"{path}: is not UTF-8 text but binary or UTF-16; save it as UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Es2Error(
            f"{path}: is not UTF-8 text (byte {error.start + 1}); save it as UTF-8 text"
        ) from error


def _choose_split(where: str, splits: Sequence[str], split: str | None) -> str:
    if split is not None and split in splits:
        return split
    if split is not None:
        raise Es2Error(f"{where}: no split '{split}'; choose one of {', '.join(splits)}")
    if len(splits) > 1:
        raise Es2Error(f"{where}: has several splits; choose one of {', '.join(splits)} with split")
    return splits[0]


def _class_name(names: Sequence[str] | None, value: object) -> object:
    """Indices of ClassLabel columns by name; -1 and None stand for no label."""
    if names is None:
        return value
    return names[value] if isinstance(value, int) and value >= 0 else None
