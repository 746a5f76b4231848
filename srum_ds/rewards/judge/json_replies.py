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
_REGION = re.compile(
    r"\A\s*(?:(?:region|box|object|item|area|bbox)[\s_#-]*)?(?P<number>[0-9]{1,4})\s*\Z", re.IGNORECASE
)
_NUMBER_KEYS = ("region", "box", "id", "index", "number")


def score_in_json(reply: str) -> str | None:
    """What a reply in JSON, alone, in a code fence or amid prose, says under the key ``score``, as written.

    "" where the reply is an object that says none there, or several different ones. None where the reply is no object
    in JSON, or a list: the words are to be looked at then. A scale under a key of its own (``out_of``) is put behind.
    """
    found = [_said(value) for value in _objects(reply)]
    said = {text for text in found if text is not None}
    if len(said) == 1:
        return said.pop()
    if len(said) > 1:
        return None
    if _OBJECT.match(reply):
        # Cut off, or quoted as Python does: nothing but the key itself counts, not what a sentence in it says.
        keys = _QUOTED_KEY.findall(reply)
        return keys[-1] if keys else ""
    return None


def regions_in_json(reply: str, count: int) -> dict[int, Any] | None:
    """Number of a region, from 1 -> its value, of a reply in JSON that names its regions; None for any other reply.

    Regions numbered from 0 are moved by one where all are there. None where one is named twice.
    """
    value = _whole(reply)
    if isinstance(value, dict) and len(value) == 1:
        inner = next(iter(value.values()))
        value = inner if isinstance(inner, dict | list) and _named(value) is None else value
    named = _named(value)
    if not named:
        return None
    numbers = [number for number, _ in named]
    if len(set(numbers)) < len(numbers):
        return None
    first = 0
    if 0 in numbers:
        if sorted(numbers) != list(range(count)):
            return None
        first = 1
    return {number + first: said for number, said in named}


def _named(value: Any) -> list[tuple[int, Any]] | None:
    if isinstance(value, dict):
        pairs = [(_number(key), said) for key, said in value.items()]
    elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        pairs = [(next((_number(entry[key]) for key in _NUMBER_KEYS if key in entry), None), entry) for entry in value]
    else:
        return None
    found = [(number, said) for number, said in pairs if number is not None]
    return found if len(found) == len(pairs) else None


def _number(name: Any) -> int | None:
    found = None if isinstance(name, bool) else _REGION.match(str(name))
    return int(found["number"]) if found else None


def _whole(reply: str) -> Any:
    fenced = _FENCED.match(reply)
    try:
        return json.loads(fenced["body"], strict=False) if fenced else None
    except (ValueError, RecursionError):
        return None


def _objects(reply: str) -> list[dict[str, Any]]:
    whole = _whole(reply)
    if whole is not None:
        return [whole] if isinstance(whole, dict) else []
    decoder = json.JSONDecoder(strict=False)
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


def _said(value: dict[str, Any]) -> str | None:
    """An object's score as text, also of one object within it; None where it has no such key."""
    keys = {str(key).strip().casefold().replace(" ", "_"): said for key, said in value.items()}
    for key in _KEYS:
        if key in keys:
            said = keys[key]
            plain = isinstance(said, str) or (isinstance(said, int | float) and not isinstance(said, bool))
            top = next((keys[name] for name in _TOPS if isinstance(keys.get(name), int | float)), None)
            text = str(said).strip() if plain else ""
            return text if top is None or isinstance(said, str) or isinstance(top, bool) else f"{text}/{top}"
    within = [_said(said) for said in value.values() if isinstance(said, dict)]
    inner = {written for written in within if written is not None}
    return inner.pop() if len(inner) == 1 else None
