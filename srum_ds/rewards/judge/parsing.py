"""Reads scores in [-1, 1] out of written replies, each parsed, clamped or failed. ``GenerateReadout`` calls it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from srum_ds.rewards.judge.json_replies import REGION_WORDS, regions_in_json, score_in_json
from srum_ds.rewards.judge.ratings import NOT_A_RANGE, NUMBER, RATING, counts_things, is_bound, restated
from srum_ds.rewards.judge.scales import TOP, scale_behind, scale_of_label, speaks_of_another_scale
from srum_ds.rewards.replies import after_thinking, in_ascii
from srum_ds.types import Status

_DECORATION = r"[\s*_`~\"'\[\](){}<>$\\#|:=]*+"
_BOXED = r"(?:\\?boxed\{)?"

# What a sentence or a heading may put before the word that counts.
_FINAL = r"\b(?:final|overall|total)\b[\s*_]{1,6}"

# Score: / **Score**: / Score (from -1 to 1) = / a heading "Score" with the number below it
_NO_LIMIT = "".join(
    rf"(?<!\b{word}\s)"
    for word in ("maximum", "max", "minimum", "highest", "lowest", "possible", "best", "worst", "perfect")
)
_LABEL = _NO_LIMIT + r"\bscore\b(?:(?P<said>[^\n:=]{0,40})[:=]|[*_]*+[ \t]*+\n)"
_PLAIN_LABEL = _LABEL.replace("?P<said>", "?:")
_SAID = _NO_LIMIT + r"\bscore\s+(?:is|of|would\s+be)\b"
# "A score of 1 would need ...", "is for ...": what is said of a score that is not given.
_NOT_GIVEN = r"(?!\s+(?:would|could|should|requires?|needs?|means|if|can|is\s+(?:for|only|reserved|when|if))\b)"
# "I would not give a score of 1", "if ..., the score would be 1".
_DENIED = re.compile(r"\b(?:not|never|cannot|if|unless)\b|n't\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?\n][^.!?\n]*\Z")

_LABELLED = re.compile(_PLAIN_LABEL, re.IGNORECASE)
_LABELLED_SCORES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_FINAL}(?:{_LABEL}|(?P<sentence>{_SAID})){_DECORATION}{_BOXED}{RATING}{NOT_A_RANGE}{_NOT_GIVEN}",
        rf"(?:{_LABEL}|(?P<sentence>{_SAID})){_DECORATION}{_BOXED}{RATING}{NOT_A_RANGE}{_NOT_GIVEN}",
    )
)
_BARE_SCORES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # **0.7**
        rf"\*\*\s*{RATING}\s*\*\*",
        # [0.7], (0.7), \boxed{0.7}; a list such as [-1, 1] is a range, not a score
        rf"[\[({{]\s*{RATING}\s*[\])}}]",
        # 3/5 or 3 out of 5 anywhere
        rf"(?<![\w./,]){NUMBER}\s*(?:/|out\s+of)\s*{TOP}",
        # nothing but the number
        rf"\A{_DECORATION}{RATING}{_DECORATION}\.?{_DECORATION}\Z",
    )
)
_FRACTION = _BARE_SCORES[2]
# The line that the questions ask for, and the beginning of one.
_LINE_LABEL = rf"^[ \t>*_`#-]*+(?:(?:final|overall|total)[ \t*_]+)?{_LABEL}"
_VERDICT = re.compile(
    rf"{_LINE_LABEL}[ \t*_`\"'\[\](){{}}<>$\\|]*+{_BOXED}{RATING}{NOT_A_RANGE}"
    r"[ \t*_`~\"'\[\](){}<>$\\|,]*+\.?[ \t*_`]*+$",
    re.IGNORECASE | re.MULTILINE,
)
_VERDICT_BEGINS = re.compile(r"^[ \t>*_`#-]*+(?:(?:final|overall|total)[ \t*_]+)?score[ \t*_]*+[:=]", re.IGNORECASE)
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
        found = next((given for given in pattern.finditer(reply) if _given(given, reply)), None)
        if found is not None:
            return _on_scale(found, low, high, reply)
    if _LABELLED.search(reply):
        return _FAILED
    for pattern in _BARE_SCORES:
        marked = (found for found in islice(pattern.finditer(reply), 8) if not _numbers_something(found))
        scores = {_on_scale(found, low, high, reply) for found in marked}
        if scores:
            # Footnotes, years, "24/7": what no label calls a score and lies off the scale is none, nor are several.
            score, status = scores.pop()
            return _FAILED if scores or (pattern is _FRACTION and status != Status.PARSED) else (score, status)
    return _FAILED


def _given(found: re.Match[str], reply: str) -> bool:
    """Whether a sentence gives the score it speaks of, rather than denying it or making it a condition's."""
    if found["sentence"] is None:
        return True
    before = reply[max(0, found.start() - 120) : found.start()]
    begun = _SENTENCE.search(before)
    return _DENIED.search(before, 0 if begun is None else begun.start()) is None


