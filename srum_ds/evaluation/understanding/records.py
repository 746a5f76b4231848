"""Reading lists of records: JSON, or JSON lines. The importers of questions call it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import parse_json, require_encodable
from srum_ds.evaluation.understanding.items import from_base64

# No file system takes longer paths, and no picture is smaller in base64.
_LONGEST_PATH = 500


def read_text(path: Path) -> str:
    """A file's text. UserError where it is missing or not UTF-8."""
    try:
        return file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of a JSON list or of JSON lines. UserError naming the place of what is no object."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            records = parse_json(text)
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
        places = [(f"{path}: record {number}", record) for number, record in enumerate(records, 1)]
    else:
        places = list(_lines(text, path))
    for where, record in places:
        if not isinstance(record, dict):
            raise UserError(f"{where}: is {type(record).__name__}, expected an object")
        for key, value in record.items():
            require_encodable(f"{key} {value}", f"{where}: {ascii(key)}")
        yield where, record


def picture_of(value: Any, folder: Path, where: str) -> Path | bytes:
    """A picture out of a record: a path from the file's folder on, base64, or {"bytes": base64} or {"path": path}.

    UserError where it is none, or the file is not there.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: expected a picture as a path or in base64")
    if len(value) <= _LONGEST_PATH and not value.startswith("data:"):
        path = folder / value
        if _is_file(path):
            return path
        if "." in value:
            raise UserError(f"{where}: no such picture: {path}")
    return from_base64(value, where)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # A short picture in base64 is too long a name.
        return False


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            yield where, parse_json(line)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON ({error})") from error
