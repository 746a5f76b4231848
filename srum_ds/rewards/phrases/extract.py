"""Which objects a prompt asks for: read off the prompt itself, or out of a reply. Pure functions.

A phrase says one object ("a red circle"), and a count says how many of them are wanted. Regions are
judged against phrases, and counts say when an object is missing or one too many (see ``judge``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srum_ds.common.texts import parse_json
from srum_ds.rewards.replies import after_thinking


@dataclass(frozen=True)
class Phrases:
    """Object phrases, each once, in the order of the prompt, and how many objects each asks for."""

    phrases: tuple[str, ...]
    counts: tuple[int, ...]


MAX_WORDS = 12
MAX_COUNT = 20

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER_OF = {word: number for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the", "his", "her", "their", "its", "my", "your", "our", "some", "another")
_COUNTED = "|".join([*_NUMBERS, r"\d{1,2}"])

# What stands between two objects: conjunctions, relations, auxiliary verbs with their participle.
_RELATIONS = (
    "in front of",
    "in the front of",
    "to the left of",
    "to the right of",
    "on the left of",
    "on the right of",
    "on the left side of",
    "on the right side of",
    "on the side of",
    "on side of",
    "on the top of",
    "on top of",
    "on the bottom of",
    "at the bottom of",
    "at the top of",
    "on the back of",
    "left of",
    "right of",
    "next to",
    "close to",
    "adjacent to",
    "hidden by",
    "surrounded by",
    "filled with",
    "covered with",
    "covered by",
    "made of",
    "out of",
    "instead of",
    "between",
    "behind",
    "above",
    "below",
    "beneath",
    "underneath",
    "under",
    "beside",
    "besides",
    "near",
    "inside",
    "outside",
    "within",
    "about",
    "among",
    "around",
    "along",
    "across",
    "through",
    "towards",
    "toward",
    "against",
    "over",
    "onto",
    "into",
    "upon",
    "from",
    "with",
    "in",
    "on",
    "at",
    "by",
    "to",
    "for",
    "while",
    "as",
    "and",
    "or",
    "then",
    "that",
    "which",
    "who",
)
_WORDS = "|".join(re.escape(words).replace(r"\ ", r"\s+") for words in sorted(_RELATIONS, key=len, reverse=True))
_VERBS = r"(?:is|are|was|were|has|have|had|be|being|been)(?:\s+\w+(?:ing|ed))?"
_BETWEEN = re.compile(rf"[,;:.!?()\"]+|\b(?:{_VERBS}|{_WORDS})\b", re.IGNORECASE)
_LEAD_IN = re.compile(r"\A\s*(?:an?|the)?\s*(?:photo(?:graph)?|picture|image)\s+of\b", re.IGNORECASE)
# "without a lamp": an object that is not wanted.
_UNWANTED = re.compile(r"\b(?:without|no)\b.*?(?=[,;.]|\b(?:and|with|in|on)\b|\Z)", re.IGNORECASE)
# A determiner in the middle of a piece begins the next object: "six microphones amplified | the voices".
_NEXT_OBJECT = re.compile(rf"\s+(?=(?:{'|'.join(_ARTICLES)}|{_COUNTED})\s)", re.IGNORECASE)
_ING_NOUNS = "building|ceiling|clothing|drawing|dumpling|earring|evening|king|lightning|morning|painting|railing"
_ING_NOUNS += "|pudding|ring|sibling|string|swing|thing|wedding|wing"
# "holding", "shooting hoops": what somebody does, not the object it is done with.
_DOING = re.compile(rf"\A(?!(?:{_ING_NOUNS})s?\b)\w{{2,}}ing(?:\s+|\Z)", re.IGNORECASE)
# "the cat lounged", "the flakes drifted gently": the verb behind the object.
_DONE = re.compile(r"(?<=\w)(?:\s+\w+ly)?\s+\w{3,}ed(?:\s+\w+ly)?\Z", re.IGNORECASE)
# "the soft, fluffy pillow": the comma between two adjectives is no end of a piece.
_ADJECTIVES = re.compile(
    rf"\b((?:{'|'.join(_ARTICLES)})\s+\w+),\s+(?!(?:{'|'.join(_ARTICLES)}|{_COUNTED}|and|or)\b)", re.IGNORECASE
)
_NO_OBJECT = {"it", "they", "them", "he", "she", "him", "there", "each", "other", "themselves", "itself", "both"}
_NO_OBJECT |= {"top", "bottom", "left", "right", "side", "front", "back", "middle", "center", "centre", "not", "view"}

_PLURALS = {
    "people": "person",
    "men": "man",
    "buses": "bus",
    "women": "woman",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
    "wolves": "wolf",
    "knives": "knife",
    "leaves": "leaf",
    "loaves": "loaf",
    "shelves": "shelf",
    "scarves": "scarf",
    "calves": "calf",
    "halves": "half",
    "cookies": "cookie",
    "movies": "movie",
    "ties": "tie",
    "pies": "pie",
    "shoes": "shoe",
    "horses": "horse",
    "houses": "house",
    "vases": "vase",
    "roses": "rose",
    "noses": "nose",
    "cases": "case",
    "suitcases": "suitcase",
    "briefcases": "briefcase",
    "bookcases": "bookcase",
    "axes": "axe",
    "canoes": "canoe",
    "toes": "toe",
}
_UNCHANGED = {"sheep", "fish", "deer", "scissors", "glasses", "pants", "jeans", "trousers", "shorts", "skis", "series"}


def singular(noun: str) -> str:
    """One of what ``noun`` names several of, by the rules of English spelling and a list of exceptions.

    -ies becomes -y; -sses, -shes, -ches, -xes and -zes lose -es; another -s goes, but not from -ss, -us or
    -is.
    """
    lower = noun.lower()
    if lower in _PLURALS:
        return _PLURALS[lower]
    if lower in _UNCHANGED or len(lower) < 4 or not lower.endswith("s") or lower.endswith(("ss", "us", "is")):
        return noun
    if lower.endswith("ies"):
        return noun[:-3] + "y"
    if lower.endswith(("sses", "shes", "ches", "xes", "zes", "oes")):
        return noun[:-2]
    return noun[:-1]


def _head(words: Sequence[str]) -> int:
    """Place of the noun that a phrase is about: before the first "of", or the last word."""
    return list(words).index("of") - 1 if "of" in words[1:] else len(words) - 1


def with_article(words: str) -> str:
    """``words`` behind "a" or "an", by their first letter; plurals that stay plural take none."""
    last = words.split()[_head(words.split())].lower()
    plural = last in _UNCHANGED - {"sheep", "fish", "deer", "series"} or singular(last) != last
    return words if plural else f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def read_phrase(text: str) -> tuple[str, int] | None:
    """One object phrase and its count out of a piece of text, or None where it names no object.

    "two red circles" is ("a red circle", 2), "the blue vase" is ("a blue vase", 1), "2 x cat", "cat (2)" and
    "2 black cat" are read alike. A plural without a number ("brown shoes") stays plural, with count 1.
    """
    text = re.sub(r"[\"'*_`]", "", " ".join(text.split())).strip(" \t.,;:!?-")
    count = 1
    trailing = re.search(r"(?:\(\s*[x\u00d7]?\s*(\d{1,2})\s*\)|\s[x\u00d7]\s*(\d{1,2}))\Z", text)
    if trailing is not None:
        count = int(trailing[1] or trailing[2])
        text = text[: trailing.start()].strip()
    words = text.split()
    while words and words[0].lower() in _ARTICLES:
        words = words[1:]
    counted = trailing is not None
    if words and re.fullmatch(rf"{_COUNTED}|\d{{1,2}}[x\u00d7]", words[0], re.IGNORECASE):
        number = words[0].lower()
        count = _NUMBER_OF[number] if number in _NUMBER_OF else int(number.rstrip("x\u00d7"))
        counted = True
        words = words[1:]
        if words and words[0].lower() in ("x", "\u00d7", "of"):
            words = words[1:]
    while words and words[0].lower() in _ARTICLES:
        words = words[1:]
    no_object = not words or len(words) > MAX_WORDS or words[-1].lower() in _NO_OBJECT
    if no_object or not 1 <= count <= MAX_COUNT or not re.search(r"[^\W\d_]", " ".join(words)):
        return None
    if counted:
        head = _head(words)
        words[head] = singular(words[head])
    return with_article(" ".join(words)), count


def _without_runs(text: str) -> str:
    """The same with each run of white space as one space or line's end: patterns look at a run again and again."""
    return _RUN.sub(lambda run: "\n" if "\n" in run[0] else " ", text)


