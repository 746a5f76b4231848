"""From log-probabilities to a score in [-1, 1] and its status, for the readouts and the filter of regions."""

from __future__ import annotations

import torch
from torch import Tensor

from srum_ds.types import Status


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
    _refuse_logits(mass_Q)
    # 2 p / (p + q) - 1 = tanh((log p - log q) / 2), which holds its precision near -1 and 1.
    return _settled(torch.tanh((yes_Q - no_Q) / 2), mass_Q, min_mass)


def scale_score(logprobs_QA: Tensor, min_mass: float = 0.05) -> tuple[Tensor, Tensor]:
    """The judge's expected rating: sum_a P(a) v_a / sum_a P(a), with v_a evenly spaced over [-1, 1].

    Args:
        logprobs_QA: natural log-probabilities [Q, A] of the ratings' first tokens, A >= 2, from the
            worst rating (v = -1) to the best (v = 1), such as those of "1" to "5".
        min_mass: the ratings together must carry at least this probability to count as an answer.

    Returns:
        (score_Q float32 in [-1, 1], status_Q int64 of ``Status``), FAILED and NaN as in ``yes_no_score``.

    Raises:
        ValueError: fewer than two ratings, or probabilities that sum to more than 1.
    """
    if logprobs_QA.ndim != 2 or logprobs_QA.shape[1] < 2:
        raise ValueError(f"expected log-probabilities [Q, A] of at least two ratings, got {tuple(logprobs_QA.shape)}")
    values_A = torch.linspace(-1.0, 1.0, logprobs_QA.shape[1], dtype=torch.float64, device=logprobs_QA.device)
    logprobs_QA = logprobs_QA.double()
    mass_Q = logprobs_QA.exp().sum(dim=1)
    _refuse_logits(mass_Q)
    score_Q = logprobs_QA.softmax(dim=1) @ values_A
    return _settled(score_Q, mass_Q, min_mass)


def likelihood_score(value_Q: Tensor, blank_Q: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """How much likelier an image makes a text than a blank one does: d / (temperature + |d|), d = value - blank.

    Both are mean log-probabilities a token of the same text, so that d is pointwise mutual information a
    token: 0 where the image says nothing about the text. For one text the score rises strictly with
    log p(text | image), so that the samples of a prompt keep their order; unlike a tanh it still does in
    float32 where d is tens of nats. It depends on its own image and text alone, not on the group or the
    batch: a reward map and the matching of phrases need a score whose sign means something, and the
    objectives that compare samples centre within the group anyway. (Prompt likelihood as a self-reward:
    SpectraReward; the blank as reference is this project's.)

    Args:
        value_Q: mean log p(text | image), natural logarithm.
        blank_Q: mean log p(text | blank image).
        temperature: nats per token that give a score of 1/2, > 0.

    Returns:
        (score_Q float32 in [-1, 1], status_Q): FAILED and NaN where either is not finite.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected a number above 0")
    gain_Q = value_Q.double() - blank_Q.double()
    score_Q = gain_Q / (temperature + gain_Q.abs())
    finite_Q = torch.isfinite(value_Q) & torch.isfinite(blank_Q)
    return _settled(torch.where(finite_Q, score_Q, torch.nan), torch.ones_like(score_Q), 0.0)


def _refuse_logits(mass_Q: Tensor) -> None:
    if bool((torch.isfinite(mass_Q) & (mass_Q > 1.001)).any()):
        raise ValueError("answer probabilities sum to more than 1: these are not log-probabilities")


def _settled(score_Q: Tensor, mass_Q: Tensor, min_mass: float) -> tuple[Tensor, Tensor]:
    """Scores as float32, NaN and FAILED where they are no numbers or carry too little mass."""
    answered_Q = torch.isfinite(score_Q) & torch.isfinite(mass_Q) & (mass_Q >= min_mass)
    score_Q = torch.where(answered_Q, score_Q.float(), torch.nan)
    status_Q = torch.where(answered_Q, int(Status.PARSED), int(Status.FAILED))
    return score_Q, status_Q
