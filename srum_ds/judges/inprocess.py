"""Asks a model in this process: pictures in batches, conversations turn by turn, each failure that of one ask."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from PIL import Image

from srum_ds.common.errors import UserError
from srum_ds.judges.pictures import decode_png
from srum_ds.judges.protocol import Ask, Reply


@dataclass(frozen=True)
class Talk:
    """A conversation about a picture so far. replies: to the turns before; the turn after them is to be answered."""

    ask: Ask
    picture: Image.Image
    replies: tuple[str, ...] = ()


class Speaker(Protocol):
    """A model that answers batches of conversations. ValueError or UserError for one that it cannot take."""

    def write(self, talks: Sequence[Talk], max_tokens: int) -> Sequence[str]:
        """The next reply of each, greedy, of at most so many tokens."""
        ...

    def weigh(self, talks: Sequence[Talk], answers: Sequence[str]) -> Sequence[Sequence[float]]:
        """The probability of each answer as the reply's first token, of each conversation."""
        ...


def ask_in_batches(speaker: Speaker, asks: Iterable[Ask], batch: int) -> Iterator[tuple[int, Reply]]:
    """``PictureJudge.ask`` of a model in this process: ``batch`` asks are drawn and answered together.

    Where a batch fails, each of its asks is tried alone, so that one bad picture costs itself alone.
    """
    numbered = enumerate(asks)
    while drawn := list(islice(numbered, batch)):
        start = time.monotonic()
        found = _answer(speaker, [ask for _, ask in drawn])
        share = (time.monotonic() - start) / len(drawn)
        for (position, _), reply in zip(drawn, found, strict=True):
            yield position, replace(reply, seconds=share)


def _answer(speaker: Speaker, asks: Sequence[Ask]) -> list[Reply]:
    """The replies to a batch, in order."""
    talks: dict[int, Talk] = {}
    replies: dict[int, Reply] = {}
    for number, ask in enumerate(asks):
        try:
            talks[number] = Talk(ask, decode_png(ask.picture))
        except ValueError as error:
            replies[number] = Reply(error=str(error))
    # Those that are answered likewise go through the model together.
    alike: dict[tuple[tuple[str, ...], int, int], list[int]] = {}
    for number, talk in talks.items():
        question = talk.ask.question
        alike.setdefault((question.answers, question.max_tokens, len(question.turns)), []).append(number)
    for (answers, max_tokens, turns), numbers in alike.items():
        group = [talks[number] for number in numbers]
        found = _weighed(speaker, group, answers) if answers else _written(speaker, group, max_tokens, turns)
        replies |= dict(zip(numbers, found, strict=True))
    return [replies[number] for number in range(len(asks))]


def _written(speaker: Speaker, talks: Sequence[Talk], max_tokens: int, turns: int) -> list[Reply]:
    try:
        for _ in range(turns):
            said = speaker.write(talks, max_tokens)
            pairs = zip(talks, said, strict=True)
            talks = [replace(talk, replies=(*talk.replies, text)) for talk, text in pairs]
        return [Reply(talk.replies, attempts=turns) for talk in talks]
    except (ValueError, UserError) as error:
        if len(talks) == 1:
            return [Reply(attempts=len(talks[0].replies) + 1, error=str(error))]
    return [_written(speaker, [replace(talk, replies=())], max_tokens, turns)[0] for talk in talks]


def _weighed(speaker: Speaker, talks: Sequence[Talk], answers: Sequence[str]) -> list[Reply]:
    try:
        rows = [tuple(float(value) for value in row) for row in speaker.weigh(talks, answers)]
    except (ValueError, UserError) as error:
        if len(talks) == 1:
            return [Reply(error=str(error))]
        return [_weighed(speaker, [talk], answers)[0] for talk in talks]
    return [_checked(row) for row in rows]


def _checked(row: tuple[float, ...]) -> Reply:
    if not all(math.isfinite(value) for value in row):
        return Reply(error=f"the probabilities of the answers are no numbers: {list(row)}")
    return Reply(probabilities=row)
