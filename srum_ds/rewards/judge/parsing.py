"""Reads scores in [-1, 1] out of written replies, each parsed, clamped or failed. ``GenerateReadout`` calls it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from srum_ds.types import Status

_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2014": "-", "\uff0d": "-"})

# A number that ends here: "0.7" in "0.7." counts, in "0.7x", "0.7.1" or "0,7" (decimal comma, which
# would read as 0) it does not. Possessive digits keep the engine from settling for a part of it.
_NUMBER = r"(?P<value>[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+)(?![\w]|[.,]\d)"
_OVER = r"(?:\s*(?:/|out\s+of)\s*(?P<over>\d++(?:\.\d++)?+)(?![\w]|[.,/]\d)|\s*(?P<percent>%))"
_RATING = rf"{_NUMBER}{_OVER}?+"
_NOT_A_RANGE = r"(?!\s*(?:to\b|\.\.|\u2026)\s*[-+]?[\d.]|\s*,\s*[-+]?[\d.]+\s*[\])])"
_DECORATION = r"[\s*_`~\"'\[\](){}<>$\\#|:=]*"
_BOXED = r"(?:\\?boxed\{)?"

# What a sentence or a heading may put before the word that counts.
_FINAL = r"\b(?:final|overall|total)\b[\s*_]{1,6}"

# Score: / **Score**: / Score (from -1 to 1) = / a heading "Score" with the number below it
_LABEL = r"\bscore\b(?:[^\n:=]{0,40}[:=]|[*_]*[ \t]*\n)"
_SAID = r"\bscore\s+(?:is|of|would\s+be)\b"

_LABELLED = re.compile(_LABEL, re.IGNORECASE)
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_FINAL}(?:{_LABEL}|{_SAID}){_DECORATION}{_BOXED}{_RATING}{_NOT_A_RANGE}",
        rf"(?:{_LABEL}|{_SAID}){_DECORATION}{_BOXED}{_RATING}{_NOT_A_RANGE}",
        # **0.7**
        rf"\*\*\s*{_RATING}\s*\*\*",
        # [0.7], (0.7), \boxed{0.7}; a list such as [-1, 1] is a range, not a score
        rf"[\[({{]\s*{_RATING}\s*[\])}}]",
        # 3/5 or 3 out of 5 anywhere
        rf"(?<![\w./,]){_NUMBER}\s*(?:/|out\s+of)\s*(?P<over>\d++(?:\.\d++)?+)(?![\w]|[.,/]\d)",
        # nothing but the number
        rf"\A{_DECORATION}{_RATING}{_DECORATION}\.?{_DECORATION}\Z",
    )
)


def parse_score(text: str, low: float = -1.0, high: float = 1.0) -> tuple[float, Status]:
    """Reads the score out of a written reply.

    Only what follows the last ``</think>`` counts; a reply still thinking has no score. Looked for,
    in this order: the number after a "final score", "overall score" or "total score" label, the first
    number after a "score" label (what follows it explains it), a bold number, a bracketed number, a fraction
    ("3/5" and "3 out of 5" are 0.6, "60%" likewise), a reply that is nothing but a number. Numbers in
    running text are not scores ("I see 3 dogs"), nor does anything stand in for a label without a
    number ("Score: N/A").

    Args:
        text: the judge's reply.
        low, high: the scale's ends.

    Returns:
        (score, PARSED), (the nearer end of the scale, CLAMPED) when the number lies outside it, or
        (NaN, FAILED) when there is none. A score of 0 always means that the judge said 0.
    """
    reply = _after_thinking(text)
    if reply is None:
        return math.nan, Status.FAILED
    patterns = _PATTERNS[:2] if _LABELLED.search(reply) else _PATTERNS
    for pattern in patterns:
        found = pattern.search(reply)
        if found is not None:
            return _on_scale(found, low, high)
    return math.nan, Status.FAILED


def parse_reply(text: str, answers: Sequence[str] = ()) -> tuple[float, Status]:
    """``parse_score``, and the bare words of a judge that answers yes or no: 1 and -1.

    Args:
        text: the judge's reply.
        answers: spellings of yes, then as many of no; a reply (what follows the thinking) that is
            nothing but one of them, whatever its case, counts. Empty: numbers only.
    """
    score, status = parse_score(text)
    if status != Status.FAILED:
        return score, status
    word = (_after_thinking(text) or "").strip(_BARE).casefold()
    half = len(answers) // 2
    for position, answer in enumerate(answers):
        if word and word == answer.strip().casefold():
            return (1.0 if position < half else -1.0), Status.PARSED
    return math.nan, Status.FAILED


_BARE = " \t\r\n.!*_`'\""


def _after_thinking(text: str) -> str | None:
    """What follows the last closing think tag; None for a reply that is still thinking."""
    opened, closed = text.rfind("<think>"), text.rfind("</think>")
    if opened > closed:
        return None
    reply = text if closed < 0 else text[closed + len("</think>") :]
    return reply.translate(_MINUS)


def _on_scale(found: re.Match[str], low: float, high: float) -> tuple[float, Status]:
    parts = found.groupdict()
    value = float(parts["value"])
    if parts.get("over"):
        over = float(parts["over"])
        value = value / over if over > 0 else math.nan
    elif parts.get("percent"):
        value = value / 100
    if not math.isfinite(value):
        return math.nan, Status.FAILED
    if value < low:
        return low, Status.CLAMPED
    if value > high:
        return high, Status.CLAMPED
    return value, Status.PARSED


@dataclass(frozen=True)
class RegionReply:
    """What a reply about several regions says of one: its object in the judge's words, and its score."""

    object: str
    score: float
    status: Status


