"""Many texts about each of some pictures in one pass: what those about one picture begin with is read once.

A picture and its texts are one sequence: what all of its texts begin with, the picture included, and then of each text
the rest, as a branch that sees what stands before it but no other branch. Every text has the positions, and sees the
tokens, that it would have alone. Equal texts about one picture are one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Trees:
    """One sequence for each picture that is asked about, padded on the right.

    pictures: their numbers. ids_PS, position_PS: int64. branch_PS: which branch a token stands in, 0 for what is
    shared, -1 for padding. places: for each text, its sequence and the column of each of its tokens.
    """

    pictures: tuple[int, ...]
    ids_PS: Tensor
    position_PS: Tensor
    branch_PS: Tensor
    places: tuple[tuple[int, tuple[int, ...]], ...]

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Who sees whom, additive, 0 or -inf [P, 1, S, S]; None where each token sees all that stand before it."""
        if int(self.branch_PS.max()) <= 1:
            return None
        own_PSS = self.branch_PS[:, :, None] == self.branch_PS[:, None, :]
        shared_PSS = (self.branch_PS == 0)[:, None, :]
        length = self.ids_PS.shape[1]
        seen_PSS = (own_PSS | shared_PSS) & torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.zeros(seen_PSS.shape, dtype=dtype).masked_fill_(~seen_PSS, float("-inf"))
        return mask[:, None]


def build_trees(texts: Sequence[Ids], picture_of: Sequence[int]) -> Trees:
    """Puts every text (ids, at least one, the picture's places among them) into its picture's sequence."""
    about: dict[int, dict[Ids, tuple[int, ...]]] = {}
    for ids, picture in zip(texts, picture_of, strict=True):
        about.setdefault(picture, {})[ids] = ()
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for columns_of in about.values():
        row = list(commonprefix([list(text) for text in columns_of]))
        shared = len(row)
        position, branch = list(range(shared)), [0] * shared
        for number, text in enumerate(columns_of, start=1):
            rest = range(shared, len(text))
            columns_of[text] = (*range(shared), *range(len(row), len(row) + len(rest)))
            row += text[shared:]
            position += rest
            branch += [number] * len(rest)
        rows.append((row, position, branch))
    pictures = tuple(about)
    row_of = {picture: row for row, picture in enumerate(pictures)}
    places = tuple((row_of[picture], about[picture][ids]) for ids, picture in zip(texts, picture_of, strict=True))
    ids_PS, position_PS, branch_PS = (
        pad_sequence([torch.tensor(row[part]) for row in rows], batch_first=True, padding_value=filler)
        for part, filler in ((0, 0), (1, 0), (2, -1))
    )
    return Trees(pictures, ids_PS, position_PS, branch_PS, places)