_ALONE = re.compile(r"[\s*_`~\"'\[\](){}<>$\\|.]*+")
_OF_SOMETHING = re.compile(r"[ \t]+of\b", re.IGNORECASE)


def _numbers_something(found: re.Match[str]) -> bool:
    """Whether a number without a label is a footnote's, an item's or a count's: "(1) It is red", "3/4 of a circle".

    A whole number in brackets or bold is a score where nothing else stands on its line, or in a box.
    """
    text, parts = found.string, found.groupdict()
    if parts.get("over") and _OF_SOMETHING.match(text, found.end()):
        return True
    if not parts["value"].lstrip("+-").isdigit() or parts.get("over") or parts.get("percent") or parts.get("scaled"):
        return False
    if text[: found.start()].endswith("boxed"):
        return False
    begins, ends = text.rfind("\n", 0, found.start()) + 1, text.find("\n", found.end())
    around = text[begins : found.start()], text[found.end() : len(text) if ends < 0 else ends]
    return not all(_ALONE.fullmatch(part) for part in around)


_JSON_RATING = re.compile(rf"\s*{RATING}\s*\Z", re.IGNORECASE)


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
    said = scale_of_label(parts.get("said") or "", low, high)
    if said is None:
        said = scale_behind(found.string, found.end(), low, high)
    if beside:
        over = float(beside)
    elif parts.get("percent"):
        over = 100.0
    elif said is not None:
        over = said
    else:
        over = math.nan if speaks_of_another_scale(value, reply) else 1.0
    value = value / over if 0 < over < math.inf else math.nan
    if not restated(found, value):
        return _FAILED
    if not math.isfinite(value) or is_bound(found) or counts_things(found):
        return _FAILED
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
    r"^[ \t>#*_|\[({-]*(?:scores?[ \t]+(?:of|for)[ \t]+)?"
    rf"(?:{REGION_WORDS}[ \t]*+(?:(?:no\.?|number|\#)[ \t]*+)?(?P<named>\d{{1,4}})\b"
    r"[ \t]*[\])}]*[*_]*(?:[ \t]*[.):|,\u2013-])?|(?P<plain>\d{1,4})[ \t]*[*_]*[.):|\]]+(?!\d))",
    re.IGNORECASE | re.MULTILINE,
)
# "Region 1: 0.5, Region 2: -0.5" on one line.
_INLINE = re.compile(
    rf"(?<=[\d.|)\]%*])[,;]?[ \t]+(?=[*_]*{REGION_WORDS}[ \t]*(?:\#[ \t]*)?\d{{1,4}}[*_ \t]*(?:score[*_ \t]*)?[:=])",
    re.IGNORECASE,
)
_OBJECT = re.compile(r"(?<!\w)object[\"'*_ \t]*[:=][ \t\"'*_]*(?P<object>(?:(?!\bscore\b)[^\n\"|;])*)", re.IGNORECASE)
_BEFORE_NUMBER = re.compile(r"[:=|\d\n]|\bscore\b", re.IGNORECASE)
_TOTAL = re.compile(rf"{_FINAL}(?:{_PLAIN_LABEL}|{_SAID})", re.IGNORECASE)
_OBJECT_START = re.compile(r"(?<![\w\"'*])[\"'*_]*+object[\"'*_ \t]*+[:=]", re.IGNORECASE)
_SCORED_LINE = re.compile(rf"(?:{_PLAIN_LABEL})[^\n]*\n?", re.IGNORECASE)
# "a red circle: 0.8", "| a red circle | 0.8 |", "a red circle - 4/5"
_TRAILING = re.compile(rf"(?:[:=|,]|\s-)[\s*_]*{RATING}{_DECORATION}\.?\s*\Z", re.IGNORECASE)


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
    reply = _INLINE.sub("\n", reply)
    entries = _in_words(reply, count)
    if speaks_of_another_scale(1.0, reply, elsewhere=True):
        # "Scores (out of 10):" above the list; which of its numbers say their scale is not known any more.
        return [_UNSAID if abs(entry.score) >= 1 else entry for entry in entries]
    return entries


def _in_words(reply: str, count: int) -> list[RegionReply]:
    """``parse_regions`` of a reply that is no JSON."""
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
