"""How the judge's opinion is read: one class per readout, all with one method, ``read``.

A readout turns a batch of requests (each a question and a text about an image) into scores in [-1, 1]. The judge's
parameters are whole on every rank (inside ``engine.gathered()``, or a frozen copy), so no call communicates and ranks
may make different numbers of them:

- ``LogprobReadout``: one prefill.
- ``LikelihoodReadout``: one teacher-forced pass.
- ``GenerateReadout``: one decoding, then at most ``retries`` more for the replies that could not be read.

``judge.judge_samples`` calls them. The functions at the end turn log-probabilities into scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.config import Config
from srum_ds.config.choices import READOUTS
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.parsing import RegionReply, parse_regions, parse_reply
from srum_ds.types import Status


@dataclass(frozen=True)
class Request:
    """One thing to ask. ``picture`` indexes the batch's images; ``name`` seeds what is random about it.

    ``question``: the rendered template. ``text``: the prompt or phrase itself, whose likelihood may be
    asked for.
    """

    picture: int
    question: str
    text: str
    name: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Replies:
    """score_Q: float32 in [-1, 1], NaN where failed. status_Q: int64 of ``Status``. raw: as said."""

    score_Q: Tensor
    status_Q: Tensor
    raw: tuple[str, ...]


class Readout(Protocol):
    """Reads the judge's opinion in one particular way."""

    @property
    def needs_question(self) -> bool:
        """Whether a question must name the prompt or phrase (or must not, for the text itself is scored)."""
        ...

    @property
    def think(self) -> bool:
        """Whether questions ask the judge to think first."""
        ...

    @property
    def cure(self) -> str:
        """What to look at where too many answers could not be used, for the message that ends the run."""
        ...

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request]) -> Replies:
        """Scores of all requests about these images, in order."""
        ...


@dataclass(frozen=True)
class LogprobReadout:
    """P(yes) against P(no), or the expected rating on a scale, from one prefill.

    answers: spellings of yes, then as many of no. scale: ratings from worst to best, instead of
    answers; empty: none. min_mass: see ``yes_no_score``.
    """

    answers: tuple[str, ...] = ("yes", "no")
    scale: tuple[str, ...] = ()
    min_mass: float = 0.05
    needs_question = True
    think = False
    cure = "none of judge.answers (or judge.scale) gets a probability of judge.min_mass"

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request]) -> Replies:
        """See ``Readout``."""
        answers = self.scale or self.answers
        logprobs_QA = judge.answer_logprobs(
            pictures, [r.question for r in requests], answers, [r.picture for r in requests]
        )
        _check_shape(logprobs_QA, len(requests), len(answers))
        logprobs_QA = logprobs_QA.detach().float().cpu()
        score_Q, status_Q = (scale_score if self.scale else yes_no_score)(logprobs_QA, self.min_mass)
        rows = logprobs_QA.exp().tolist()
        raw = tuple(" ".join(f"{a}={p:.3g}" for a, p in zip(answers, row, strict=True)) for row in rows)
        return Replies(score_Q, status_Q, raw)


@dataclass(frozen=True)
class LikelihoodReadout:
    """How much likelier the image makes the text than a blank one: see ``likelihood_score``.

    The blank is black and has the images' size; its texts are scored in the same pass, each once.
    temperature: nats per token. ask: whether the question is put before the text.
    """

    temperature: float = 1.0
    ask: bool = False
    needs_question = False
    think = False
    cure = "the model's log-probabilities are no numbers"

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request]) -> Replies:
        """See ``Readout``."""
        if not requests:
            return Replies(torch.zeros(0), torch.zeros(0, dtype=torch.int64), ())
        row_of: dict[tuple[str, str], int] = {}
        for request in requests:
            row_of.setdefault((request.question, request.text), len(row_of))
        count, blank = len(requests), len(pictures)
        value_M = judge.text_logprob(
            [*pictures, torch.zeros_like(pictures[0])],
            [*(r.text for r in requests), *(text for _, text in row_of)],
            [*(r.question for r in requests), *(question for question, _ in row_of)] if self.ask else None,
            [*(r.picture for r in requests), *([blank] * len(row_of))],
        )
        _check_shape(value_M, count + len(row_of))
        value_M = value_M.detach().float().cpu()
        value_Q = value_M[:count]
        blank_Q = value_M[count:][[row_of[r.question, r.text] for r in requests]]
        score_Q, status_Q = likelihood_score(value_Q, blank_Q, self.temperature)
        pairs = zip(value_Q.tolist(), blank_Q.tolist(), strict=True)
        return Replies(score_Q, status_Q, tuple(f"log p={v:.4g} blank={b:.4g}" for v, b in pairs))


