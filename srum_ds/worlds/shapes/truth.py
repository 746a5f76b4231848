"""What is true of the regions of a picture of the shapes world, by the independent checker."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from srum_ds.types import Prompt
from srum_ds.worlds.shapes.checker import region_matches
from srum_ds.worlds.shapes.world import ShapePrompt, Slot, alter_slot


def crop_truths(
    rng: random.Random, prompt: Prompt, image: np.ndarray | Tensor, boxes: Sequence[Sequence[float]]
) -> list[list[tuple[str, bool]]]:
    """For each box, what it may be asked and whether that is so: (phrase, truth).

    The phrases are the prompt's own, each once, and at last one of them with an attribute changed.
    """
    slots = list(dict.fromkeys(ShapePrompt.from_meta(prompt.meta).slots))
    found = []
    for box in boxes:
        asked = [*slots, alter_slot(rng, rng.choice(slots))]
        found.append([(slot.phrase(), region_matches(_alone(slot), image, [box])[0]) for slot in asked])
    return found


def _alone(slot: Slot) -> ShapePrompt:
    return ShapePrompt("color", (slot,))
