"""Scores in replies that are JSON: by the key ``score``, and by the names of regions. ``parsing`` reads the rest."""

from __future__ import annotations

import json
import re
from typing import Any

_FENCED = re.compile(r"\A\s*(?:```[a-z]*\s*)?(?P<body>[\[{].*[\]}])\s*(?:```)?\s*\Z", re.IGNORECASE | re.DOTALL)
# Prose around one object. More beginnings than these are no reply in JSON.
_BEGINS = re.compile(r"\{\s*+\"")
_MOST = 8
_QUOTED_KEY = re.compile(r"""["']score["']\s*+[:=]\s*+["']?(?P<value>[^,}\n"']*+)""", re.IGNORECASE)
_OBJECT = re.compile(r"""\A\s*(?:```[a-z]*\s*)?\{\s*["']""", re.IGNORECASE)
_KEYS = ("final_score", "overall_score", "total_score", "score")
_TOPS = ("out_of", "max_score", "maximum", "max", "scale")
REGION_WORDS = (
    r"(?:region|box|object|item|area|bbox|crop"
    r"|\u533a\u57df|\u5340\u57df|\u9818\u57df|\u5bf9\u8c61|\u7269\u4f53|\uc601\uc5ed)"
)
"""What a reply calls a region before its number or letter."""
_REGION = re.compile(
    rf"\A\s*(?:(?:{REGION_WORDS}|r)?[\s_#.-]*)?(?P<number>[0-9]{{1,4}})(?![0-9])\s*(?:[.):(\[-].*)?\Z",
    re.IGNORECASE | re.DOTALL,
)
_LETTER = re.compile(rf"\A\s*{REGION_WORDS}[\s_#.-]*(?P<letter>[a-z])\s*\Z", re.IGNORECASE)
_WITHIN = ("regions", "region_scores", "boxes", "objects", "items", "entries", "scores", "results", "result")
_ENDS = re.compile(r"\s*(?:(?P<low>[-+]?[0-9]{1,6})\s*(?:-|to|\.\.+|,|and)\s*)?(?P<top>[0-9]{1,6})\s*")
_PLAIN = re.compile(r"[-+]?[0-9]*\.?[0-9]+")
_NUMBER_KEYS = (
    "region",
    "region_id",
    "region_number",
    "region_index",
    "box_id",
    "id",
    "index",
    "idx",
    "number",
    "no",
    "box",
)


def score_in_json(reply: str) -> str | None:
    """What a reply in JSON, alone, in a code fence or amid prose, says under the key ``score``, as written.

    "" where the reply is an object that says none there, or several objects that say different ones with nothing
    about a score behind them. None where the reply is no object in JSON, a list, or speaks of a score behind several:
    the words are to be looked at then. A scale under a key of its own (``out_of``) is put behind.
    """
    found = [_said(value) for value in _objects(reply)]
    said = {text for text in found if text is not None}
    if len(said) == 1:
        return said.pop()
    if len(said) > 1:
        return None if "score" in reply.rpartition("}")[2].casefold() else ""
    if _OBJECT.match(reply):
        # Cut off, or quoted as Python does: nothing but the key itself counts, not what a sentence in it says.
        keys = _QUOTED_KEY.findall(reply)
        return keys[-1] if keys else ""
    return None


def regions_in_json(reply: str, count: int) -> dict[int, Any] | None:
    """Number of a region, from 1 -> its value, of a reply in JSON about regions; None for any other reply.

    Regions are read by their names ("Region 2", "2", "Region B", a key ``region`` of each entry); those numbered from 0
    are moved by one where all are there. A list without names that has as many entries as there are regions is taken in
    its order. Empty where nobody knows which is which: other names, another number of entries, or one named twice.
    """
    value = _regions_within(_whole_or_only(reply))
    named = _named(value)
    if named is None:
        return None
    if not named:
        return dict(enumerate(value, 1)) if isinstance(value, list) and len(value) == count else {}
    numbers = [number for number, _ in named]
    if len(set(numbers)) < len(numbers):
        return {}
    first = 0
    if 0 in numbers:
        if sorted(numbers) != list(range(count)):
            return {}
        first = 1
    return {number + first: said for number, said in named}


