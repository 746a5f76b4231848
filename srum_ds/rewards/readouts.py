"""What was said: from answer probabilities or a written reply to a score in [-1, 1] and its status."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from srum_ds.models.base import Status


def yes_no_score(logprobs_QA: Tensor, min_mass: float = 0.05) -> tuple[Tensor, Tensor]:
    """The judge's yes against its no: 2 P(yes) / (P(yes) + P(no)) - 1.

    Args:
        logprobs_QA: natural log-probabilities [Q, A] of the answers' first tokens, A even: the first
            half of the columns are spellings of yes, the second half of no (usually A = 2).
        min_mass: an answer counts only if yes and no together carry at least this probability; a
            judge that puts its mass on other words has not answered the question.

    Returns:
        (score_Q float32 in [-1, 1], status_Q int64 of ``Status``). Too little mass or a value that is
        not a number is FAILED, and its score NaN. A probability of exactly 0 is a valid answer.

    Raises:
        ValueError: A is odd or 0, or a row's probabilities sum to more than 1 (logits, or one token
            listed twice).
    """
    if logprobs_QA.ndim != 2 or logprobs_QA.shape[1] == 0 or logprobs_QA.shape[1] % 2 == 1:
        raise ValueError(f"expected log-probabilities [Q, A] with A even, got {tuple(logprobs_QA.shape)}")
    half = logprobs_QA.shape[1] // 2
    yes_Q = torch.logsumexp(logprobs_QA[:, :half].double(), dim=1)
    no_Q = torch.logsumexp(logprobs_QA[:, half:].double(), dim=1)
    mass_Q = yes_Q.exp() + no_Q.exp()
    if bool((torch.isfinite(mass_Q) & (mass_Q > 1.001)).any()):
        raise ValueError("answer probabilities sum to more than 1: these are not log-probabilities")
    # 2 p / (p + q) - 1 = tanh((log p - log q) / 2), which holds its precision near -1 and 1.
    score_Q = torch.tanh((yes_Q - no_Q) / 2).float()
    answered_Q = torch.isfinite(score_Q) & torch.isfinite(mass_Q) & (mass_Q >= min_mass)
    score_Q = torch.where(answered_Q, score_Q, torch.nan)
    status_Q = torch.where(answered_Q, int(Status.PARSED), int(Status.FAILED))
    return score_Q, status_Q


_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2014": "-", "\uff0d": "-"})

# A number that ends here: "0.7" in "0.7." counts, in "0.7x", "0.7.1" or "0,7" (decimal comma, which
# would read as 0) it does not. Possessive digits keep the engine from settling for a part of it.
_NUMBER = r"(?P<value>[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+)(?![\w]|[.,]\d)"
_OVER = r"(?:\s*(?:/|out\s+of)\s*(?P<over>\d++(?:\.\d++)?+)(?![\w]|[.,/]\d)|\s*(?P<percent>%))"
_RATING = rf"{_NUMBER}{_OVER}?+"
_NOT_A_RANGE = r"(?!\s*(?:to\b|\.\.|\u2026)\s*[-+]?[\d.]|\s*,\s*[-+]?[\d.]+\s*[\])])"
_DECORATION = r"[\s*_`~\"'\[\](){}<>$\\#|:=]*"
_BOXED = r"(?:\\?boxed\{)?"

# Score: / **Score**: / Score (from -1 to 1) = / a heading "Score" with the number below it
_LABEL = r"\bscore\b(?:[^\n:=]{0,40}[:=]|[*_]*[ \t]*\n)"
_SAID = r"\bscore\s+(?:is|of|would\s+be)\b"

_LABELLED = re.compile(_LABEL, re.IGNORECASE)
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
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
    in this order: the number after a "score" label, a bold number, a bracketed number, a fraction
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
    opened, closed = text.rfind("<think>"), text.rfind("</think>")
    if opened > closed:
        return math.nan, Status.FAILED
    reply = text if closed < 0 else text[closed + len("</think>") :]
    reply = reply.translate(_MINUS)
    patterns = _PATTERNS[:1] if _LABELLED.search(reply) else _PATTERNS
    for pattern in patterns:
        found = pattern.search(reply)
        if found is not None:
            return _on_scale(found, low, high)
    return math.nan, Status.FAILED


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
