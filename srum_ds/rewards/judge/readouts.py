"""How the judge's opinion is read: one class per readout, all with one method, ``read``.

A readout turns a batch of requests (each a question and a text about an image) into scores in [-1, 1]. The judge's
parameters are whole on every rank (inside ``engine.gathered()``, or a frozen copy), so no call communicates and ranks
may make different numbers of them:

- ``LogprobReadout``: one prefill.
- ``LikelihoodReadout``: one teacher-forced pass.
- ``GenerateReadout``: one decoding of all that a rank asks in a step, then at most ``retries`` more for the replies
  that could not be read.

``judge.ask_all`` calls them. ``rewards/scores.py`` turns log-probabilities into scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from srum_ds.common import foreign, seeds
from srum_ds.config import Config
from srum_ds.config.choices import READOUTS
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.parsing import parse_regions, parse_reply
from srum_ds.rewards.scores import likelihood_score, scale_score, yes_no_score
from srum_ds.types import Status


@dataclass(frozen=True)
class Request:
    """One thing to ask. ``picture`` indexes the batch's images; ``name`` seeds what is random about it.

    ``question``: the rendered template. ``text``: the prompt or phrase itself, whose likelihood may be
    asked for. ``regions``: how many regions the reply shall score, 0 where it is about the picture as a whole.
    """

    picture: int
    question: str
    text: str
    name: tuple[int | str, ...] = ()
    regions: int = 0

    @property
    def scores(self) -> int:
        """How many scores its reply gives."""
        return self.regions or 1


@dataclass(frozen=True)
class Replies:
    """score_Q: float32 in [-1, 1], NaN where failed. status_Q: int64 of ``Status``. raw: as said.

    A request about several regions has a score for each of them, one after the other.
    """

    score_Q: Tensor
    status_Q: Tensor
    raw: tuple[str, ...]

    def split(self, counts: Sequence[int]) -> list[Replies]:
        """Consecutive parts with so many scores each."""
        ends = list(accumulate(counts))
        raws = [self.raw[end - count : end] for end, count in zip(ends, counts, strict=True)]
        parts = zip(self.score_Q.split(list(counts)), self.status_Q.split(list(counts)), raws, strict=True)
        return [Replies(*part) for part in parts]


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

    answers: bare words that count as 1 and -1, see ``parse_reply``. max_new_tokens: length of the longest
    reply; texts end at the model's end token. think: for the templates. temperature: of the first
    asking, 0 is greedy. retries: how often a reply that cannot be read is asked for again, with another
    seed and at ``retry_temperature``. seed: the run's. batch: most replies that are written at once, >= 1.
    """

    answers: tuple[str, ...] = ()
    max_new_tokens: int = 512
    think: bool = False
    temperature: float = 0.0
    retries: int = 2
    retry_temperature: float = 0.7
    seed: int = 0
    batch: int = 64
    needs_question = True
    cure = "no score was found; see the templates, judge.max_new_tokens and judge.retries"

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request]) -> Replies:
        """See ``Readout``. Of all askings of a request the reply counts of which the fewest scores cannot be used."""
        texts = self._written(judge, pictures, requests, self.temperature, 0)
        found = [self._scores(text, request) for text, request in zip(texts, requests, strict=True)]
        for attempt in range(1, self.retries + 1):
            again = [position for position, scores in enumerate(found) if _unused(scores)]
            if not again:
                break
            asked = [requests[position] for position in again]
            new = self._written(judge, pictures, asked, self.retry_temperature, attempt)
            for position, text in zip(again, new, strict=True):
                scores = self._scores(text, requests[position])
                if _unused(scores) < _unused(found[position]):
                    texts[position], found[position] = text, scores
        flat = [pair for scores in found for pair in scores]
        return Replies(
            torch.tensor([score for score, _ in flat], dtype=torch.float32),
            torch.tensor([int(status) for _, status in flat], dtype=torch.int64),
            tuple(text for text, scores in zip(texts, found, strict=True) for _ in scores),
        )

    def _scores(self, text: str, request: Request) -> list[tuple[float, Status]]:
        """The scores that a reply to a request gives."""
        if not request.regions:
            return [parse_reply(text, self.answers)]
        return [(reply.score, reply.status) for reply in parse_regions(text, request.regions)]

    def _written(
        self,
        judge: Judge,
        pictures: Sequence[Tensor],
        requests: Sequence[Request],
        temperature: float,
        attempt: int,
    ) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(requests), self.batch):
            asked = requests[start : start + self.batch]
            used = list(dict.fromkeys(request.picture for request in asked))
            place = {picture: position for position, picture in enumerate(used)}
            new = judge.answer(
                [pictures[picture] for picture in used],
                [request.question for request in asked],
                self.max_new_tokens,
                [place[request.picture] for request in asked],
                temperature=temperature,
                seeds=[seeds.derive("judge", self.seed, *request.name, attempt) for request in asked],
            )
            if len(new) != len(asked):
                raise ValueError(f"the judge returned {len(new)} answers to {len(asked)} questions")
            texts.extend(new)
        return texts


