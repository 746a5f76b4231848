"""What a benchmark asks about a picture, what comes back, and what a judge must offer. Nothing here is of any judge.

A judge is registered in ``srum_ds/config/choices.py`` or by an entry point of the group ``srum_ds.judges``. The
evaluation asks it through ``store``, which keeps every reply and asks only for what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Question:
    """A short conversation about one picture, or one question that is answered by probabilities.

    key: its name among the questions about one picture of one prompt. turns: what the user says, one after the other,
    each after the reply to the one before; the picture goes with the first. system: the system turn, empty: none.
    picture_first: whether the picture stands before the first turn's text. max_tokens: of each reply, at most. schema:
    a JSON schema that the last reply should follow, None: prose. answers: not empty for a question that is answered
    by the probabilities of these words (yes, then no, as ``judge.answers``) instead of by writing; it has one turn.
    """

    key: str
    turns: tuple[str, ...]
    system: str = ""
    picture_first: bool = True
    max_tokens: int = 512
    schema: Mapping[str, Any] | None = None
    answers: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Hash of all that is asked (not of ``key``), 64 hexadecimal digits."""
        said = [self.system, self.picture_first, self.max_tokens, list(self.turns), self.schema, list(self.answers)]
        return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Ask:
    """One question about one picture. picture: the bytes of a PNG file, as they lie. seed: of what is random."""

    question: Question
    picture: bytes
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """What a judge said. texts: one a turn. probabilities: of ``question.answers``, in their order.

    attempts: requests that were made, >= 1 (0: it was not asked, as in a replay that lacks it). error: empty, or why
    there is no reply: texts and probabilities are then empty, and the picture counts as a failure, never as a score.
    """

    texts: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    attempts: int = 1
    error: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def text(self) -> str:
        """The last turn's reply, empty where there is none."""
        return self.texts[-1] if self.texts else ""


@dataclass(frozen=True)
class JudgeSettings:
    """What the command line says of a judge; each kind reads what it needs and refuses what it cannot obey.

    url: of an OpenAI-compatible server, such as http://host:8000/v1. model: the name that the server knows, or a folder
    or hub id of a local model. replies: files of recorded replies. concurrency: requests in flight at once, > 0.
    timeout: seconds for one request, > 0. retries: further attempts after the first, >= 0. device: of a local model.
    kind: design of the model under test, as ``model.kind``. batch: pictures at once in a local model, > 0.
    """

    url: str = ""
    model: str = ""
    replies: tuple[Path, ...] = ()
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 4
    device: str = ""
    kind: str = "auto"
    batch: int = 16


@runtime_checkable
class PictureJudge(Protocol):
    """Answers questions about pictures. It is closed when it is no longer asked."""

    @property
    def kind(self) -> str:
        """How it is reached, as the command line names it: http, transformers, self, replay."""
        ...

    @property
    def model(self) -> str:
        """Which model answers, so that two different ones never share a name (a hash of its weights where known)."""
        ...

    @property
    def under_test(self) -> bool:
        """Whether it is the model whose pictures are judged: its figures are marked so wherever they stand."""
        ...

    def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
        """(position among the asks, reply) for each, in any order, each as soon as it is known.

        The asks are drawn from the iterable as they are needed, so that pictures are not all in memory. What goes
        wrong with one ask is its reply's ``error``; UserError is for what no ask can succeed with (a wrong address, a
        refused key, an unknown model), and names what to change.
        """
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...
