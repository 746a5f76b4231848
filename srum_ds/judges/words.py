"""Which answer a first token stands for, and the probabilities of answers from those of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def answer_of(token: str, answers: Sequence[str]) -> int | None:
    """The position of the answer that a token spells; None where it spells none.

    White space around a token and the case of its letters do not count, but where answers differ in case alone
    (``yes``, ``Yes``) each has its own spelling. A token that is only the beginning of an answer is none.
    """
    spelled = token.strip()
    if not spelled:
        return None
    exact = [answer.strip() for answer in answers]
    if spelled in exact:
        return exact.index(spelled)
    folded = [answer.casefold() for answer in exact]
    return folded.index(spelled.casefold()) if spelled.casefold() in folded else None


def answer_probabilities(tokens: Iterable[tuple[str, float]], answers: Sequence[str]) -> tuple[tuple[float, ...], int]:
    """(probability of each answer, how many tokens spelled one) from (token, its natural log-probability) pairs.

    The probabilities of an answer's spellings ("yes", " Yes", "YES") are added up; an answer that no token spells has
    0. Log-probabilities that are no numbers count as 0.
    """
    found = [0.0] * len(answers)
    spelled = 0
    for token, logprob in tokens:
        position = answer_of(token, answers)
        if position is None or math.isnan(logprob):
            continue
        # Servers write -9999 for a probability of 0.
        found[position] += math.exp(min(logprob, 0.0))
        spelled += 1
    return tuple(min(value, 1.0) for value in found), spelled
