"""Many texts about each of some pictures in one pass: what those about one picture share is read once.

A picture and its texts are one sequence: the picture, the tokens that all of its texts begin with, and then of
each text the rest, as a branch that sees what stands before it but no other branch (``layout``). Every text has
the positions, and sees the tokens, that it would have behind the picture alone. Equal texts about one picture
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
    """The sequences of some pictures with their texts.

    samples: each picture's segments. text: ids of the text-like tokens, image starts and ends too, in the
    layout's flat order. rows: for each text, where in ``text`` each of its tokens stands.
    """

    samples: tuple[tuple[Segment, ...], ...]
    text: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]


def build_text_trees(
    patch_counts: Sequence[int], texts: Sequence[Ids], picture_of: Sequence[int], special: SpecialTokens
) -> TextTrees:
    """Puts every text (ids, at least one) behind its picture.

    patch_counts: ViT tokens of each picture. picture_of: for each text, the number of its picture.
    """
    about: list[dict[Ids, tuple[int, ...]]] = [{} for _ in patch_counts]
    for ids, picture in zip(texts, picture_of, strict=True):
        about[picture][ids] = ()
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
    rows = tuple(about[picture][ids] for ids, picture in zip(texts, picture_of, strict=True))
    return TextTrees(tuple(samples), tuple(text), rows)
