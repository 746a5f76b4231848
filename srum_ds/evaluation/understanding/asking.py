"""Asks a model questions with answers to choose from, and reads which one it chose."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.evaluation.understanding.items import Item
from srum_ds.models.protocol import Judge

READOUTS = ("logprob", "generate")
MIN_MASS = 0.05
"""The options together must carry at least this probability; else the model has not answered the question."""

# A capital letter that stands alone and is no article or pronoun: no word follows but "or", "and", "is".
_LETTER = re.compile(r"\b([A-J])\b(?!'|\s+(?!or\b|and\b|is\b)[a-z])")

NEW_TOKENS = 16
"""Longest written answer."""


@dataclass(frozen=True)
class Answer:
    """What a model answered. said: one of the item's options, empty where it failed. failure: why, or empty.

    words: the written answer, or the options' probabilities.
    """

    key: str
    said: str
    right: bool
    failure: str = ""
    words: str = ""


def ask_items(
    model: Judge,
    items: Sequence[Item],
    readout: str = "logprob",
    batch: int = 16,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """One answer for each item, in their order.

    readout: ``logprob`` takes the likeliest option by its first token's probability, in one prefill; ``generate`` reads
    a greedy answer. on_batch: told (items done, all). UserError for another readout and for a picture that is broken.
    """
    if readout not in READOUTS:
        raise UserError(f"--readout {readout!r} is unknown; expected {' or '.join(READOUTS)}")
    found: dict[int, Answer] = {}
    # One call has one list of options.
    by_options: dict[tuple[str, ...], list[int]] = {}
    for place, item in enumerate(items):
        by_options.setdefault(item.options, []).append(place)
    for options, places in by_options.items():
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            asked = [items[place] for place in part]
            answers = _chosen(model, asked, options) if readout == "logprob" else _written(model, asked)
            found.update(zip(part, answers, strict=True))
            if on_batch is not None:
                on_batch(len(found), len(items))
    return [found[place] for place in range(len(items))]


def _chosen(model: Judge, items: Sequence[Item], options: Sequence[str]) -> list[Answer]:
    spelled = [spellings(option) for option in options]
    words = [word for words in spelled for word in words]
    images, index = _pictures(items)
    shares_QA = model.answer_logprobs(images, [item.question for item in items], words, index).double().exp().tolist()
    answers = []
    for item, shares in zip(items, shares_QA, strict=True):
        of_option, start = [], 0
        for several in spelled:
            of_option.append(sum(shares[start : start + len(several)]))
            start += len(several)
        answers.append(choose(item, of_option))
    return answers


def spellings(option: str) -> tuple[str, ...]:
    """How an option may begin an answer: yes and no with a capital too, anything else as it stands."""
    return (option, option.capitalize()) if option in ("yes", "no") else (option,)


def choose(item: Item, shares: Sequence[float]) -> Answer:
    """The likeliest of the item's options by their probabilities; a failure where they carry too little of it."""
    words = "  ".join(f"{option} {share:.3f}" for option, share in zip(item.options, shares, strict=True))
    if not all(math.isfinite(share) for share in shares) or sum(shares) < MIN_MASS:
        return Answer(item.key, "", False, f"the options carry {sum(shares):.3f} of the probability", words)
    said = item.options[list(shares).index(max(shares))]
    return Answer(item.key, said, said == item.answer, "", words)


def _written(model: Judge, items: Sequence[Item]) -> list[Answer]:
    images, index = _pictures(items)
    texts = model.answer(images, [item.question for item in items], NEW_TOKENS, index)
    answers = []
    for item, text in zip(items, texts, strict=True):
        said = read_choice(text, item.options, item.texts)
        failure = "" if said else "the answer names no option, or several"
        answers.append(Answer(item.key, said, bool(said) and said == item.answer, failure, text))
    return answers


def read_choice(text: str, options: Sequence[str], texts: Sequence[str] = ()) -> str:
    """The one option that a written answer names; empty where it names none, or several.

    In this order: the answer begins with an option and ends there or goes on after a mark (``B``, ``(B)``, ``B. a
    cat``, ``yes, it is``); it names one option alone as a word of its own, letters only as capitals that no word
    follows as their article would be; it contains the text of one option alone.
    """
    said = text.strip().strip("*_`\"'")
    lowered = said.lower()
    words = not all(len(option) == 1 for option in options)
    for option in options:
        pattern = rf"\(?{re.escape(option.lower() if words else option)}\)?(?:[\s]*$|[.,:;!)\n])"
        if re.match(pattern, lowered if words else said):
            return option
    if words:
        named = [option for option in options if re.search(rf"\b{re.escape(option.lower())}\b", lowered)]
    else:
        found = _LETTER.findall(said)
        named = [option for option in options if option in found]
    if len(named) == 1:
        return named[0]
    if named:
        return ""
    shown = [option for option, label in zip(options, texts, strict=False) if label and label.lower() in lowered]
    return shown[0] if len(shown) == 1 else ""


def _pictures(items: Sequence[Item]) -> tuple[list[Tensor], list[int]]:
    images: list[Tensor] = []
    places: dict[object, int] = {}
    index = []
    for item in items:
        if item.picture not in places:
            places[item.picture] = len(images)
            images.append(item.pixels())
        index.append(places[item.picture])
    return images, index
