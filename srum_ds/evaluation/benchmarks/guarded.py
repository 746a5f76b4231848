"""Benchmarks of a user's own code: it is given copies, and what it gives is looked at before it is used."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from srum_ds.common import foreign
from srum_ds.evaluation.benchmarks.protocol import (
    Asks,
    Benchmark,
    Canary,
    Checks,
    Detection,
    Detects,
    Figure,
    Grade,
    Outcome,
    RegionTruth,
)
from srum_ds.judges.protocol import Question, Reply
from srum_ds.types import Prompt

T = TypeVar("T")


def guarded_benchmark(name: str, benchmark: Benchmark) -> Benchmark:
    """The same with prompts, grading and figures that are guarded. name: the option with what it names."""

    def read(source: Path | None) -> list[Prompt]:
        return _all_of(f"{name}: read", Prompt, lambda: benchmark.read(source))

    def figures(categories: Sequence[str]) -> list[Figure]:
        return _all_of(f"{name}: figures", Figure, lambda: benchmark.figures(list(categories)))

    def canaries() -> list[Canary]:
        return _all_of(f"{name}: canaries", Canary, benchmark.canaries)

    own = benchmark.grading
    grading: Checks | Asks | Detects
    if isinstance(own, Checks):
        grading = GuardedChecks(name, own)
    elif isinstance(own, Asks):
        grading = GuardedAsks(name, own)
    elif isinstance(own, Detects):
        grading = GuardedDetects(name, own)
    else:
        raise foreign.wrong(f"{name}: grading", own, "an object with the methods of Checks, Asks or Detects")
    return replace(benchmark, read=read, figures=figures, canaries=canaries, grading=grading)


def _all_of(what: str, kind: type[T], work: Callable[[], Any]) -> list[T]:
    """The members of what foreign code gives, all of one kind."""
    expected = f"a list of {kind.__name__}"
    found = foreign.items(what, foreign.run(what, work), None, expected)
    for one in found:
        if not isinstance(one, kind):
            raise foreign.wrong(what, one, expected)
    return found


class GuardedChecks:
    """``Checks`` of foreign code. Its methods raise UserError for whatever that code raises or should not give."""

    def __init__(self, name: str, checks: Checks) -> None:
        self._where = name
        self._checks = checks

    @property
    def name(self) -> str:
        """See ``Checks``."""
        found = foreign.run(f"{self._where}: name", lambda: self._checks.name)
        if not isinstance(found, str):
            raise foreign.wrong(f"{self._where}: name", found, "a text")
        return found

    def refuse(self, prompts: Sequence[Prompt], where: str) -> None:
        """See ``Checks``."""
        foreign.run(f"{self._where}: refuse", lambda: self._checks.refuse(foreign.copied(prompts), where))

    def check(self, prompts: Sequence[Prompt], images_NCHW: Tensor) -> list[Outcome]:
        """See ``Checks``."""
        what, count = f"{self._where}: check", len(prompts)
        found = foreign.run(what, lambda: self._checks.check(foreign.copied(prompts), images_NCHW.clone()))
        outcomes = foreign.items(what, found, count, f"a list of {count} Outcome, one for each image")
        return [self._outcome(what, outcome) for outcome in outcomes]

    def region_truths(
        self, rng: random.Random, prompt: Prompt, image_CHW: Tensor, boxes: Sequence[Sequence[float]]
    ) -> list[list[RegionTruth]]:
        """See ``Checks``."""
        what, count = f"{self._where}: region_truths", len(boxes)
        expected = f"a list of {count} lists of RegionTruth, one for each box"
        found = foreign.run(
            what,
            lambda: self._checks.region_truths(
                rng, foreign.copied([prompt])[0], image_CHW.clone(), [list(box) for box in boxes]
            ),
        )
        truths = [foreign.items(what, one, None, expected) for one in foreign.items(what, found, count, expected)]
        for one in (one for of_box in truths for one in of_box):
            if not isinstance(one, RegionTruth) or not isinstance(one.phrase, str):
                raise foreign.wrong(what, one, expected)
        return [[replace(one, truth=bool(one.truth)) for one in of_box] for of_box in truths]

    def _outcome(self, what: str, outcome: Any) -> Outcome:
        expected = "an Outcome with exact a truth value and partial a number in [0, 1]"
        if not hasattr(outcome, "exact") or not hasattr(outcome, "partial"):
            raise foreign.wrong(what, outcome, expected)
        exact = foreign.truths(f"{what}, exact", [outcome.exact], 1, expected)[0]
        credit = int(outcome.partial) if isinstance(outcome.partial, bool) else outcome.partial
        partial = float(foreign.numbers(f"{what}, partial", [credit], 1, expected))
        if not 0 <= partial <= 1:
            raise foreign.wrong(f"{what}, partial", credit, expected)
        return Outcome(exact, partial)


class GuardedAsks:
    """``Asks`` of foreign code."""

    def __init__(self, name: str, asks: Asks) -> None:
        self._where = name
        self._asks = asks

    def questions(self, prompt: Prompt) -> list[Question]:
        """See ``Asks``."""
        own = foreign.copied([prompt])[0]
        return _all_of(f"{self._where}: questions", Question, lambda: self._asks.questions(own))

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """See ``Asks``."""
        what = f"{self._where}: grade"
        return _grade(what, foreign.run(what, lambda: self._asks.grade(foreign.copied([prompt])[0], dict(replies))))


class GuardedDetects:
    """``Detects`` of foreign code."""

    def __init__(self, name: str, detects: Detects) -> None:
        self._where = name
        self._detects = detects

    def classes(self, prompts: Sequence[Prompt]) -> list[str]:
        """See ``Detects``."""
        own = foreign.copied(prompts)
        return _all_of(f"{self._where}: classes", str, lambda: self._detects.classes(own))

    def grade(self, prompt: Prompt, detections: Sequence[Detection], image_CHW: Tensor) -> Grade:
        """See ``Detects``."""
        what = f"{self._where}: grade"
        found = foreign.run(
            what, lambda: self._detects.grade(foreign.copied([prompt])[0], list(detections), image_CHW.clone())
        )
        return _grade(what, found)


def _grade(what: str, found: Any) -> Grade:
    """A grade whose numbers are finite, or None."""
    if not isinstance(found, Grade):
        raise foreign.wrong(what, found, "a Grade")
    numbers = {"value": found.value, "raw": found.raw, **dict(found.parts), **dict(found.weights)}
    for name, number in numbers.items():
        whole = number is None or (isinstance(number, int | float) and math.isfinite(number))
        if not whole:
            raise foreign.wrong(f"{what}, {name}", number, "a finite number, or None where the picture failed")
    return found
