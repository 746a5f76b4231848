"""Reading the files of public prompt sets, so that what is wrong is named by file, line and item."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import parse_json, require_encodable


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. UserError when it is missing or not UTF-8."""
    try:
        return file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def found_in(source: Path, places: Sequence[str], project: str) -> Path:
    """A file itself; of a folder, the first of ``places`` in it that is there: its own file, or a checkout's.

    project: whose file it is, for the UserError that names every place that was looked at, or a source that is not
    there at all.
    """
    if not source.is_dir():
        if not source.exists():
            raise UserError(f"{source}: is not there; expected {places[0]} of {project}, or a checkout of that")
        return source
    for place in places:
        if (source / place).exists():
            return source / place
    looked = ", ".join(str(source / place) for place in places)
    raise UserError(f"{source}: no {Path(places[0]).name} of {project} there; looked for {looked}")


def read_objects(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """(where, object) of each item of a file that is one JSON list of objects; where: file and item, for messages.

    Raises UserError naming file and line for what is not JSON, and file and item for what is no object.
    """
    try:
        items = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from error
    if not isinstance(items, list) or not items:
        found = "an empty list" if isinstance(items, list) else type(items).__name__
        raise UserError(f"{path}: expected a list of records, found {found}")
    placed = [(f"{path}: item {number}", item) for number, item in enumerate(items, 1)]
    for where, item in placed:
        if not isinstance(item, dict):
            raise UserError(f"{where}: expected an object, found {type(item).__name__}")
    return placed


def text_of(item: Mapping[str, Any], key: str, where: str) -> str:
    """The text under a key, stripped. UserError where it is missing, empty or no text."""
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: expected text under {key!r}, found {value!r}")
    require_encodable(value, f"{where}: {key}")
    return value.strip()


def id_of(item: Mapping[str, Any], key: str, where: str) -> int:
    """The number under a key, from 0. UserError for anything else: true and "7" are no ids."""
    value = item.get(key)
    if type(value) is not int or value < 0:
        raise UserError(f"{where}: expected a number under {key!r}, found {value!r}")
    return value


def sample_name(member: str) -> tuple[str, str]:
    """(key, ending in lower case) of a tar's member as webdataset means them; no key for a hidden file.

    The key is what stands before the first dot of the last part of the path, with its folders: ``./run.v1/a.seg.png``
    is ``seg.png`` of ``run.v1/a``.
    """
    folder, _, name = member.removeprefix("./").rpartition("/")
    stem, _, ending = name.partition(".")
    if not stem:
        return "", ending.lower()
    return (f"{folder}/{stem}" if folder else stem), ending.lower()
