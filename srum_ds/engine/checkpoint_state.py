"""``state.json`` of a training checkpoint: what it says, how it is sealed, and when it is to be believed.

A state is believed where its seal, the SHA-256 of everything else in it, fits and each of its fields is what a save
writes. States of format 1, which had no seal, are checked by their fields alone. Only what was read and is wrong counts
as damage (``CorruptCheckpoint``); what could not be read, or was written by a newer version, is a ``UserError``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import refuse_special
from srum_ds.common.texts import parse_json

FORMAT = 2
STATE_FILE = "state.json"
# One name for a step: no other script's digits, no more zeros than six digits need.
STEP_FOLDER = re.compile(r"step_([0-9]{6}|[1-9][0-9]{6,})")
_SEAL = "sha256"
_HASH = re.compile(r"[0-9a-f]{64}")


class CorruptCheckpoint(Exception):
    """A checkpoint folder that cannot be trusted: names the file and what is wrong with it."""


@dataclass(frozen=True)
class FileRecord:
    """A file as it was written: name inside the folder, size in bytes, SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


def rank_file(rank: int) -> str:
    """The name of one rank's file."""
    return f"rank_{rank:05d}.safetensors"


def unreadable(path: Path, error: OSError) -> UserError:
    """The error of a disk that does not answer, which says nothing about the checkpoint."""
    return UserError(
        f"{path} could not be read ({error.strerror or error}). That proves no damage, so no checkpoint was touched: "
        "see to the disk, or to the limits of this process, and run the same command again."
    )


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with its seal."""
    return {**state, _SEAL: _seal_of(state)}


def records(state: Mapping[str, Any]) -> Iterator[FileRecord]:
    """The file records of a state."""
    for entry in state["files"]:
        yield FileRecord(**entry)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json of a committed checkpoint, each field as ``save`` writes it.

    Raises CorruptCheckpoint where it is missing or says what no save has written; UserError where it could not be read
    and where a newer version has written it.
    """
    path = checkpoint / STATE_FILE
    try:
        if STATE_FILE not in os.listdir(checkpoint):
            raise CorruptCheckpoint(f"{path} is missing")
        refuse_special(path)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise CorruptCheckpoint(f"{path}: {error}") from error
    try:
        state = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path}: {error or 'nested too deeply'}") from error
    if not isinstance(state, dict) or not _is_count(state.get("format")) or state["format"] < 1:
        raise CorruptCheckpoint(f"{path}: not the state of a checkpoint")
    if state["format"] > FORMAT:
        raise UserError(
            f"{path} has format {state['format']}, which a newer version of srum-ds has written; this one knows "
            f"formats 1 to {FORMAT}. Nothing was touched: go on with that version, or choose another run.dir."
        )
    _check_seal(path, state)
    _check_fields(path, state)
    return state


def _seal_of(state: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in state.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(json.loads(json.dumps(rest)), sort_keys=True).encode()).hexdigest()


def _check_seal(path: Path, state: Mapping[str, Any]) -> None:
    if _SEAL not in state and state["format"] == 1:
        return
    if state.get(_SEAL) != _seal_of(state):
        raise CorruptCheckpoint(f"{path} says other things than were written (SHA-256 differs)")


def _check_fields(path: Path, state: Mapping[str, Any]) -> None:
    for name, holds in _FIELDS.items():
        if name not in state:
            raise CorruptCheckpoint(f"{path} has no {name!r}")
        if not holds(state[name]):
            raise CorruptCheckpoint(f"{path}: {name!r} is not what a save writes")
    if not isinstance(state.get("fixed", {}), dict):
        raise CorruptCheckpoint(f"{path}: 'fixed' is not what a save writes")
    named = STEP_FOLDER.fullmatch(path.parent.name)
    if named and int(named.group(1)) != state["step"]:
        raise CorruptCheckpoint(f"{path} is of step {state['step']}, its folder of step {int(named.group(1))}")
    # Without a seal alone: a run that began with another one's moments has that one's steps of Adam, too.
    if _SEAL not in state and state["adam_steps"] > state["optimizer_steps"]:
        raise CorruptCheckpoint(
            f"{path}: {state['adam_steps']} steps of Adam in {state['optimizer_steps']} steps of the optimizer"
        )
    expected = [rank_file(rank) for rank in range(state["world_size"])]
    if [entry["name"] for entry in state["files"]] != expected:
        raise CorruptCheckpoint(f"{path} does not list one file for each of {state['world_size']} ranks")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_file_list(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and entry.keys() == {"name", "bytes", "sha256"}
        and isinstance(entry["name"], str)
        and _is_count(entry["bytes"])
        and isinstance(entry["sha256"], str)
        and _HASH.fullmatch(entry["sha256"]) is not None
        for entry in value
    )


def _is_shape_table(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(shape, list) and all(_is_count(side) for side in shape) for shape in value.values()
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "optimizer_steps": _is_count,
    "adam_steps": _is_count,
    "world_size": lambda value: _is_count(value) and value <= 10**6,
    "kinds": lambda value: isinstance(value, list) and all(isinstance(kind, str) for kind in value),
    "parameters": _is_shape_table,
    "extra": lambda value: isinstance(value, dict),
    "files": _is_file_list,
}
