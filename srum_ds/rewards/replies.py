"""What every reader of a judge's written reply does first: leave the thinking out, and write digits in ASCII."""

from __future__ import annotations

import re
import unicodedata

_NAMES = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad)"
# <think>, [/THINK], <seed:think>, <think effort="low">, <|START_THINKING|>, <|end_of_thought|>.
_THINKING = re.compile(
    r"[<\[\u25c1]\|?(?P<close>/|end_(?:of_)?)?(?:(?:start|begin)_(?:of_)?)?(?:[a-z]{1,12}:)?"
    rf"{_NAMES}(?:(?<!\W)[ \t][^<>\[\]\n]{{0,80}}(?=>))?\|?[>\]\u25b7]",
    re.I,
)
# The channels of OpenAI's harmony format: what is said stands in the one called final.
_CHANNEL = re.compile(r"<\|channel\|>[ \t]*(?P<name>\w+)[^<\n]{0,80}<\|message\|>", re.I)
# What no one sees: zero-width characters, soft hyphens, marks of direction.
_UNSEEN = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_DIGIT = re.compile(r"\d")
# Units behind a number, as in Chinese, Japanese and Korean: points.
_POINTS = re.compile(r"(?<=[0-9])[ \t]?[\u5206\u70b9\u9ede\uc810](?!\w)")
_SIGNS = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    0x3000: " ",
    0x066A: "%",
    0x066B: ".",
    0x2044: "/",
    0x2215: "/",
    0xFE6A: "%",
    **dict.fromkeys((0x2212, 0x2010, 0x2011, 0x2013, 0x2014, 0xFE63, 0x207B), "-"),
}


def after_thinking(text: str) -> str | None:
    """What follows the last closing tag of thinking; None for a reply that is still thinking.

    Tags are ``<think>``, ``<thinking>``, ``<thought>``, ``<reasoning>`` and their like, in any case, also in square
    brackets, as ``<|START_THINKING|>``, and every channel but the one called final.
    """
    channels = list(_CHANNEL.finditer(text))
    if channels:
        if channels[-1]["name"].lower() != "final":
            return None
        text = text[channels[-1].end() :]
    tags = list(_THINKING.finditer(text))
    if not tags:
        return text
    return text[tags[-1].end() :] if tags[-1]["close"] else None


def in_ascii(text: str) -> str:
    """The same with decimal digits of every script, full-width signs, minus signs and percent signs in ASCII.

    A unit of points behind a number goes, and so do characters that no one sees. A digit is never lost:
    "\uff10\uff0e\uff18" is "0.8".
    """
    if text.isascii():
        return text
    digits = _DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), _UNSEEN.sub("", text))
    return _POINTS.sub("", digits.translate(_SIGNS))
