"""What a benchmark must offer. ``loading`` opens one by its name.

A benchmark is a value of ``Benchmark``: which prompts, how one picture is graded (from pixels, by a judge's answers, or
from a detector's boxes), and how grades become the figures that its authors report. It is registered in
``srum_ds/config/choices.py`` or by an entry point of the group ``srum_ds.benchmarks``, or named ``file.py:NAME``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from srum_ds.judges.protocol import Question, Reply
from srum_ds.types import Prompt


@dataclass(frozen=True)
class Outcome:
    """How well one image follows its prompt. exact: in everything asked for. partial: credit in [0, 1]."""

    exact: bool
    partial: float


@dataclass(frozen=True)
class RegionTruth:
    """Whether a region of an image shows what a phrase says. own: the phrase is one of the prompt's own."""

    phrase: str
    truth: bool
    own: bool = True


@dataclass(frozen=True)
class Grade:
    """What one picture is worth, in the benchmark's scale. value: None exactly where it failed, and never 0 for that.

    parts: figures beside it that the benchmark reports too (``accuracy``, ``quality``), None where one failed. failure:
    why there is no value, or empty. words: what the judge said, for a person to read. raw: what the released scripts
    of the benchmark would have counted (-1 for a reply they cannot read), None where that is ``value``. weights: how
    many questions stand behind a part, where a benchmark pools questions, not pictures; 1 each where it is empty.
    """

    value: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    failure: str = ""
    words: str = ""
    raw: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Detection:
    """One object that a detector found.

    box: x0, y0, x1, y1 in [0, 1]. score: in [0, 1]. mask: run lengths as JSON (``benchmarks.masks``), or None. color:
    what whoever made the detections says that its colour is, empty where nobody said.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: Mapping[str, object] | None = None
    color: str = ""


@runtime_checkable
class Checks(Protocol):
    """Grades pictures from their pixels, by code without any learned part."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    def refuse(self, prompts: Sequence[Prompt], where: str) -> None:
        """Raises UserError naming the first prompt that it cannot score, before anything is drawn.

        where: the prompt set, as a message should call it.
        """
        ...

    def check(self, prompts: Sequence[Prompt], images_NCHW: Tensor) -> Sequence[Outcome]:
        """One outcome per image; ``images_NCHW`` is float32 [N, 3, H, W] in [0, 1], image n drawn of ``prompts[n]``."""
        ...

    def region_truths(
        self, rng: random.Random, prompt: Prompt, image_CHW: Tensor, boxes: Sequence[Sequence[float]]
    ) -> list[list[RegionTruth]]:
        """For each box (x0, y0, x1, y1 in [0, 1]) of one image, the phrases it may be asked about and their truth.

        ``srum-ds calibrate`` asks the judge the same. rng: what chooses phrases that are not the prompt's own. A
        benchmark that knows nothing of regions gives an empty list for each box.
        """
        ...


@runtime_checkable
class Asks(Protocol):
    """Grades pictures by what a judge answers."""

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        """What is asked about each picture of a prompt; keys differ. UserError for a prompt it cannot ask about."""
        ...

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """The grade of one picture from the replies by key. Every question has one, perhaps with an error."""
        ...


@runtime_checkable
class Detects(Protocol):
    """Grades pictures by the objects that a detector finds in them."""

    def classes(self, prompts: Sequence[Prompt]) -> Sequence[str]:
        """Every class that the detector has to know for these prompts."""
        ...

    def grade(self, prompt: Prompt, detections: Sequence[Detection], image_CHW: Tensor) -> Grade:
        """The grade of one picture (float32 [3, H, W] in [0, 1]) from what was found in it, whatever the score."""
        ...


@dataclass(frozen=True)
class Canary:
    """A question whose answer is known before any score is believed.

    question: put to the judge about a picture that ``picture`` makes (PNG bytes). good: says whether a reply is right.
    what: the case in words, for the report ("a blank picture must score below 20").
    """

    what: str
    question: Question
    picture: Callable[[], bytes]
    good: Callable[[Reply], bool]


@dataclass(frozen=True)
class Figure:
    """A figure that is a weighted mean of the means of leaf categories (``Prompt.category``): weights sum to 1.

    ``overall`` is one of them; T2I-CompBench's ``complex`` is another, of three leaves. of_parts: the weights are of
    part figures (``Grade.parts``, pooled by ``Grade.weights``) instead, as where the authors average dimensions that
    each prompt touches several of. A part that no prompt of the set asks for is left out, as a category would be.
    """

    name: str
    weights: Mapping[str, float]
    of_parts: bool = False


@dataclass(frozen=True)
class Published:
    """A row that a paper reports. figures: by category and ``overall``, in the benchmark's scale. source: where."""

    model: str
    figures: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Benchmark:
    """All that is known of a benchmark.

    version: changes whenever a question, a grade or a prompt of it does. read: gives the prompts from a file or folder
    of the benchmark's own making (None: the bundled ones; UserError where there are none, naming where to get them).
    samples: pictures a prompt by its protocol. full: the best grade (100, 1). grading: how one picture is graded.
    figures: what is reported, given the prompts' leaf categories; the last is ``overall``. notice: licence and source
    of its files, in a sentence. part_figures: names of ``Grade.parts`` that are reported like the value. srum_compat:
    whether SRUM's released scripts score it, so that their arithmetic can be asked for. released_as_zero: categories
    that these scripts count as 0 where none of them has a picture.
    """

    name: str
    version: str
    read: Callable[[Path | None], list[Prompt]]
    grading: Checks | Asks | Detects
    figures: Callable[[Sequence[str]], list[Figure]]
    samples: int = 1
    full: float = 1.0
    part_figures: tuple[str, ...] = ()
    canaries: Callable[[], Sequence[Canary]] = tuple
    published: Sequence[Published] = ()
    notice: str = ""
    srum_compat: bool = False
    released_as_zero: tuple[str, ...] = ()


def equal_shares(categories: Sequence[str]) -> list[Figure]:
    """``Benchmark.figures`` of most: overall is the plain mean of the categories' means."""
    return [Figure("overall", {name: 1 / len(categories) for name in categories})]
