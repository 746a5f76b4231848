"""Many texts about each of some images in one pass: what those about one image share is read once.

An image and its texts are one sequence: the image, the tokens that all of its texts begin with, and then of
each text the rest, as a branch that sees what stands before it but no other branch (``layout``). Every text has
the positions, and sees the tokens, that it would have behind the image alone. Equal texts about one image
are one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from srum_ds.models.bagel.config import SpecialTokens
from srum_ds.models.bagel.layout import Segment

Ids = tuple[int, ...]


@dataclass(frozen=True)
class TextTrees:
    """The sequences of some images with their texts.

    samples: each image's segments. text: ids of the text-like tokens, image starts and ends too, in the
    layout's flat order. rows: for each text, where in ``text`` each of its tokens stands.
    """

    samples: tuple[tuple[Segment, ...], ...]
    text: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]


def build_text_trees(
    patch_counts: Sequence[int], texts: Sequence[Ids], image_of: Sequence[int], special: SpecialTokens
) -> TextTrees:
    """Puts every text (ids, at least one) behind its image.

    patch_counts: ViT tokens of each image. image_of: for each text, the number of its image.
    """
    about: list[dict[Ids, tuple[int, ...]]] = [{} for _ in patch_counts]
    for ids, image in zip(texts, image_of, strict=True):
        about[image][ids] = ()
    samples: list[tuple[Segment, ...]] = []
    text: list[int] = []
    for patches, rows_of in zip(patch_counts, about, strict=True):
        segments = [Segment("vision", patches)]
        text += (special.image_start, special.image_end)
        shared = commonprefix(list(rows_of))
        trunk = tuple(range(len(text), len(text) + len(shared)))
        text += shared
        if shared:
            segments.append(Segment("text", len(shared)))
        for ids in rows_of:
            rest = ids[len(shared) :]
            rows_of[ids] = (*trunk, *range(len(text), len(text) + len(rest)))
            text += rest
            if rest:
                segments.append(Segment("branch", len(rest)))
        samples.append(tuple(segments))
    rows = tuple(about[image][ids] for ids, image in zip(texts, image_of, strict=True))
    return TextTrees(tuple(samples), tuple(text), rows)
