"""The sequences of Show-o as pure functions: which ids they are made of, and which of them see which.

Masks are bool, [query, key], True where the key is seen. A picture's part is ``<soi>`` codes ``<eoi>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.models.showo.tokenizer import Vocabulary

Ids = tuple[int, ...]

AROUND = 2
"""Ids that stand around a picture's codes."""


# ---- drawing: [pad ...] <t2i> bos text eos, then the picture


def prompt_row(text: Sequence[int], vocabulary: Vocabulary, length: int) -> list[int]:
    """``[pad ...] <t2i> bos text eos``, padded on the left to ``length`` + 1, or cut before its eos as released."""
    words = list(text)
    if not words or words[0] != vocabulary.bos:
        words.insert(0, vocabulary.bos)
    row = [vocabulary.t2i, *words, vocabulary.eos]
    if len(row) > length + 1:
        row = [*row[:length], vocabulary.eos]
    return [vocabulary.pad] * (length + 1 - len(row)) + row


def picture_rows(codes_NT: Tensor, vocabulary: Vocabulary) -> Tensor:
    """``<soi>`` codes ``<eoi>`` as ids [N, T + 2]; the mask's id where a code is negative."""
    ids_NT = torch.where(codes_NT < 0, vocabulary.mask, codes_NT + vocabulary.first_code)
    ends = codes_NT.new_tensor([vocabulary.soi, vocabulary.eoi]).expand(len(codes_NT), 2)
    return torch.cat([ends[:, :1], ids_NT, ends[:, 1:]], dim=1)


def drawing_mask(pad_BL: Tensor, picture: int) -> Tensor:
    """What rows [B, L, L] of a drawing sequence see, whose last ``picture`` ids are the picture's part.

    Text is causal and does not see padding; the picture's part sees everything but padding. Padding is causal, so that
    every row sees something.
    """
    length = pad_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=pad_BL.device).tril()
    rows_LL = causal_LL.clone()
    rows_LL[length - picture :] = True
    return torch.where(pad_BL[:, :, None], causal_LL, rows_LL & ~pad_BL[:, None, :])


# ---- looking: <mmu>, the picture, then texts


@dataclass(frozen=True)
class LookingRows:
    """Pictures with any number of texts behind each, one row a picture.

    ids_BL: int64, padded on the right. position_BL: of each id in its own sequence, which is the picture and one text.
    text_BL: 0 for the picture's part, the number (from 1) of the text in its row, -1 for padding. places: of each text,
    in the order given, the picture's row and the columns that it takes.
    """

    ids_BL: Tensor
    position_BL: Tensor
    text_BL: Tensor
    places: tuple[tuple[int, range], ...]


def looking_rows(
    codes_IT: Tensor, texts: Sequence[Sequence[int]], picture_of: Sequence[int], vocabulary: Vocabulary
) -> LookingRows:
    """``<mmu>`` picture text text ..., every text behind its picture as if it were the only one there.

    codes_IT: of the pictures. texts: ids, at least one each. picture_of: the picture that each text is about.
    """
    pictures = len(codes_IT)
    start = codes_IT.shape[1] + AROUND + 1
    ends = [start] * pictures
    own: list[list[int]] = [[] for _ in range(pictures)]
    places: list[tuple[int, range]] = []
    for number, (text, row) in enumerate(zip(texts, picture_of, strict=True)):
        places.append((row, range(ends[row], ends[row] + len(text))))
        ends[row] += len(text)
        own[row].append(number)
    shape = (pictures, max(ends, default=0))
    ids_BL = torch.full(shape, vocabulary.pad, dtype=torch.int64)
    text_BL = torch.full(shape, -1, dtype=torch.int64)
    position_BL = torch.full(shape, start, dtype=torch.int64)
    ids_BL[:, :start] = seen_pictures(codes_IT.cpu(), vocabulary)
    text_BL[:, :start] = 0
    position_BL[:, :start] = torch.arange(start)
    for row, numbers in enumerate(own):
        for order, number in enumerate(numbers, start=1):
            columns = places[number][1]
            inside = slice(columns.start, columns.stop)
            ids_BL[row, inside] = torch.tensor(list(texts[number]))
            text_BL[row, inside] = order
            position_BL[row, inside] = start + torch.arange(len(columns))
    return LookingRows(ids_BL, position_BL, text_BL, tuple(places))


def seen_pictures(codes_IT: Tensor, vocabulary: Vocabulary) -> Tensor:
    """``<mmu> <soi>`` codes ``<eoi>`` as ids [I, T + 3]."""
    task_I1 = codes_IT.new_full((len(codes_IT), 1), vocabulary.mmu)
    return torch.cat([task_I1, picture_rows(codes_IT, vocabulary)], dim=1)


def looking_mask(position_BL: Tensor, text_BL: Tensor) -> Tensor:
    """What rows [B, L, L] see: all see the picture's part, a text also itself, up to the row's own place."""
    picture_B1L = (text_BL == 0)[:, None, :]
    same_BLL = (text_BL[:, :, None] == text_BL[:, None, :]) & (text_BL > 0)[:, None, :]
    before_BLL = position_BL[:, None, :] <= position_BL[:, :, None]
    return picture_B1L | (same_BLL & before_BLL)


def question_text(question: str) -> str:
    """A question as the release wraps it; bos stands before it."""
    return f"USER: \n{question} ASSISTANT:"


def answer_text(answer: str) -> str:
    """An answer as it follows ``question_text``: with a space."""
    return " " + answer.lstrip(" ")