_UNSAID = RegionReply("", math.nan, Status.FAILED)

_RULE = re.compile(r"^[ \t]*(?:-[ \t]?){3,}$|^[ \t]*(?:[*=_~][ \t]?){3,}$", re.MULTILINE)
_BLANK = re.compile(r"\n[ \t]*\n\s*")
_NUMBERED = re.compile(
    r"^[ \t>#*_|\[({-]*(?:(?:region|box|object|item|area|bbox)[ \t]*(?:no\.?|number|\#)?[ \t]*(?P<named>\d{1,4})\b"
    r"[ \t]*[\])}]*[*_]*(?:[ \t]*[.):|,\u2013-])?|(?P<plain>\d{1,4})[ \t]*[*_]*[.):|\]]+(?!\d))",
    re.IGNORECASE | re.MULTILINE,
)
_OBJECT = re.compile(r"(?<!\w)object[\"'*_ \t]*[:=][ \t\"'*_]*(?P<object>(?:(?!\bscore\b)[^\n\"|;])*)", re.IGNORECASE)
_BEFORE_NUMBER = re.compile(r"[:=|\d\n]|\bscore\b", re.IGNORECASE)
_TOTAL = re.compile(rf"{_FINAL}(?:{_LABEL}|{_SAID})", re.IGNORECASE)
_OBJECT_START = re.compile(r"(?<!\w)[\"'*_]*object[\"'*_ \t]*[:=]", re.IGNORECASE)
_SCORED_LINE = re.compile(rf"(?:{_LABEL})[^\n]*\n?", re.IGNORECASE)
# "a red circle: 0.8", "| a red circle | 0.8 |", "a red circle - 4/5"
_TRAILING = re.compile(rf"(?:[:=|,]|\s-)[\s*_]*{_RATING}{_DECORATION}\.?\s*\Z", re.IGNORECASE)


