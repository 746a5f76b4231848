"""What a written reply says of the scale of its score: in the label, behind the number, or elsewhere."""

from __future__ import annotations

import math
import re

TOP = r"(?P<over>\d++(?:\.\d++)?+)(?![\w]|[.,/]\d)"

# What a label says of the scale: (out of 10), (0-10), [0, 10], (from -1 to 1), (max. 5), (5-point), (%).
_SPAN = re.compile(r"(?P<low>[-+]?\d++(?:\.\d++)?+)\s*(?:-|to|,|\.\.+|\u2026|and)\s*(?P<high>[-+]?\d++(?:\.\d++)?+)")
_SPAN_TOP = re.compile(rf"(?:/|\bof|\bmax(?:imum)?\.?(?:\s*[:=])?)\s*{TOP}", re.IGNORECASE)
_NAMED_TOP = re.compile(
    r"\b(?P<over>\d++(?:\.\d++)?+)(?:[ -]point|\s+max|\s*(?:=|is\b|being\b)\s*(?:the\s+)?(?:best|perfect|highest|max))"
    r"|\u6ee1\u5206\s*(?P<full>\d++)|\u6e80\u70b9\s*(?P<most>\d++)|\b(?P<whole>\d++)\s*\u70b9?(?:\u6e80\u70b9|\u6ee1\u5206)",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"%|\bper\s?cent", re.IGNORECASE)
# Behind a number: [1..5], (0-10), (scale: 1-5), (max 5), on a 1-10 scale; nothing but the scale.
_BEHIND = re.compile(
    r"[ \t*_]*+(?:[(\[](?P<said>[^()\[\]\n]{1,40})[)\]]"
    r"|(?:on|in)[ \t]+(?:an?|the)[ \t](?P<scale>[^\n.,;]{1,24})[ \t]scale)"
)
_SPAN_WORDS = re.compile(
    r"(?:scale|range|from|between|on|in|an?|the|of|[\s:=-])*"
    r"[-+]?\d[\d.]*\s*(?:-|to|,|\.\.+|\u2026|and)\s*[-+]?\d[\d.]*(?:\s*scale)?\s*",
    re.IGNORECASE,
)
_NUMBER_WORDS = {"five": 5, "seven": 7, "ten": 10, "hundred": 100}
_WORDS = "|".join(_NUMBER_WORDS)
# A scale that the reply speaks of elsewhere.
_OTHER = re.compile(
    rf"\bscale\s+(?:of|from)\s+(?:(?:[01]|zero|one)\s*(?:to|-)\s*)?(?:an?\s+)?(?P<top>\d+|{_WORDS})\b"
    rf"|\b(?P<points>\d+|{_WORDS})[ -]point\s+scale\b|\b[01]\s*(?:to|-)\s*(?P<high>\d+)\s+scale\b"
    rf"|(?:\A|[.,:;(\[\n])[ \t]*+out\s+of\s+(?:an?\s+)?(?P<bare>\d+|{_WORDS})\b",
    re.IGNORECASE,
)
_OUT_OF = re.compile(r"(?<![\w.])(?P<value>\d+(?:\.\d+)?)\s*(?:/|out\s+of)\s*(?P<top>\d+)\b", re.IGNORECASE)


def scale_of_label(said: str, low: float, high: float) -> float | None:
    """What to divide by after a label that says its scale, NaN where that is not known; None where it says none.

    low, high: the ends of the scale that the question asks for, which needs no division.
    """
    span = _SPAN.search(said)
    if span is not None:
        first, last = float(span["low"]), float(span["high"])
        if (first, last) == (low, high):
            return 1.0
        # "1 to 10" is written as "/10" is.
        return last if first in (0.0, 1.0, -last) and last > first else math.nan
    top = _SPAN_TOP.search(said)
    if top is not None:
        return float(top["over"])
    named = _NAMED_TOP.search(said)
    if named is not None:
        return float(next(found for found in named.groups() if found))
    return 100.0 if _PERCENT.search(said) else None


def scale_behind(reply: str, place: int, low: float, high: float) -> float | None:
    """As ``scale_of_label``, of what stands right behind the number that ends at ``place``."""
    found = _BEHIND.match(reply, place)
    if found is None:
        return None
    said = found["said"] or found["scale"]
    if _SPAN_WORDS.fullmatch(said) or _SPAN_TOP.fullmatch(said.strip()) or _NAMED_TOP.search(said):
        return scale_of_label(said, low, high)
    return None


def speaks_of_another_scale(value: float, reply: str, elsewhere: bool = False) -> bool:
    """Whether a number without a scale beside it stands in a reply that gives it, or any number, another one.

    elsewhere: what the reply says of any number is looked at alone.
    """
    if abs(value) < 1:
        return False
    for found in _OTHER.finditer(reply):
        top = next(said for said in found.groups() if said).lower()
        if float(_NUMBER_WORDS.get(top, 0) or top) > 1:
            return True
    if elsewhere:
        return False
    return any(float(found["value"]) == value and float(found["top"]) > value for found in _OUT_OF.finditer(reply))