@dataclass(frozen=True)
class GenerateReadout:
    """A written reply, parsed.

    answers: bare words that count as 1 and -1, see ``parse_reply``. max_new_tokens: length of every
    reply; texts end at the model's end token. think: for the templates. temperature: of the first
    asking, 0 is greedy. retries: how often a reply that cannot be read is asked for again, with another
    seed and at ``retry_temperature``. seed: the run's.
    """

    answers: tuple[str, ...] = ()
    max_new_tokens: int = 512
    think: bool = False
    temperature: float = 0.0
    retries: int = 2
    retry_temperature: float = 0.7
    seed: int = 0
    needs_question = True
    cure = "no score was found; see the templates, judge.max_new_tokens and judge.retries"

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request]) -> Replies:
        """See ``Readout``."""
        texts = self.replies(judge, pictures, requests, lambda _, text: self._unread(text))
        found = [parse_reply(text, self.answers) for text in texts]
        score_Q = torch.tensor([score for score, _ in found], dtype=torch.float32)
        status_Q = torch.tensor([int(status) for _, status in found], dtype=torch.int64)
        return Replies(score_Q, status_Q, tuple(texts))

    def read_regions(
        self,
        judge: Judge,
        pictures: Sequence[Tensor],
        requests: Sequence[Request],
        counts: Sequence[int],
    ) -> tuple[list[list[RegionReply]], list[str]]:
        """One request an image, about ``counts`` regions each: what is said of each, and the replies."""

        def unread(position: int, text: str) -> int:
            return sum(reply.status == Status.FAILED for reply in parse_regions(text, counts[position]))

        texts = self.replies(judge, pictures, requests, unread)
        return [parse_regions(text, count) for text, count in zip(texts, counts, strict=True)], texts

    def replies(
        self,
        judge: Judge,
        pictures: Sequence[Tensor],
        requests: Sequence[Request],
        unread: Callable[[int, str], int],
    ) -> list[str]:
        """A reply to each request: of all askings the one with the least that is ``unread(position, reply)``."""
        texts = self._answer(judge, pictures, requests, self.temperature, 0)
        lacks = [unread(position, text) for position, text in enumerate(texts)]
        for attempt in range(1, self.retries + 1):
            again = [position for position, lack in enumerate(lacks) if lack]
            if not again:
                break
            asked = [requests[position] for position in again]
            new = self._answer(judge, pictures, asked, self.retry_temperature, attempt)
            for position, text in zip(again, new, strict=True):
                lack = unread(position, text)
                if lack < lacks[position]:
                    texts[position], lacks[position] = text, lack
        return texts

    def _unread(self, text: str) -> int:
        return int(parse_reply(text, self.answers)[1] == Status.FAILED)

    def _answer(
        self,
        judge: Judge,
        pictures: Sequence[Tensor],
        requests: Sequence[Request],
        temperature: float,
        attempt: int,
    ) -> list[str]:
        used = sorted({request.picture for request in requests})
        place = {picture: position for position, picture in enumerate(used)}
        texts = judge.answer(
            [pictures[picture] for picture in used],
            [request.question for request in requests],
            self.max_new_tokens,
            [place[request.picture] for request in requests],
            temperature=temperature,
            seeds=[seeds.derive("judge", self.seed, *request.name, attempt) for request in requests],
        )
        if len(texts) != len(requests):
            raise ValueError(f"the judge returned {len(texts)} answers to {len(requests)} questions")
        return texts


# ---- by name


def readout_of(cfg: Config) -> Readout:
    """The readout that ``judge.readout`` names: built in, of a package, or the user's own ``module:name``."""
    return cast(Readout, READOUTS.get(cfg.judge.readout)(cfg))


def logprob_readout(cfg: Config) -> Readout:
    """``judge.readout=logprob``."""
    return LogprobReadout(cfg.judge.answers, cfg.judge.scale, cfg.judge.min_mass)


def likelihood_readout(cfg: Config) -> Readout:
    """``judge.readout=likelihood``."""
    return LikelihoodReadout(cfg.judge.likelihood_temperature, ask=cfg.judge.caption_template is not None)


def generate_readout(cfg: Config) -> Readout:
    """``judge.readout=generate``."""
    j = cfg.judge
    return GenerateReadout(
        j.answers, j.max_new_tokens, j.think, j.temperature, j.retries, j.retry_temperature, cfg.run.seed
    )


# ---- from log-probabilities to a score in [-1, 1] and its status


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


def _check_shape(values: Tensor, *expected: int) -> None:
    if tuple(values.shape) != expected:
        raise ValueError(f"the judge returned {tuple(values.shape)}, expected {expected}")