def _unused(scores: Sequence[tuple[float, Status]]) -> int:
    return sum(status == Status.FAILED for _, status in scores)


# ---- by name


def readout_of(cfg: Config) -> Readout:
    """The readout that ``judge.readout`` names: built in, of a package, or the user's own ``module:name``.

    UserError for code that fails or makes no readout.
    """
    name = cfg.judge.readout
    make = READOUTS.get(name)
    if name in READOUTS.builtin:
        return cast(Readout, make(cfg))
    what = f"judge.readout={name}"
    found = foreign.run(what, lambda: make(cfg))
    return cast(Readout, found) if foreign.is_own(type(found)) else GuardedReadout(what, found)


def writes(readout: Readout) -> bool:
    """Whether a readout has the judge write, so that all that a step asks is asked in one call."""
    return isinstance(getattr(readout, "inner", readout), GenerateReadout)


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
        j.answers, j.max_new_tokens, j.think, j.temperature, j.retries, j.retry_temperature, cfg.run.seed, j.batch
    )


def _check_shape(values: Tensor, *expected: int) -> None:
    if tuple(values.shape) != expected:
        raise ValueError(f"the judge returned {tuple(values.shape)}, expected {expected}")


# ---- of a user's own

_ATTRIBUTES = {"needs_question": bool, "think": bool, "cure": str}


class GuardedReadout:
    """``Readout`` of foreign code. It raises UserError for whatever that code raises or should not give."""

    def __init__(self, name: str, inner: Any) -> None:
        """name: the setting with what it names, for messages. UserError for what is no readout."""
        self.name = name
        self.inner: Readout = inner
        for attribute, kind in _ATTRIBUTES.items():
            found = foreign.run(name, partial(getattr, inner, attribute, None))
            if not isinstance(found, kind):
                raise foreign.wrong(f"{name}: {attribute} of what it", found, f"a {kind.__name__} (docs/own_code.md)")
        if not callable(getattr(inner, "read", None)):
            raise foreign.wrong(name, inner, "a Readout with a method read (docs/own_code.md)")
        self.needs_question, self.think, self.cure = inner.needs_question, inner.think, inner.cure

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request]) -> Replies:
        """See ``Readout``."""
        own = [picture.clone() for picture in pictures]
        found = foreign.run(self.name, lambda: self.inner.read(judge, own, list(requests)))
        return checked_replies(self.name, found, sum(request.scores for request in requests))


def checked_replies(name: str, found: Any, count: int) -> Replies:
    """A foreign readout's replies to ``count`` questions: scores in [-1, 1], NaN exactly where they are FAILED."""
    expected = (
        f"Replies with {count} scores in [-1, 1] (NaN exactly where the status is FAILED), as many statuses and texts"
    )
    if not isinstance(found, Replies):
        raise foreign.wrong(name, found, expected)
    score_Q = foreign.numbers(f"{name}, score_Q", found.score_Q, count, expected)
    status_Q: Any = found.status_Q
    known = [int(status) for status in Status]
    if not isinstance(status_Q, Tensor) or status_Q.is_floating_point() or status_Q.is_complex():
        raise foreign.wrong(f"{name}, status_Q", status_Q, f"a tensor of {count} whole numbers among {known}")
    status_Q = status_Q.detach().cpu().long()
    if tuple(status_Q.shape) != (count,) or not set(status_Q.tolist()) <= set(known):
        raise foreign.wrong(f"{name}, status_Q", status_Q, f"a tensor of {count} whole numbers among {known}")
    raw = tuple(foreign.items(f"{name}, raw", found.raw, count, f"{count} texts"))
    if not all(isinstance(text, str) for text in raw):
        raise foreign.wrong(f"{name}, raw", raw, f"{count} texts")
    if not torch.equal(score_Q.isnan(), status_Q == int(Status.FAILED)):
        at = int((score_Q.isnan() != (status_Q == int(Status.FAILED))).nonzero()[0])
        raise foreign.ForeignError(
            f"{name} returned the score {float(score_Q[at])} with the status {Status(int(status_Q[at])).name} for "
            f"question {at} of {count}; expected {expected}"
        )
    outside = score_Q.abs() > 1
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        raise foreign.ForeignError(
            f"{name} returned the score {float(score_Q[at]):g} for question {at} of {count}; expected {expected}"
        )
    return Replies(score_Q, status_Q, raw)
