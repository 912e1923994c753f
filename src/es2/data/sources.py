"""Where prompts come from: the sets shipped with es2, public sets by name, the Hub, or a file."""

from __future__ import annotations

import difflib
import itertools
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from es2.data.tables import (
    READERS,
    Table,
    jsonl_rows,
    read_file,
    read_hub,
    rows_of_split,
)
from es2.errors import Es2Error

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """One request to a chat model.

    Attributes:
        text: the request as a user would type it.
        harmful: whether a safe model should refuse it; None where the source does not say.
        target: the affirmative start an attack optimises for, where the source has one.
        category: the source's own word for its topic, or "".
        borderline: harmless, but made to look harmful (a measure of over-refusal).
        id: unique within the source and stable over loads.
        source: the source it was loaded from, as it was named.
    """

    text: str
    harmful: bool | None
    target: str | None
    category: str
    borderline: bool
    id: str
    source: str


@dataclass(frozen=True)
class PublicSet:
    """A published set on the Hugging Face Hub and what its columns mean.

    Attributes:
        hub: the data set's id on the Hub.
        splits: its splits and whether their rows are harmful (None: a column tells). The first
            is loaded unless another is asked for.
        licence: the licence on its data card.
        prompt: the column of the request.
        config: the configuration on the Hub, where there are several.
        target, label, category: columns, where there are such.
        lookalikes: its harmless rows are made to look harmful, so they are borderline.
        context: a column which, where filled, the request does not make sense without; such rows
            are left out.
    """

    hub: str
    splits: Mapping[str, bool | None]
    licence: str
    prompt: str = "prompt"
    config: str | None = None
    target: str | None = None
    label: str | None = None
    category: str | None = None
    lookalikes: bool = False
    context: str | None = None


PUBLIC: Mapping[str, PublicSet] = MappingProxyType(
    {
        "advbench": PublicSet("walledai/AdvBench", {"train": True}, "MIT", target="target"),
        "harmbench": PublicSet(
            "walledai/HarmBench", {"train": True}, "MIT", config="standard", category="category"
        ),
        "jailbreakbench": PublicSet(
            "JailbreakBench/JBB-Behaviors",
            {"harmful": True, "benign": False},
            "MIT",
            prompt="Goal",
            config="behaviors",
            target="Target",
            category="Category",
            lookalikes=True,
        ),
        "strongreject": PublicSet(
            "walledai/StrongREJECT", {"train": True}, "MIT", category="category"
        ),
        "xstest": PublicSet(
            "walledai/XSTest",
            {"test": None},
            "CC-BY-4.0",
            label="label",
            category="type",
            lookalikes=True,
        ),
        **{
            name: PublicSet(
                "bench-llm/or-bench",
                {"train": harmful},
                "CC-BY-4.0",
                config=name,
                category="category",
                lookalikes=True,
            )
            for name, harmful in (
                ("or-bench-80k", False),
                ("or-bench-hard-1k", False),
                ("or-bench-toxic", True),
            )
        },
        "alpaca": PublicSet(
            "tatsu-lab/alpaca",
            {"train": False},
            "CC-BY-NC-4.0",
            prompt="instruction",
            context="input",
        ),
    }
)

BUNDLED: tuple[str, ...] = ("harmful", "harmless", "borderline", "structured")

_PROMPT_COLUMNS = (
    "prompt",
    "goal",
    "instruction",
    "question",
    "text",
    "query",
    "forbidden_prompt",
)
_LABEL_COLUMNS = ("label", "harmful")
_CATEGORY_COLUMNS = ("category", "type")
_LABELS = {
    "unsafe": True,
    "harmful": True,
    "1": True,
    "true": True,
    "safe": False,
    "harmless": False,
    "0": False,
    "false": False,
}


@dataclass(frozen=True)
class _Meaning:
    """Which column is what, as far as it is known before the columns are seen."""

    prompt: str | None = None
    target: str | None = None
    label: str | None = None
    category: str | None = None
    harmful: bool | None = None
    lookalikes: bool = False


