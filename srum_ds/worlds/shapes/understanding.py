"""Questions about pictures of the embedded world, as a set for ``srum-ds eval understanding``."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from srum_ds.evaluation.understanding.items import Item, ItemSet
from srum_ds.worlds.shapes.questions import build_examples
from srum_ds.worlds.shapes.render import render_arrays
from srum_ds.worlds.shapes.vocabulary import CELLS, DIRECTION_OF

# The model was pretrained on examples of small seeds.
SEED = 2**20
FAMILIES = ("match", "exist", "open")


def shapes_items(pictures: int, seed: int = 0) -> ItemSet:
    """All whole-picture questions about so many pictures, the same for the same seed: 12 each.

    Categories: match (does the picture show ...), exist (is there ...), where (16 cells) and direction (4 ways). The
    kinds of questions and the pairs of attributes are those of pretraining, the pictures are new.
    """
    examples = build_examples(SEED + seed, pictures)
    images = render_arrays(torch.from_numpy(examples["shown"]))
    items = []
    for number in range(pictures):
        array = (images[number] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture = _png(array)
        for family in FAMILIES:
            pairs = zip(examples[f"{family}_question"][number], examples[f"{family}_answer"][number], strict=True)
            for place, (question, answer) in enumerate(pairs):
                category, options = _kind(family, answer)
                key = f"{number}-{family}-{place}"
                items.append(Item(key, question, options, answer, picture, category, str(number)))
    return ItemSet("shapes", f"shapes, {pictures} pictures, seed {seed}", tuple(items))


def _kind(family: str, answer: str) -> tuple[str, tuple[str, ...]]:
    if answer in ("yes", "no"):
        # An open question that has no single answer stands in as one whether something is there.
        return ("exist" if family == "open" else family), ("yes", "no")
    ways = tuple(dict.fromkeys(DIRECTION_OF.values()))
    return ("direction", ways) if answer in ways else ("where", CELLS)


def _png(array_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array_HWC).save(stream, "PNG")
    return stream.getvalue()
