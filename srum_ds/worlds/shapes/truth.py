"""What is true of the regions of an image of the shapes world, by the independent checker. ``benchmark`` calls it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from srum_ds.evaluation.benchmarks import RegionTruth
from srum_ds.types import Prompt
from srum_ds.worlds.shapes.checker import region_matches
from srum_ds.worlds.shapes.world import ShapePrompt, Slot, alter_slot


def crop_truths(
    rng: random.Random, prompt: Prompt, image: np.ndarray | Tensor, boxes: Sequence[Sequence[float]]
) -> list[list[RegionTruth]]:
    """For each box (x0, y0, x1, y1 in [0, 1]), what it may be asked and whether that is so.

    The phrases are the prompt's own, each once, and at last one of them with an attribute changed by ``rng``.
    """
    slots = list(dict.fromkeys(ShapePrompt.from_meta(prompt.meta).slots))
    found = []
    for box in boxes:
        altered = alter_slot(rng, rng.choice(slots))
        truths = [RegionTruth(slot.phrase(), _shows(image, box, slot)) for slot in slots]
        truths.append(RegionTruth(altered.phrase(), _shows(image, box, altered), own=False))
        found.append(truths)
    return found


def _shows(image: np.ndarray | Tensor, box: Sequence[float], slot: Slot) -> bool:
    alone = ShapePrompt("color", (slot,))
    return region_matches(alone, image, [box])[0]