_RUN = re.compile(r"\s{2,}")


def gather(pieces: Sequence[str]) -> Phrases:
    """The phrases of several pieces of text; what is named twice is asked for as often as both say."""
    counts: dict[str, int] = {}
    for piece in pieces:
        found = read_phrase(piece)
        if found is not None:
            counts[found[0]] = counts.get(found[0], 0) + found[1]
    return Phrases(tuple(counts), tuple(counts.values()))


def split_prompt(text: str) -> Phrases:
    """A plain split of a prompt into its object phrases, without any model of language.

    A lead-in ("a photo of") goes, and so does what stands behind "without" or "no". The rest is cut at
    punctuation, conjunctions, prepositions and relations ("next to", "on the left of", "with"), auxiliary
    verbs with the word in -ing or -ed behind them, and before an article, possessive or number in mid-piece. A
    word in -ing at the start of a piece, or in -ed at its end, goes. What is left, without its article,
    is a phrase (see ``read_phrase``). Other verbs and adverbs are not known: "the ripe apples hung low" gives
    "a ripe apples hung low". Where nothing is left, the whole prompt is the one phrase.
    """
    pieces = []
    text_left = _ADJECTIVES.sub(r"\1 ", _UNWANTED.sub(",", _LEAD_IN.sub("", _without_runs(text))))
    for part in _BETWEEN.split(text_left):
        for piece in _NEXT_OBJECT.split(part.strip()):
            pieces.append(_DONE.sub("", _DOING.sub("", piece.strip())))
    found = gather(pieces)
    return found if found.phrases else Phrases((text.strip(),), (1,))


