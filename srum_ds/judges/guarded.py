"""A judge of picture files that a user's own code makes: what it gives is looked at before it is used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from srum_ds.common import foreign
from srum_ds.judges.protocol import Ask, PictureJudge, Reply

_END = object()


class GuardedJudge:
    """``PictureJudge`` of foreign code. It raises UserError for whatever that code raises or should not give."""

    def __init__(self, name: str, judge: PictureJudge) -> None:
        """name: the option with what it names, for messages."""
        self._where = name
        self._judge = judge

    @property
    def kind(self) -> str:
        """See ``PictureJudge``."""
        return self._text("kind", foreign.run(f"{self._where}: kind", lambda: self._judge.kind))

    @property
    def model(self) -> str:
        """See ``PictureJudge``."""
        return self._text("model", foreign.run(f"{self._where}: model", lambda: self._judge.model))

    @property
    def under_test(self) -> bool:
        """See ``PictureJudge``."""
        found = foreign.run(f"{self._where}: under_test", lambda: self._judge.under_test)
        return foreign.truths(f"{self._where}: under_test", [found], 1, "a truth value")[0]

    def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
        """See ``PictureJudge``. UserError too for an ask that is left without a reply, or has two."""
        what = f"{self._where}: ask"
        expected = "pairs of an ask's position, from 0, and its Reply, one for each ask"
        drawn = 0

        def counted() -> Iterator[Ask]:
            nonlocal drawn
            for one in asks:
                drawn += 1
                yield one

        answered: set[int] = set()
        found: Any = foreign.run(what, lambda: self._judge.ask(counted()))
        try:
            replies = foreign.run(what, lambda: iter(found))
        except foreign.ForeignError as error:
            raise foreign.wrong(what, found, expected) from error
        while (pair := foreign.run(what, lambda: next(replies, _END))) is not _END:
            if not isinstance(pair, tuple) or len(pair) != 2 or type(pair[0]) is not int or not _is_reply(pair[1]):
                raise foreign.wrong(what, pair, expected)
            if not 0 <= pair[0] < drawn or pair[0] in answered:
                raise foreign.ForeignError(
                    f"{what} gave a reply to ask {pair[0]} of {drawn} so far; expected {expected}"
                )
            answered.add(pair[0])
            yield pair
        if len(answered) < drawn:
            raise foreign.ForeignError(f"{what} gave {len(answered)} replies to {drawn} asks; expected {expected}")

    def close(self) -> None:
        """See ``PictureJudge``."""
        foreign.run(f"{self._where}: close", self._judge.close)

    def _text(self, name: str, found: object) -> str:
        if not isinstance(found, str):
            raise foreign.wrong(f"{self._where}: {name}", found, "a text")
        return found


def _is_reply(value: object) -> bool:
    """Whether it is a Reply of texts, finite probabilities and an error in words."""
    if not isinstance(value, Reply):
        return False
    # What stands in it is as foreign as the rest, whatever its class says.
    texts: Any = value.texts
    probabilities: Any = value.probabilities
    error: Any = value.error
    if not isinstance(error, str) or not isinstance(texts, tuple) or not isinstance(probabilities, tuple):
        return False
    told = all(isinstance(text, str) for text in texts)
    return told and all(isinstance(p, float | int) and math.isfinite(p) for p in probabilities)
