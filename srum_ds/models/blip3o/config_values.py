"""Reading JSON files of a checkpoint folder: what is wrong is an error that names file and key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError where the file is missing, broken or something else."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it from the release into this folder.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again from the release.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, expected an object {{...}}. Copy it again.")
    return values


def whole_number(values: Mapping[str, Any], name: str, where: Path, least: int = 1) -> int:
    """A whole number from ``least`` among a file's values. UserError where it is missing or something else."""
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        found = "missing" if value is None else repr(value)
        raise UserError(f"{where}: {name} is {found}, expected a whole number from {least}.")
    return value
