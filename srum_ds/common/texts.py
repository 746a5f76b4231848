"""Whether what a user gave is text at all. Every door through which texts come in asks here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

from srum_ds.common.errors import UserError


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: half a surrogate pair, or a byte of another encoding, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_encodable(text: str, where: str) -> None:
    """UserError, which begins with ``where``, for a text that cannot be written as UTF-8; it names the character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = ascii(text[error.start])[1:-1]
        raise UserError(
            f"{where}: character {error.start + 1} is {found}, which is no character (half of one that was cut in two, "
            "or a byte of another encoding than UTF-8); write it anew as UTF-8."
        ) from error


def at_home(text: str) -> str:
    """A path with its ``~`` as the home folder; unchanged where there is no such user. Shells leave it after ``=``."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        return text


def parse_json(text: str | bytes, **options: Any) -> Any:
    """``json.loads``, of which every refusal is a ValueError.

    JSON nested a thousand deep is a RecursionError to Python, and a number of more than 4300 digits a ValueError of
    another kind than the rest; both are JSONDecodeErrors here. Bytes that are no UTF-8 are a UnicodeDecodeError.
    """
    try:
        return json.loads(text, **options)
    except (RecursionError, ValueError) as error:
        if isinstance(error, json.JSONDecodeError | UnicodeError):
            raise
        reason = "a number of too many digits" if isinstance(error, ValueError) else "nested too deeply"
        raise json.JSONDecodeError(reason, text if isinstance(text, str) else "", 0) from error


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of JSON's is a number that stays finite as a float; true and false are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        # A whole number of more than 308 digits.
        return False