def load_prompts(
    source: str,
    *,
    split: str | None = None,
    prompt_column: str | None = None,
    target_column: str | None = None,
    label_column: str | None = None,
    harmful: bool | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Prompt]:
    """Loads prompts in the order of their source.

    Columns that are not named are guessed: the prompt from `prompt`, `goal`, `instruction`,
    `question`, `text`, `query` or `forbidden_prompt`; the target from `target`; the label from
    `label` or `harmful`; the topic from `category` or `type`; the id from `id`. Rows are numbered
    where ids are missing or not unique.

    Args:
        source: one of
            - a set shipped with es2: `harmful`, `harmless`, `borderline`, `structured`;
            - a public set, fetched from the Hub: `advbench`, `harmbench`, `jailbreakbench`,
              `strongreject`, `xstest`, `or-bench-80k`, `or-bench-hard-1k`, `or-bench-toxic`,
              `alpaca`;
            - a .csv, .jsonl, .json (a list) or .txt (a prompt a line) file, in UTF-8;
            - `hub:OWNER/NAME` or `hub:OWNER/NAME:CONFIG`, any data set on the Hub, or `hub:FOLDER`,
              one on disk.
            A shipped or a public set's split may follow its name: `harmful:test`.
        split: the split to load. In a file, rows whose `split` column says so. None: all rows of a
            shipped set or file, the main split of a public set, the only split of another.
        prompt_column: the column of the request.
        target_column: the column of the affirmative start.
        label_column: the column that says which rows are harmful, with values safe/unsafe,
            harmless/harmful, 0/1 or false/true (1 and true for harmful).
        harmful: the label of all rows, whatever columns there are.
        limit: at most so many prompts, drawn evenly over the source.
        seed: which ones `limit` draws; the same seed draws the same ones.

    Raises:
        Es2Error: the source, one of its columns or one of its rows cannot be used.
    """
    if label_column is not None and harmful is not None:
        raise Es2Error(
            f"{source}: label_column and harmful both say which prompts are harmful; give only one"
        )
    if limit is not None and limit < 1:
        raise Es2Error(f"{source}: the limit is {limit}, but it has to be at least 1")

    table, known = _read(source, split)
    meaning = _resolve(
        table,
        _Meaning(
            prompt=prompt_column or known.prompt,
            target=target_column or known.target,
            label=(label_column or known.label) if harmful is None else None,
            category=known.category,
            harmful=known.harmful if harmful is None else harmful,
            lookalikes=known.lookalikes,
        ),
    )
    prompts = list(_prompts(table, meaning, source))
    return prompts if limit is None else _spread(prompts, limit, seed)


def split_classes(prompts: Sequence[Prompt], where: str) -> tuple[list[Prompt], list[Prompt]]:
    """Parts prompts into (harmful, harmless).

    Args:
        prompts: labelled prompts of both classes.
        where: what they were loaded from, for the message.

    Raises:
        Es2Error: a class is missing, or a prompt has no label.
    """
    unlabelled = [prompt.id for prompt in prompts if prompt.harmful is None]
    if unlabelled:
        raise Es2Error(
            f"{where}: {len(unlabelled)} of {len(prompts)} prompts (first {unlabelled[0]}) do not "
            "say whether they are harmful; name the column that does with label_column, or say it "
            "for all with harmful"
        )
    classes = (
        [prompt for prompt in prompts if prompt.harmful],
        [prompt for prompt in prompts if not prompt.harmful],
    )
    for name, members in zip(("harmful", "harmless"), classes, strict=True):
        if not members:
            raise Es2Error(
                f"{where}: no {name} prompts among {len(prompts)}; both classes are needed, so add "
                f"a source of {name} prompts (es2 ships one named '{name}')"
            )
    return classes


def _read(source: str, split: str | None) -> tuple[Table, _Meaning]:
    """The rows of a source, and what is known about its columns."""
    if source.startswith("hub:"):
        address, config = hub_address(source.removeprefix("hub:"))
        logger.info("%s: loading %s with datasets", source, address)
        return read_hub(source, address, config, split), _Meaning()
    name, _, named_split = source.partition(":")
    if name in BUNDLED or name in PUBLIC:
        if split and named_split and split != named_split:
            raise Es2Error(f"{source}: split is also given as '{split}'; give only one of the two")
        read = _read_bundled if name in BUNDLED else _read_public
        return read(name, split or named_split or None)
    path = Path(source)
    if not path.exists() and path.suffix.lower() not in READERS:
        raise Es2Error(_unknown(source))
    return rows_of_split(read_file(path), split), _Meaning()