def parse_regions(text: str, count: int) -> list[RegionReply]:
    """Reads a score for each of ``count`` regions out of one reply that lists them.

    Entries are told apart by their numbers ("Region 2:", "2.", a table's first column), or else by
    "object" labels, rules (``---``, ``***``, ``===``), blank lines, "score" labels, or lines: the first of
    these ways that gives as many entries as there are regions, and otherwise the one with the most
    entries that are not too many. Numbered entries go to the region of their number. Others go in
    order; where there are fewer (the reply was cut off), the last regions have failed; where every way
    gives more, nobody knows which is which, and all have failed.

    Within an entry a score is found as by ``parse_score``, or at its very end ("a red circle: 0.8").
    Only what follows the thinking counts.

    Returns:
        One reply per region, in order; FAILED with NaN where the reply has no score for it.
    """
    reply = _after_thinking(text)
    if reply is None or count < 1:
        return [_UNSAID] * max(count, 0)
    numbered = _by_number(reply, count)
    if len(numbered) == count:
        return [numbered[number] for number in range(1, count + 1)]
    best: list[RegionReply] = []
    for split in _SPLITS:
        blocks = split(reply)
        if any(len(_OBJECT.findall(block)) > 1 for block in blocks):
            continue
        entries = [entry for entry in map(_entry, blocks) if entry is not None]
        if len(entries) == count:
            return entries
        if len(best) < len(entries) < count:
            best = entries
    if len(numbered) >= max(len(best), 1):
        return [numbered.get(number, _UNSAID) for number in range(1, count + 1)]
    return best + [_UNSAID] * (count - len(best))


def _by_number(reply: str, count: int) -> dict[int, RegionReply]:
    """Numbered entries within 1..count, the first of each number. Empty where numbering starts at 0."""
    heads = list(_NUMBERED.finditer(reply))
    found: dict[int, RegionReply] = {}
    starts = [head.start() for head in heads[1:]] + [len(reply)]
    for head, end in zip(heads, starts, strict=False):
        number = int(head["named"] or head["plain"])
        entry = _entry(reply[head.end() : end])
        if number == 0:
            return {}
        if number <= count and number not in found:
            found[number] = entry or _UNSAID
    return found


def _entry(block: str) -> RegionReply | None:
    """One region's entry; None for a block that speaks of no region (an introduction, a remark)."""
    total = _TOTAL.search(block)
    if total is not None and _LABELLED.search(block[: total.start()]):
        # A score of the whole after the last region's own.
        block = block[: total.start()]
    score, status = parse_score(block)
    labelled = _LABELLED.search(block) is not None
    if status == Status.FAILED and not labelled:
        first = block.strip().split("\n")[0]
        for text in (first, block):
            trailing = _TRAILING.search(text)
            if trailing is not None and re.search(r"[^\W\d_]", text[: trailing.start()]):
                score, status = _on_scale(trailing, -1.0, 1.0)
                break
    named = _OBJECT.search(block)
    if status == Status.FAILED and named is None and not labelled:
        return None
    name = named["object"] if named is not None else _BEFORE_NUMBER.split(block.strip(), maxsplit=1)[0]
    return RegionReply(name.strip(" \t\r\n*_`|,;:.-()[]{}\"'"), score, status)


def _at(pattern: re.Pattern[str]) -> Callable[[str], list[str]]:
    """Splits a reply where each match begins."""

    def split(reply: str) -> list[str]:
        starts = [match.start() for match in pattern.finditer(reply)]
        return [reply[a:b] for a, b in zip([0, *starts], [*starts, len(reply)], strict=True)]

    return split


def _after(pattern: re.Pattern[str]) -> Callable[[str], list[str]]:
    """Splits a reply where each match ends."""

    def split(reply: str) -> list[str]:
        ends = [match.end() for match in pattern.finditer(reply)]
        return [reply[a:b] for a, b in zip([0, *ends], [*ends, len(reply)], strict=True)]

    return split


def _bare_lines(reply: str) -> list[str]:
    """One entry a line, where no label says that an entry spans several."""
    return [] if _OBJECT.search(reply) or _LABELLED.search(reply) else reply.splitlines()


_SPLITS: tuple[Callable[[str], list[str]], ...] = (
    _at(_OBJECT_START),
    _RULE.split,
    _BLANK.split,
    _after(_SCORED_LINE),
    _bare_lines,
)
