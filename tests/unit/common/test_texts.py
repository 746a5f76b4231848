"""Texts from outside: whether they are text, JSON, numbers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from srum_ds.common.texts import is_number, parse_json


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "{", "", b"[" * 100_000, b"9" * 5000])
def test_what_json_cannot_hold_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)


def test_json_reads_as_it_did() -> None:
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert parse_json(b'"\xc3\xa9"') == "é"
    with pytest.raises(UnicodeDecodeError):
        parse_json(b'"\xff"')


@pytest.mark.parametrize("value", [10**400, -(10**400), math.nan, math.inf, True, None, "1", [1]])
def test_what_is_no_finite_number(value: Any) -> None:
    assert not is_number(value)


def test_what_is_a_number() -> None:
    assert is_number(0) and is_number(-2.5) and is_number(10**300)
