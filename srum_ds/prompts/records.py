"""Prompts as lines of JSON: the one versioned form in which every benchmark's prompts lie beside its pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.prompts.shards import prompt_from_json, prompt_to_json
from srum_ds.types import Prompt

SCHEMA = 1
_EXAMPLE = '{"schema": 1, "id": "my-0001", "text": "a red bench", "category": "color"}'


def write_records(path: Path, prompts: Sequence[Prompt]) -> None:
    """Writes prompts, one a line: {"schema", "id", "text", "category", "phrases", "meta"}, in one step."""
    opening = f'{{"schema":{SCHEMA},'.encode()
    write_atomic(path, b"".join(opening + prompt_to_json(prompt)[1:] + b"\n" for prompt in prompts))


def read_records(path: Path) -> list[Prompt]:
    """The prompts of a file that ``write_records`` wrote, or that somebody wrote likewise.

    category, phrases and meta may be absent: no category, no phrases, nothing else known.

    Raises UserError naming file and line for what is no such record, an unknown schema, an empty text, and an id that
    occurs twice.
    """
    try:
        text = file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip():
            continue
        prompt = _record(line, f"{path}: line {number}")
        if not prompt.text.strip():
            raise UserError(
                f"{path}: line {number}: the text of prompt {prompt.id!r} is empty; write one, or remove the line"
            )
        if not prompt.id:
            raise UserError(f"{path}: line {number}: the id is empty; give each prompt one of its own")
        if prompt.id in prompts:
            raise UserError(f"{path}: line {number}: the id {prompt.id!r} occurs twice")
        prompts[prompt.id] = prompt
    if not prompts:
        raise UserError(f"{path}: holds no prompts")
    return list(prompts.values())


def _record(line: str, where: str) -> Prompt:
    try:
        record: Any = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise UserError(f'{where}: expected an object with "schema": {SCHEMA}, such as {_EXAMPLE}')
    del record["schema"]
    return prompt_from_json(json.dumps({"category": "", "phrases": [], "meta": {}, **record}).encode(), where)