def noun_chunks(document: Any) -> Phrases:
    """The object phrases of a spaCy ``Doc`` with a parse: its noun chunks, pronouns left out."""
    return gather([chunk.text for chunk in document.noun_chunks if chunk.root.pos_ != "PRON"])


def parse_phrases(reply: str, prompt: str) -> Phrases | None:
    """Reads the list of objects out of a judge's reply; None where it holds none.

    Expected is one object a line, with bullets, numbering, quotes and counts as may be; a JSON list of
    texts does as well, also in a code fence, and so does one line with commas. What follows the thinking
    counts. A line that shares no word with the prompt, or is longer than ``MAX_WORDS``, is not believed:
    the judge made it up, or it is prose.
    """
    text = after_thinking(reply)
    if text is None:
        return None
    known = {singular(word) for word in re.findall(r"\w+", prompt.lower())}
    believed = []
    for line in _lines(_without_runs(text)):
        words = {singular(word) for word in re.findall(r"\w+", line.lower())} - set(_ARTICLES)
        if words & known and len(line.split()) <= MAX_WORDS:
            believed.append(line)
    found = gather(believed)
    return found if found.phrases else None


def _lines(text: str) -> list[str]:
    """The entries of a list as text: of a JSON list, or one a line without bullets and numbering."""
    start, end = text.find("["), text.rfind("]")
    if 0 <= start < end:
        try:
            value = parse_json(text[start : end + 1])
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return value
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("```")]
    lines = [re.sub(r"\A(?:[-*\u2022+]|\(?\d{1,2}[.)](?=\s))\s*", "", line) for line in lines]
    if len(lines) == 1:
        return re.split(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+", lines[0])
    return lines
