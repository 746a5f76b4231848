"""What a benchmark must offer, and opening one by the name that ``eval.benchmark`` gives.

A benchmark scores images of the prompts that it knows, and has no learned part that saw the training. It is registered
in ``srum_ds/config/choices.py`` or by an entry point of the group ``srum_ds.benchmarks``, or named ``file.py:NAME``.
``evaluate`` opens it for all commands.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config.choices import BENCHMARKS
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


@runtime_checkable
class Benchmark(Protocol):
    """Scores images of a prompt set."""

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


def load_benchmark(name: str) -> Benchmark:
    """The benchmark of this name. UserError for an unknown one, and for code that is no benchmark."""
    found = BENCHMARKS.get(name)
    if isinstance(found, type):
        # A class without arguments stands for its one instance.
        found = found()
    if not isinstance(found, Benchmark):
        raise UserError(
            f"eval.benchmark={name}: is {type(found).__name__}, expected a benchmark with name, refuse, check and "
            f"region_truths (srum_ds/evaluation/benchmarks/protocol.py)"
        )
    return found