def _whole_or_only(reply: str) -> Any:
    whole = _whole(reply)
    if whole is not None:
        return whole
    found = _objects(reply)
    return found[0] if len(found) == 1 else None


def _regions_within(value: Any) -> Any:
    """What lists the regions in a reply's object, which may say other things beside it."""
    for _ in range(4):
        if not isinstance(value, dict):
            return value
        keys = {str(key).strip().casefold(): said for key, said in value.items()}
        inner = next((keys[name] for name in _WITHIN if isinstance(keys.get(name), dict | list)), None)
        if inner is None and len(value) == 1 and _number(next(iter(value))) is None:
            only = next(iter(value.values()))
            inner = only if isinstance(only, dict | list) else None
        if inner is None:
            return value
        value = inner
    return value


def _named(value: Any) -> list[tuple[int, Any]] | None:
    """(number, value) of each entry that has one, empty where no entry has; None for what lists no regions."""
    if isinstance(value, dict):
        if not value or any(str(key).strip().casefold().replace(" ", "_") in _KEYS for key in value):
            # One entry, or a verdict on the whole.
            return None
        pairs = [(_number(key), said) for key, said in value.items()]
        if all(number is None for number, _ in pairs) and not all(_scores(said) for _, said in pairs):
            return None
        # What is said beside the regions: a note, a sum.
        return [(number, said) for number, said in pairs if number is not None]
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(entry, dict) for entry in value):
        return [] if all(_scores(entry) for entry in value) else None
    found = [(next((_number(entry[key]) for key in _NUMBER_KEYS if key in entry), None), entry) for entry in value]
    named = [(number, entry) for number, entry in found if number is not None]
    return named if len(named) == len(found) else []


def _scores(value: Any) -> bool:
    return isinstance(value, int | float | str | None) or (isinstance(value, dict) and _said(value) is not None)


def _number(name: Any) -> int | None:
    if isinstance(name, bool):
        return None
    found = _REGION.match(str(name))
    if found is not None:
        return int(found["number"])
    letter = _LETTER.match(str(name))
    return None if letter is None else ord(letter["letter"].lower()) - ord("a") + 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that is given two values says none."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = None if key in found and found[key] != value else value
    return found


def _whole(reply: str) -> Any:
    fenced = _FENCED.match(reply)
    try:
        return json.loads(fenced["body"], strict=False, object_pairs_hook=_object) if fenced else None
    except (ValueError, RecursionError):
        return None


def _objects(reply: str) -> list[dict[str, Any]]:
    whole = _whole(reply)
    if whole is not None:
        return [whole] if isinstance(whole, dict) else []
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_object)
    found: list[dict[str, Any]] = []
    place = 0
    for _ in range(_MOST):
        begins = _BEGINS.search(reply, place)
        if begins is None:
            break
        try:
            value, place = decoder.raw_decode(reply, begins.start())
        except (ValueError, RecursionError):
            place = begins.end()
            continue
        found.append(value)
    return found


def _top(said: int | float | str) -> int | float | None:
    """The top of a scale: a number, or the last one of a text such as "1-10"."""
    if not isinstance(said, str):
        return said
    ends = _ENDS.fullmatch(said)
    return int(ends["top"]) if ends is not None and not (ends["low"] or "").startswith("-") else None


def _said(value: dict[str, Any]) -> str | None:
    """An object's score as text, also of one object within it; None where it has no such key."""
    keys = {str(key).strip().casefold().replace(" ", "_"): said for key, said in value.items()}
    for key in _KEYS:
        if key in keys:
            said = keys[key]
            plain = isinstance(said, str) or (isinstance(said, int | float) and not isinstance(said, bool))
            top = next((_top(keys[name]) for name in _TOPS if isinstance(keys.get(name), int | float | str)), None)
            text = str(said).strip() if plain else ""
            return f"{text}/{top}" if top is not None and not isinstance(top, bool) and _PLAIN.fullmatch(text) else text
    within = [_said(said) for said in value.values() if isinstance(said, dict)]
    inner = {written for written in within if written is not None}
    return inner.pop() if len(inner) == 1 else None
