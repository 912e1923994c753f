"""The one place that writes a run folder: what is on disk is whole, whenever the run was killed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from es2.attacks.base import Attempt
from es2.errors import Es2Error
from es2.judges.base import Judgement
from es2.results.schema import Results

ATTEMPTS = "attempts.jsonl"
RESULTS = "results.json"

Kind = Literal["attack", "harmless", "borderline", "structured", "safe", "unsafe"]
"""What a prompt is: under attack; to be answered, though it may look harmful or span several lines; or
of the half of an over-refusal set that deserves an answer, or the half that does not."""

Model = TypeVar("Model", bound=BaseModel)


def attempt_record(
    defence: str, kind: Kind, attempt: Attempt, judgement: Judgement
) -> dict[str, Any]:
    """One line of `attempts.jsonl`.

    Args:
        defence: the model that was tried, `base` or a defence's name.
        kind: what the prompt is.
        attempt: the try.
        judgement: what the judge made of it.
    """
    return {
        "defence": defence,
        "kind": kind,
        **asdict(attempt),
        "judgement": asdict(judgement),
    }


def append_attempts(run: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds records to the run's `attempts.jsonl`, see `append_records`."""
    append_records(run / ATTEMPTS, records)


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """The records of the run's `attempts.jsonl`, see `read_records`."""
    return read_records(run / ATTEMPTS)


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds records to a JSONL file, a line each; on return they are on the disk.

    A line that an earlier kill left unfinished is removed first. If not all fit, none is written.

    Raises:
        Es2Error: if the disk is full or the folder cannot be written.
    """
    lines = b"".join(_line(record) for record in records)
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            end = _finished(file)
            file.truncate(end)
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), end)
                raise


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file, in order; none if there is no such file yet.

    A last line that a kill left unfinished is dropped, and cut off the file.

    Raises:
        Es2Error: if a whole line is damaged or the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Es2Error(f"{path}: cannot be read ({error.strerror or error})") from error
    end = data.rfind(b"\n") + 1
    if end < len(data):
        # A folder that may only be read is as good to read.
        with contextlib.suppress(OSError):
            os.truncate(path, end)
    lines = data[:end].split(b"\n")[:-1]
    return [_parse(line, path, number) for number, line in enumerate(lines, 1)]


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all.

    Args:
        path: where to.
        value: plain data or a model such as `Results`; numbers that are not finite become null.

    Raises:
        Es2Error: if the disk is full or the folder cannot be written.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(_finite(plain), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        Es2Error: if the disk is full or the folder cannot be written.
    """
    _write(path, text.encode())


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSONL file whole or not at all, in place of what it held.

    Raises:
        Es2Error: if the disk is full or the folder cannot be written.
    """
    _write(path, b"".join(_line(record) for record in records))


def _write(path: Path, data: bytes) -> None:
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp's files are for their owner alone; a run folder is as open as the umask says.
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        Es2Error: if it is missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Es2Error(f"{path}: missing; run the stage that writes it first") from None
    except OSError as error:
        raise Es2Error(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise Es2Error(f"{path}: damaged ({error}); delete it and run again") from error


def read_results(run: Path) -> Results:
    """The run's `results.json`, checked.

    Raises:
        Es2Error: if it is missing, damaged or of another version.
    """
    return read_model(run / RESULTS, Results)


def read_model(path: Path, kind: type[Model]) -> Model:
    """A JSON file's contents as a model, checked.

    Raises:
        Es2Error: if it is missing, damaged or of another version.
    """
    data = read_json(path)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Es2Error(f"{path}: {where}: {first['msg']}; evaluate the run again") from error


def _line(record: Mapping[str, Any]) -> bytes:
    # Escaped to ASCII: a completion may hold half a character, which UTF-8 cannot.
    return json.dumps(_finite(dict(record)), allow_nan=False).encode() + b"\n"


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise Es2Error(f"{path}, line {number}: damaged; delete the line and resume the run")
    return record


def _finished(file: BinaryIO) -> int:
    """How many bytes of a file make up finished lines, read from its end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        if found := file.read(end - start).rfind(b"\n") + 1:
            return start + found
        end = start
    return 0


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns the disk's refusals into errors a user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Es2Error(
                f"{folder}: the disk is full; free space, then resume the run"
            ) from error
        raise Es2Error(f"{folder}: cannot be written ({error.strerror or error})") from error
