"""Reading what judges write: a JSON object amid prose, and numbers in it, each as it is meant or not at all.

Judges are asked for JSON and give it in a code fence, after their thoughts, between sentences, twice, cut off, with
``"85/100"`` for 85. What cannot be taken in one way only is None, and the picture counts as a failure with the reply's
words; nothing is guessed, clamped or replaced by a number. Every function takes time linear in the text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from srum_ds.rewards import replies

# An object begins with a brace and, after white space, a key or its end: other braces of prose are passed over.
_BEGINS = re.compile(r'\{(?=[ \t\r\n]*["}])')
# A number as people write it, alone, as a share of a whole, or in per cent.
_WRITTEN = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)[ ]*(?:/[ ]*([0-9]+(?:\.[0-9]+)?)|(%))?")
# So many objects may be broken before a reply is given up: each costs Python a look at the text before it.
_MOST_BROKEN = 64
# Longer runs of digits mean nothing to a judge, and Python refuses to read some of them.
_MOST_DIGITS = 20


class _Twice(ValueError):
    """An object that gives one key two values."""


def after_thinking(text: str) -> str:
    """What follows the thoughts of a reply, in whatever tags (``rewards.replies``), and the whole text without any.

    Empty where thoughts begin and never end: the reply was cut off before it said anything.
    """
    return (replies.after_thinking(text) or "").strip()


def read_object(text: str) -> dict[str, Any] | None:
    """The one JSON object that a reply says, wherever it stands in it; None where there is none or no single one.

    Objects that say the same are one; several with different keys are joined; two that give the same key different
    values contradict each other, as does an object that gives a key two values, and are None. NaN and infinities are
    read as such (``number`` refuses them). An object that is cut off, or not JSON, is passed over; of a reply with
    dozens of them nothing is taken.
    """
    said = after_thinking(text)
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, strict=False)
    joined: dict[str, Any] | None = None
    place = broken = 0
    while (begins := _BEGINS.search(said, place)) is not None:
        try:
            found, place = decoder.raw_decode(said, begins.start())
        except json.JSONDecodeError as error:
            broken += 1
            if broken > _MOST_BROKEN:
                return None
            # Going on from where it broke, not behind the brace: nothing is read twice.
            place = max(error.pos, begins.end())
            continue
        except (_Twice, RecursionError):
            return None
        if any(key in found and not _same(found[key], value) for key, value in (joined or {}).items()):
            return None
        joined = {**(joined or {}), **found}
    return joined


def number(value: object, low: float, high: float) -> float | None:
    """A number from ``low`` to ``high``, both included, out of a value of a judge's object; None for anything else.

    Taken: 85, 85.0, "85", "85/100" where ``high`` is 100, "85%" likewise. Refused: true and false, null, NaN and
    infinities, text around the number, another scale ("8/10"), whatever lies outside: it is never clamped.
    """
    if isinstance(value, str):
        written = _WRITTEN.fullmatch(value.strip())
        if written is None:
            return None
        whole = written[2] or ("100" if written[3] else None)
        if whole is not None and float(whole) != high:
            return None
        value = float(written[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and low <= value <= high else None


def numbers(value: object, count: int, low: float, high: float) -> list[float] | None:
    """``count`` numbers out of a list, each as ``number`` takes it; None for another length or a refused one."""
    if not isinstance(value, list) or len(value) != count:
        return None
    found = [number(one, low, high) for one in value]
    taken = [one for one in found if one is not None]
    return taken if len(taken) == count else None


def excerpt(text: str, most: int = 200) -> str:
    """The beginning of a reply on one line, at most ``most`` characters, for messages."""
    line = " ".join(text[: 8 * most].split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for key, value in pairs:
        if key in read and not _same(read[key], value):
            raise _Twice(key)
        read[key] = value
    return read


def _same(first: object, second: object) -> bool:
    # 1 and true are equal to Python, and say different things here; 85 and 85.0 do not.
    numeric = isinstance(first, int | float) and isinstance(second, int | float)
    if numeric and isinstance(first, bool) is isinstance(second, bool):
        return first == second
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)
