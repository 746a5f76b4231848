"""The shapes world as a benchmark (``eval.benchmark=shapes``) and as a checker (``watch.checker=shapes``).

``srum_ds/config/choices.py`` names both, so that the evaluation finds this world without importing it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks import Benchmark, Outcome, RegionTruth, equal_shares
from srum_ds.prompts.reader import PromptReader
from srum_ds.types import Prompt
from srum_ds.worlds.shapes.checker import Check, check
from srum_ds.worlds.shapes.prompt_set import shapes_prompts
from srum_ds.worlds.shapes.prompts import ShapePrompt
from srum_ds.worlds.shapes.truth import crop_truths

SPLIT = "test"
TEST_PROMPTS = 1200


class ShapesChecks:
    """Scores images of prompts about coloured shapes from their pixels; see ``checker``. It has no learned part."""

    name = "shapes"

    def refuse(self, prompts: Sequence[Prompt], where: str) -> None:
        """UserError naming the first prompt whose meta does not say which shapes it asks for."""
        for prompt in prompts:
            try:
                ShapePrompt.from_meta(prompt.meta)
            except UserError as error:
                raise UserError(
                    f"{where}: prompt {prompt.id!r} is not of the shapes world ({error}): the benchmark 'shapes' "
                    f"cannot check its image; choose prompts that `srum-ds shards write shapes` wrote, or another "
                    f"eval.benchmark"
                ) from error

    def check(self, prompts: Sequence[Prompt], images_NCHW: Tensor) -> list[Outcome]:
        """Whether each image [N, 3, H, W] in [0, 1] is exact, and its partial credit."""
        return [Outcome(found.exact, found.partial) for found in _checks(prompts, images_NCHW)]

    def region_truths(
        self, rng: random.Random, prompt: Prompt, image_CHW: Tensor, boxes: Sequence[Sequence[float]]
    ) -> list[list[RegionTruth]]:
        """The prompt's phrases, and at last one of them with an attribute changed; see ``truth.crop_truths``."""
        return crop_truths(rng, prompt, image_CHW, boxes)


def exact(prompts: Sequence[Prompt], images_NCHW: Tensor) -> list[bool]:
    """Whether each image [N, 3, H, W] in [0, 1], on any device, shows exactly what its prompt asks for."""
    return [found.exact for found in _checks(prompts, images_NCHW.cpu().float())]


def _checks(prompts: Sequence[Prompt], images_NCHW: Tensor) -> list[Check]:
    return [check(prompt, image_CHW) for prompt, image_CHW in zip(prompts, images_NCHW, strict=True)]


def read(source: Path | None) -> list[Prompt]:
    """The prompts that training never saw: the split ``test`` of a folder of shards, or the same drawn anew (None)."""
    if source is None:
        return shapes_prompts({SPLIT: TEST_PROMPTS}, 0)[SPLIT]
    with PromptReader(source, SPLIT) as reader:
        return list(reader)


BENCHMARK = Benchmark("shapes", "1", read, ShapesChecks(), equal_shares)