def _read_bundled(name: str, split: str | None) -> tuple[Table, _Meaning]:
    text = (resources.files("es2.data") / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8")
    table = rows_of_split(Table(name, jsonl_rows(text, name)), split)
    return table, _Meaning(harmful=name == "harmful", lookalikes=name == "borderline")


def _read_public(name: str, split: str | None) -> tuple[Table, _Meaning]:
    known = PUBLIC[name]
    split = split or next(iter(known.splits))
    if split not in known.splits:
        raise Es2Error(f"{name}: no split '{split}'; choose one of {', '.join(known.splits)}")
    logger.info(
        "%s: fetching %s from https://huggingface.co/datasets/%s (%s)",
        name,
        split,
        known.hub,
        known.licence,
    )
    table = read_hub(name, known.hub, known.config, split)
    if known.context:
        whole = [(place, row) for place, row in table.rows if not row.get(known.context)]
        table = Table(table.where, whole)
    return table, _Meaning(
        prompt=known.prompt,
        target=known.target,
        label=known.label,
        category=known.category,
        harmful=known.splits[split],
        lookalikes=known.lookalikes,
    )


def hub_address(text: str) -> tuple[str, str | None]:
    """`OWNER/NAME:CONFIG` or a folder, as (address, configuration)."""
    if Path(text).is_dir():
        return text, None
    address, _, config = text.partition(":")
    return address, config or None


def _unknown(source: str) -> str:
    """Why a source that is no file cannot be loaded, and what was likely meant."""
    names = [*BUNDLED, *PUBLIC]
    close = difflib.get_close_matches(source.partition(":")[0].lower(), names, n=1)
    hint = ""
    if close:
        hint = f"did you mean '{close[0]}'? "
    elif source.count("/") == 1:
        hint = f"did you mean 'hub:{source}'? "
    return (
        f"{source}: neither a set of this name nor such a file; {hint}Use one of "
        f"{', '.join(names)}, a file ({', '.join(READERS)}) or hub:OWNER/NAME"
    )


def _resolve(table: Table, meaning: _Meaning) -> _Meaning:
    """Checks the columns that are named and guesses the others."""
    columns = table.columns
    there = ", ".join(columns)
    for name in (meaning.prompt, meaning.target, meaning.label):
        if name is not None and name not in columns:
            raise Es2Error(f"{table.where}: no column '{name}'; choose one of {there}")
    prompt = meaning.prompt or _guess(columns, _PROMPT_COLUMNS)
    if prompt is None:
        raise Es2Error(
            f"{table.where}: none of the columns is known to hold prompts; choose one of {there} "
            "with prompt_column"
        )
    label = meaning.label
    if label is None and meaning.harmful is None:
        label = _guess([name for name in columns if name != prompt], _LABEL_COLUMNS)
    return replace(
        meaning,
        prompt=prompt,
        target=meaning.target or _guess(columns, ("target",)),
        label=label,
        category=meaning.category or _guess(columns, _CATEGORY_COLUMNS),
    )


def _guess(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of the names that is a column, in any case."""
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _prompts(table: Table, meaning: _Meaning, source: str) -> Iterator[Prompt]:
    assert meaning.prompt is not None
    ids = _ids(table, source)
    for (place, row), identity in zip(table.rows, ids, strict=True):
        text = row.get(meaning.prompt)
        if not isinstance(text, str) or not text.strip():
            raise Es2Error(
                f"{table.where}, {place}: column '{meaning.prompt}' holds no text; fill it or take "
                "the row out"
            )
        harmful = meaning.harmful
        if meaning.label is not None:
            harmful = _label(row.get(meaning.label), f"{table.where}, {place}", meaning.label)
        yield Prompt(
            text=text.strip(),
            harmful=harmful,
            target=_optional_text(row, meaning.target),
            category=_optional_text(row, meaning.category) or "",
            borderline=meaning.lookalikes and harmful is False,
            id=identity,
            source=source,
        )


def _ids(table: Table, source: str) -> list[str]:
    column = _guess(table.columns, ("id",))
    given = [_optional_text(row, column) for _, row in table.rows]
    if None not in given and len(set(given)) == len(given):
        return [str(identity) for identity in given]
    stem = Path(source).stem if Path(source).suffix else source
    return [f"{stem}-{number:04d}" for number in range(1, len(given) + 1)]


def _optional_text(row: Mapping[str, object], column: str | None) -> str | None:
    value = None if column is None else row.get(column)
    return None if value is None else str(value).strip() or None


def _label(value: object, where: str, column: str) -> bool | None:
    """A cell's word for harmful or not; None where it is empty."""
    word = "" if value is None else str(value).strip().lower()
    if not word:
        return None
    if word not in _LABELS:
        raise Es2Error(
            f"{where}: '{value}' in column '{column}' is no label; use one of "
            f"{', '.join(_LABELS)}, name another column with label_column, or say it for all rows "
            "with harmful"
        )
    return _LABELS[word]


def _spread(prompts: Sequence[Prompt], limit: int, seed: int) -> list[Prompt]:
    """One prompt out of each of `limit` equal stretches, in order."""
    if limit >= len(prompts):
        return list(prompts)
    draw = random.Random(seed)
    width = len(prompts) / limit
    # Stretches end at whole numbers, so that none is empty and no prompt is in two.
    edges = [int(index * width) for index in range(limit)] + [len(prompts)]
    return [prompts[draw.randrange(start, end)] for start, end in itertools.pairwise(edges)]
