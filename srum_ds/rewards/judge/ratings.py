"""What a number in a written reply looks like that may be a score, and what it must not stand beside."""

from __future__ import annotations

import re

from srum_ds.rewards.judge.scales import TOP

# A number that ends here: "0.7" in "0.7." counts, in "0.7x", "0.7.1", "0,7" or "0\u00b77" (other decimal points, which
# would read as 0), "1\\10", "0.5~0.7" or "1^2" it does not. Possessive digits keep the engine from settling for a part.
NUMBER = r"(?P<value>[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+)(?![\w]|[^\s\w/|)\]}>\[(%\"$`<:=-]\d)"
# The scale beside a number: /10, of 10, out of a possible 10, (out of 10), (good)/10, on a scale from 0 to 10, %.
_OVER = (
    r"(?:(?:[ \t]*+\([^()\d\n]{1,30}\))?+\s*+(?:[(\[]\s*+)?+(?:points?\s++)?+(?:/|(?:out\s++)?of)\s*+"
    + r"(?:an?\s++(?:possible|maximum)\s++)?"
    + TOP
    + r"|\s*+(?P<percent>%|per\s?cent\b)"
    + r"|[\s,]*+\(?(?:on|in)\s++a\s++scale\s++(?:from|of)\s++(?:[01]\s*(?:to|-)\s*)?"
    r"(?P<scaled>\d++(?:\.\d++)?+)(?![\w]|[.,/]\d))"
)
RATING = rf"{NUMBER}{_OVER}?+"

_MONTH = r"(?:jan|feb|mar|apr|may|june?|july?|aug|sep|oct|nov|dec)[a-z]{0,6}\b"
# What a number must not stand before.
_BESIDE = (
    # A range: "0.5-0.8", "-1 to 1", "-1 (bad) to 1", "[-1, 1]".
    r"(?:[ \t]*\([^()\d\n]{1,30}\))?\s*(?:to\b|\.\.|\u2026)\s*[-+]?[\d.]",
    r"\s*,\s*[-+]?[\d.]+\s*[\])]",
    # A date, a time, a fraction of something below zero.
    rf"[/:]\d|-\.?\d|[ \t]*/[ \t]*[-+]|[ \t]+{_MONTH}",
    # Parts of a thousand, a top in words.
    r"[ \t]*[\u2030\u2031]|[ \t]+of[ \t]+(?:the|all)\b",
    r"[ \t]*(?:/|out[ \t]+of)[ \t]*(?:an?[ \t]+)?(?:five|ten|hundred)\b",
    # A key to the scale: "1 = right, 0 = wrong", "1 if right".
    r"[ \t]*=[ \t]*[^\W\d]|[ \t]+\(?if\b",
    # Another number that counts nothing: "0.5 or 0.6", "0.5, 0.6", "0 .5", "0.5 + 0.2"; not "0.5, 2 circles".
    r"[ \t]*(?:(?:or|and|vs\.?|minus|plus|times|in|von|sur|de|su|sobre|auf|aus|[-&~,;|+*\u00d7:])[ \t]*+)?+"
    r"(?<=[^\d.])[-+]?\.?\d[\d.]*+(?!\w)(?![ \t]*[^\W\d])",
)
NOT_A_RANGE = f"(?!{'|'.join(_BESIDE)})"

_COUNTED = re.compile(
    r"[ \t]*(?:[\u2605\u2b50]|stars?\b)|[ \t]+points?[ \t]+(?:deducted|lost|missing|off|taken)\b"
    r"|[ \t]+(?:(?:minor|major|small|obvious|visible|other)[ \t]+)?(?:issue|error|mistake|problem|flaw|defect)s?\b",
    re.IGNORECASE,
)
_BOUND = re.compile(r"(?<![-=])[<>]=?[ \t]*\Z")
_BEHIND = RATING.replace("?P<", "?P<in_")
_AGAIN = re.compile(
    rf"[ \t*_]*+(?:(?:=|\u2248|->|=>|\u2192|,?[ \t]*+i\.e\.,?)[ \t]*+{RATING}|\([ \t]*+(?:=[ \t]*+)?{_BEHIND}[ \t]*\))",
    re.IGNORECASE,
)


def is_bound(found: re.Match[str]) -> bool:
    """Whether a number only limits a score ("Score: > 0.5"); "<0.5>" is one in brackets."""
    begins = found.start("value")
    limits = _BOUND.search(found.string[max(0, begins - 8) : begins]) is not None
    return limits and not found.string.startswith(">", found.end("value"))


def counts_things(found: re.Match[str]) -> bool:
    """Whether a number counts something: "4 stars", of nobody knows how many, or "0 errors"; not "4/5 stars"."""
    parts = found.groupdict()
    topped = any(parts.get(name) for name in ("over", "percent", "scaled"))
    return not topped and _COUNTED.match(found.string, found.end()) is not None


def restated(found: re.Match[str], value: float) -> bool:
    """Whether what says the number again right behind it ("8/10 = 0.8", "0.7 (70%)"), if anything, says the same."""
    again = _AGAIN.match(found.string, found.end())
    if again is None:
        return True
    parts = {key.removeprefix("in_"): said for key, said in again.groupdict().items() if said is not None}
    top = parts.get("over") or parts.get("scaled") or ("100" if parts.get("percent") else "1")
    return float(top) > 0 and abs(float(parts["value"]) / float(top) - value) < 0.01
