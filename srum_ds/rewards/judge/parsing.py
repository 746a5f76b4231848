"""Reads scores in [-1, 1] out of written replies, each parsed, clamped or failed. ``GenerateReadout`` calls it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from srum_ds.rewards.judge.json_replies import regions_in_json, score_in_json
from srum_ds.rewards.replies import after_thinking, in_ascii
from srum_ds.types import Status

# A number that ends here: "0.7" in "0.7." counts, in "0.7x", "0.7.1" or "0,7" (decimal comma, which
# would read as 0) it does not. Possessive digits keep the engine from settling for a part of it.
_NUMBER = r"(?P<value>[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+)(?![\w]|[.,]\d)"
_TOP = r"(?P<over>\d++(?:\.\d++)?+)(?![\w]|[.,/]\d)"
# The scale beside a number: /10, of 10, out of a possible 10, (out of 10), (good)/10, on a scale from 0 to 10, %.
_OVER = (
    r"(?:(?:[ \t]*\([^()\d\n]{1,30}\))?\s*[(\[]?\s*(?:points?\s+)?(?:/|(?:out\s+)?of)\s*"
    + r"(?:an?\s+(?:possible|maximum)\s+)?"
    + _TOP
    + r"|\s*(?P<percent>%|per\s?cent\b)"
    + r"|[\s,]*\(?(?:on|in)\s+a\s+scale\s+(?:from|of)\s+(?:[01]\s*(?:to|-)\s*)?"
    r"(?P<scaled>\d++(?:\.\d++)?+)(?![\w]|[.,/]\d))"
)
_RATING = rf"{_NUMBER}{_OVER}?+"
# Neither the beginning of a range ("0.5-0.8", "-1 to 1", "[-1, 1]") nor of a date or a time.
_NOT_A_RANGE = (
    r"(?!\s*(?:to\b|\.\.|\u2026)\s*[-+]?[\d.]|\s*,\s*[-+]?[\d.]+\s*[\])]|[/:]\d|-\.?\d"
    r"|[ \t]+-[ \t]*[-+]?\.?\d[\d.]*+(?![ \t]*[^\W\d]))"
)
_DECORATION = r"[\s*_`~\"'\[\](){}<>$\\#|:=]*+"
_BOXED = r"(?:\\?boxed\{)?"

# What a sentence or a heading may put before the word that counts.
_FINAL = r"\b(?:final|overall|total)\b[\s*_]{1,6}"

# Score: / **Score**: / Score (from -1 to 1) = / a heading "Score" with the number below it
_LABEL = r"\bscore\b(?:(?P<said>[^\n:=]{0,40})[:=]|[*_]*+[ \t]*+\n)"
_PLAIN_LABEL = _LABEL.replace("?P<said>", "?:")
_SAID = r"\bscore\s+(?:is|of|would\s+be)\b"

_LABELLED = re.compile(_PLAIN_LABEL, re.IGNORECASE)
_LABELLED_SCORES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_FINAL}(?:{_LABEL}|{_SAID}){_DECORATION}{_BOXED}{_RATING}{_NOT_A_RANGE}",
        rf"(?:{_LABEL}|{_SAID}){_DECORATION}{_BOXED}{_RATING}{_NOT_A_RANGE}",
    )
)
_BARE_SCORES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # **0.7**
        rf"\*\*\s*{_RATING}\s*\*\*",
        # [0.7], (0.7), \boxed{0.7}; a list such as [-1, 1] is a range, not a score
        rf"[\[({{]\s*{_RATING}\s*[\])}}]",
        # 3/5 or 3 out of 5 anywhere
        rf"(?<![\w./,]){_NUMBER}\s*(?:/|out\s+of)\s*{_TOP}",
        # nothing but the number
        rf"\A{_DECORATION}{_RATING}{_DECORATION}\.?{_DECORATION}\Z",
    )
)
# The line that the questions ask for, and the beginning of one.
_LINE_LABEL = rf"^[ \t>*_`#-]*+(?:(?:final|overall|total)[ \t*_]+)?{_LABEL}"
_VERDICT = re.compile(
    rf"{_LINE_LABEL}[ \t*_`\"'\[\](){{}}<>$\\|]*+{_BOXED}{_RATING}[ \t*_`~\"'\[\](){{}}<>$\\|,]*+\.?[ \t*_`]*+$",
    re.IGNORECASE | re.MULTILINE,
)
_VERDICT_BEGINS = re.compile(r"^[ \t>*_`#-]*+(?:(?:final|overall|total)[ \t*_]+)?score[ \t*_]*+[:=]", re.IGNORECASE)
# What a label says of the scale: (out of 10), (0-10), [0, 10], (from -1 to 1), (%).
_SPAN = re.compile(r"(?P<low>[-+]?\d++(?:\.\d++)?+)\s*(?:-|to|,|\.\.+|\u2026|and)\s*(?P<high>[-+]?\d++(?:\.\d++)?+)")
_SPAN_TOP = re.compile(rf"(?:/|\bof)\s*{_TOP}", re.IGNORECASE)
_SPAN_PERCENT = re.compile(r"%|\bper\s?cent", re.IGNORECASE)
# A scale that the reply speaks of elsewhere.
_OTHER_SCALE = re.compile(
    r"\bscale\s+(?:of|from)\s+(?:[01]\s*(?:to|-)\s*)?(?P<top>\d+)\b|\b(?P<points>\d+)[ -]point\s+scale\b", re.IGNORECASE
)
_OUT_OF = re.compile(r"(?<![\w.])(?P<value>\d+(?:\.\d+)?)\s*(?:/|out\s+of)\s*(?P<top>\d+)\b", re.IGNORECASE)
_FAILED = (math.nan, Status.FAILED)


def parse_score(text: str, low: float = -1.0, high: float = 1.0) -> tuple[float, Status]:
    """Reads the score out of a written reply.

    Only what follows the thinking counts; a reply still thinking has no score. Digits and signs of other scripts are
    read as their ASCII forms. The verdict stands where the questions demand it: the key ``score`` of a reply in
    JSON, or the last line that is nothing but "Score: X". Where there is neither, looked for are, in this order: the
    number after a "final score", "overall score" or "total score" label, the first
    number after a "score" label (what follows it explains it), a bold number, a bracketed number, a fraction
    ("3/5" and "3 out of 5" are 0.6, "60%" likewise), a reply that is nothing but a number. Numbers in
    running text are not scores ("I see 3 dogs"), nor are ranges, dates and times, nor does anything stand in for a
    label without a number ("Score: N/A").

    A scale said beside the number or in its label counts: "Score (out of 10): 7" is 0.7. A number of 1 or more in a
    reply that speaks of another scale elsewhere is no score, as nobody knows what it means.

    Args:
        text: the judge's reply.
        low, high: the scale's ends.

    Returns:
        (score, PARSED), (the nearer end of the scale, CLAMPED) when the number lies outside it, or
        (NaN, FAILED) when there is none. A score of 0 always means that the judge said 0.
    """
    rest = after_thinking(text)
    if rest is None:
        return _FAILED
    reply = in_ascii(rest)
    written = score_in_json(reply)
    if written is not None:
        found = _JSON_RATING.match(written)
        return _FAILED if found is None else _on_scale(found, low, high, reply)
    verdicts = list(_VERDICT.finditer(reply))
    lines = [line for line in reply.splitlines() if line.strip(" \t`*_")]
    if lines and _VERDICT_BEGINS.match(lines[-1]):
        # The line that was asked for: what stands before it is no verdict, whatever it says.
        found = _VERDICT.search(lines[-1]) or _LABELLED_SCORES[1].search(lines[-1])
        return _FAILED if found is None else _on_scale(found, low, high, reply)
    if verdicts:
        # A sentence behind it may still change it: "The final score is 0.6."
        found = _LABELLED_SCORES[0].search(reply, verdicts[-1].end()) or verdicts[-1]
        return _on_scale(found, low, high, reply)
    for pattern in _LABELLED_SCORES:
        found = pattern.search(reply)
        if found is not None:
            return _on_scale(found, low, high, reply)
    if _LABELLED.search(reply):
        return _FAILED
    for pattern in _BARE_SCORES:
        scores = {_on_scale(found, low, high, reply) for found in islice(pattern.finditer(reply), 8)}
        if scores:
            # Footnotes, years, "24/7": what no label calls a score and lies off the scale is none, nor are several.
            return scores.pop() if len(scores) == 1 else _FAILED
    return _FAILED


_JSON_RATING = re.compile(rf"\s*{_RATING}\s*\Z", re.IGNORECASE)


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
    word = in_ascii(after_thinking(text) or "").strip(_BARE).casefold()
    half = len(answers) // 2
    for position, answer in enumerate(answers):
        if word and word == answer.strip().casefold():
            return (1.0 if position < half else -1.0), Status.PARSED
    return math.nan, Status.FAILED


_BARE = " \t\r\n.!*_`'\""


def _on_scale(found: re.Match[str], low: float, high: float, reply: str) -> tuple[float, Status]:
    parts = found.groupdict()
    value = float(parts["value"])
    beside = parts.get("over") or parts.get("scaled")
    said = _scale_of_label(parts.get("said") or "", low, high)
    if beside:
        over = float(beside)
    elif parts.get("percent"):
        over = 100.0
    elif said is not None:
        over = said
    else:
        over = math.nan if _speaks_of_another_scale(value, reply) else 1.0
    value = value / over if over > 0 else math.nan
    if not math.isfinite(value):
        return _FAILED
    if value < low:
        return low, Status.CLAMPED
    if value > high:
        return high, Status.CLAMPED
    return value, Status.PARSED


def _scale_of_label(said: str, low: float, high: float) -> float | None:
    """What to divide by after a label that says its scale, NaN where that is not known; None where it says none."""
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
    return 100.0 if _SPAN_PERCENT.search(said) else None


def _speaks_of_another_scale(value: float, reply: str) -> bool:
    """Whether a number without a scale beside it stands in a reply that gives it, or any number, another one."""
    if abs(value) < 1:
        return False
    if any(float(found["top"] or found["points"]) > 1 for found in _OTHER_SCALE.finditer(reply)):
        return True
    return any(float(found["value"]) == value and float(found["top"]) > value for found in _OUT_OF.finditer(reply))


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
    r"^[ \t>#*_|\[({-]*"
    r"(?:(?:region|box|object|item|area|bbox)[ \t]*+(?:(?:no\.?|number|\#)[ \t]*+)?(?P<named>\d{1,4})\b"
    r"[ \t]*[\])}]*[*_]*(?:[ \t]*[.):|,\u2013-])?|(?P<plain>\d{1,4})[ \t]*[*_]*[.):|\]]+(?!\d))",
    re.IGNORECASE | re.MULTILINE,
)
_OBJECT = re.compile(r"(?<!\w)object[\"'*_ \t]*[:=][ \t\"'*_]*(?P<object>(?:(?!\bscore\b)[^\n\"|;])*)", re.IGNORECASE)
_BEFORE_NUMBER = re.compile(r"[:=|\d\n]|\bscore\b", re.IGNORECASE)
_TOTAL = re.compile(rf"{_FINAL}(?:{_PLAIN_LABEL}|{_SAID})", re.IGNORECASE)
_OBJECT_START = re.compile(r"(?<![\w\"'*])[\"'*_]*+object[\"'*_ \t]*+[:=]", re.IGNORECASE)
_SCORED_LINE = re.compile(rf"(?:{_PLAIN_LABEL})[^\n]*\n?", re.IGNORECASE)
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
    Only what follows the thinking counts. A reply in JSON that names its regions ("Region 2", "2", or a key
    ``region`` of each entry) is read by these names.

    Returns:
        One reply per region, in order; FAILED with NaN where the reply has no score for it.
    """
    rest = after_thinking(text)
    if rest is None or count < 1:
        return [_UNSAID] * max(count, 0)
    reply = in_ascii(rest)
    by_name = regions_in_json(reply, count)
    if by_name is not None:
        return [_json_entry(by_name.get(number)) for number in range(1, count + 1)]
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


def _json_entry(value: Any) -> RegionReply:
    """One region's value in a map by regions' names: a score, or an object with one."""
    if value is None:
        return _UNSAID
    score, status = parse_score(value if isinstance(value, str) else json.dumps(value))
    named = value.get("object", value.get("label", "")) if isinstance(value, dict) else ""
    return RegionReply(str(named), score, status)


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
                score, status = _on_scale(trailing, -1.0, 1.0, block)
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
