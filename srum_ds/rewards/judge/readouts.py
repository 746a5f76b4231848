"""How the judge is asked: one class a readout, all with one method, ``read``.

A readout turns a batch of requests (each a question and a text about a picture) into scores in
[-1, 1]. ``read`` makes a number of model calls that depends on the batch and on ``agree`` alone:

- ``LogprobReadout``: one prefill.
- ``LikelihoodReadout``: one teacher-forced pass.
- ``GenerateReadout``: one decoding of a fixed length, then at most ``retries`` more for the replies that
  could not be read. How many of those there are differs between ranks. Where the judge's parameters are
  whole on every rank (inside ``engine.gathered()``, or a frozen copy), no call communicates and each
  rank asks again for its own failures only. Where they are sharded, every call is collective:
  ``agree`` then returns the largest of all ranks' numbers, and a rank with nothing to ask again asks
  something whose reply it throws away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.common.errors import UserError
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.parsing import RegionReply, parse_regions, parse_reply
from srum_ds.rewards.judge.scores import likelihood_score, scale_score, yes_no_score
from srum_ds.rewards.judge.templates import Template
from srum_ds.types import Status

Agree = Callable[[int], int]


def alone(number: int) -> int:
    """``agree`` of a judge whose calls do not communicate."""
    return number


@dataclass(frozen=True)
class Request:
    """One thing to ask. ``picture`` indexes the batch's pictures; ``name`` seeds what is random about it.

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

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request], agree: Agree) -> Replies:
        """Scores of all requests about these pictures, in order."""
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

    def __post_init__(self) -> None:
        if len(self.answers) == 0 or len(self.answers) % 2:
            raise UserError(
                f"judge answers are {list(self.answers)}, expected the spellings of yes, then as many of no"
            )
        if len(self.scale) == 1:
            raise UserError(f"judge.scale is {list(self.scale)}, expected at least two ratings, or none")

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request], agree: Agree) -> Replies:
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
    """How much likelier the picture makes the text than a blank one: see ``likelihood_score``.

    The blank is black and has the pictures' size; its texts are scored in the same pass, each once.
    temperature: nats a token. ask: whether the question is put before the text.
    """

    temperature: float = 1.0
    ask: bool = False
    needs_question = False
    think = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"judge.likelihood_temperature is {self.temperature}, expected a number above 0")

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request], agree: Agree) -> Replies:
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

    def __post_init__(self) -> None:
        if self.retries and not self.retry_temperature > 0:
            raise UserError(
                f"judge.retry_temperature is {self.retry_temperature}: a greedy reply asked for again is the same "
                f"again; set it above 0, or judge.retries=0"
            )

    def read(self, judge: Judge, pictures: Sequence[Tensor], requests: Sequence[Request], agree: Agree) -> Replies:
        """See ``Readout``."""
        texts = self.replies(judge, pictures, requests, agree, lambda _, text: self._unread(text))
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
        agree: Agree,
    ) -> tuple[list[list[RegionReply]], list[str]]:
        """One request a picture, about ``counts`` regions each: what is said of each, and the replies."""

        def unread(position: int, text: str) -> int:
            return sum(reply.status == Status.FAILED for reply in parse_regions(text, counts[position]))

        texts = self.replies(judge, pictures, requests, agree, unread)
        return [parse_regions(text, count) for text, count in zip(texts, counts, strict=True)], texts

    def replies(
        self,
        judge: Judge,
        pictures: Sequence[Tensor],
        requests: Sequence[Request],
        agree: Agree,
        unread: Callable[[int, str], int],
    ) -> list[str]:
        """A reply to each request: of all askings the one with the least that is ``unread(position, reply)``."""
        texts = self._answer(judge, pictures, requests, self.temperature, 0)
        lacks = [unread(position, text) for position, text in enumerate(texts)]
        for attempt in range(1, self.retries + 1):
            again = [position for position, lack in enumerate(lacks) if lack]
            if agree(len(again)) == 0:
                break
            # Elsewhere something failed: make the call all the same.
            asked = [requests[position] for position in again] or list(requests[:1])
            new = self._answer(judge, pictures, asked, self.retry_temperature, attempt)
            for position, text in zip(again, new, strict=False):
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


def check_template(template: Template | None, readout: Readout, variable: str) -> None:
    """UserError where a template cannot serve a readout that is about ``variable`` (prompt or phrase)."""
    if not readout.needs_question:
        if template is not None and template.variables & {"prompt", "phrase"}:
            raise UserError(
                f"judge template {template.name} mentions the prompt or phrase, which gives away the text whose "
                f"likelihood is read; choose one that does not, such as describe"
            )
        return
    if template is None:
        raise UserError("this readout needs a judge template; only likelihood does without")
    if variable not in template.variables:
        raise UserError(
            f"judge template {template.name} never mentions {{{{ {variable} }}}}: every question would "
            f"be the same; use the variable or choose another template"
        )
    if readout.think and "think" not in template.variables:
        raise UserError(
            f"judge.think is on, but judge template {template.name} never mentions {{{{ think }}}}: choose one "
            f"that asks for thinking, such as global_layout_score"
        )


def _check_shape(values: Tensor, *expected: int) -> None:
    if tuple(values.shape) != expected:
        raise ValueError(f"the judge returned {tuple(values.shape)}, expected {expected}")
