"""Where every token of a batch stands: positions, experts, and who may attend to whom.

A sample is a sequence of segments. Text is causal; an image segment is its start token, its image
tokens and its end token, all sharing one rotary position, with full attention inside. A noised
image is invisible to everything outside its own segment. Every segment sees all earlier ones.

Tokens travel in one flat order, ``[text-like | vision | latent]``: the first two groups use the
understanding expert and the last the generation expert, so each expert works on one contiguous run
of rows. ``Layout`` holds the indices between that order and the padded ``[B, S]`` of attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["text", "vision", "clean", "noised"]

_TEXT, _VISION, _LATENT = 0, 1, 2


@dataclass(frozen=True)
class Segment:
    """``tokens`` counts what lies inside: text ids (bos and eos included), ViT or latent tokens.

    Image segments have two text-like tokens more: their start and end.
    """

    kind: Kind
    tokens: int

    @property
    def length(self) -> int:
        return self.tokens if self.kind == "text" else self.tokens + 2


@dataclass(frozen=True)
class _Sample:
    """One sample's tokens in sequence order; positions start at 0."""

    group_S: np.ndarray
    position_S: np.ndarray
    allowed_SS: np.ndarray
    advance: int


@lru_cache(maxsize=4096)
def _describe(segments: tuple[Segment, ...]) -> _Sample:
    groups: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    number: list[np.ndarray] = []
    causal: list[np.ndarray] = []
    noised: list[np.ndarray] = []
    position = 0
    for index, segment in enumerate(segments):
        n = segment.length
        inner = {"text": _TEXT, "vision": _VISION, "clean": _LATENT, "noised": _LATENT}[segment.kind]
        group = np.full(n, inner)
        if segment.kind == "text":
            positions.append(position + np.arange(n))
            position += n
        else:
            group[0] = _TEXT
            group[-1] = _TEXT
            positions.append(np.full(n, position))
            position += segment.kind != "noised"
        groups.append(group)
        number.append(np.full(n, index))
        causal.append(np.full(n, segment.kind == "text"))
        noised.append(np.full(n, segment.kind == "noised"))
    if not groups:
        empty = np.zeros(0, dtype=np.int64)
        return _Sample(empty, empty, np.zeros((0, 0), dtype=bool), 0)
    number_S = np.concatenate(number)
    causal_S = np.concatenate(causal)
    noised_S = np.concatenate(noised)
    order_S = np.arange(number_S.size)
    same_SS = number_S[:, None] == number_S[None, :]
    earlier_SS = (number_S[None, :] < number_S[:, None]) & ~noised_S[None, :]
    inside_SS = same_SS & (~causal_S[:, None] | (order_S[None, :] <= order_S[:, None]))
    return _Sample(np.concatenate(groups), np.concatenate(positions), earlier_SS | inside_SS, position)


@dataclass(frozen=True)
class Layout:
    """Indices of one forward pass; see the module's docstring for the flat order.

    slot_N: row of the padded [B * S] grid at which flat token n stands. flat_BS: flat token at each
    grid place (padding repeats token 0). position_N: rotary positions. allowed_BQK: bool,
    [B, S, past + S]. valid_BS: which grid places are real. next_position_B: where the next segment
    starts. ``text``, ``vision`` and ``latent`` count the flat groups.
    """

    batch: int
    length: int
    text: int
    vision: int
    latent: int
    slot_N: Tensor
    flat_BS: Tensor
    position_N: Tensor
    allowed_BQK: Tensor
    valid_BS: Tensor
    next_position_B: Tensor

    @property
    def understanding(self) -> int:
        return self.text + self.vision


def build_layout(
    samples: Sequence[Sequence[Segment]],
    past_valid_BP: Tensor | None = None,
    past_position_B: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Layout:
    """Lays out a batch of samples that continue ``past`` (a cache), or start afresh.

    past_valid_BP: bool [B, P], which cached keys are real; past_position_B: int64 [B], the rotary
    position at which each sample goes on. Raises ValueError for a batch without tokens.
    """
    described = [_describe(tuple(s)) for s in samples]
    batch = len(described)
    length = max((d.group_S.size for d in described), default=0)
    if length == 0:
        raise ValueError("a batch needs at least one token")
    group_BS = np.full((batch, length), -1)
    position_BS = np.zeros((batch, length), dtype=np.int64)
    allowed_BSS = np.zeros((batch, length, length), dtype=bool)
    for row, sample in enumerate(described):
        n = sample.group_S.size
        group_BS[row, :n] = sample.group_S
        position_BS[row, :n] = sample.position_S
        allowed_BSS[row, :n, :n] = sample.allowed_SS
    flat_group = group_BS.reshape(-1)
    slots = [np.flatnonzero(flat_group == g) for g in (_TEXT, _VISION, _LATENT)]
    slot_N = np.concatenate(slots)
    flat_BS = np.zeros(batch * length, dtype=np.int64)
    flat_BS[slot_N] = np.arange(slot_N.size)
    valid_BS = group_BS >= 0
    # A padded query attends to itself: a row with nothing to attend to would be NaN.
    padded = ~valid_BS
    diagonal = np.eye(length, dtype=bool)[None] & padded[:, :, None]
    allowed = torch.from_numpy(allowed_BSS | diagonal)
    position_B = torch.zeros(batch, dtype=torch.int64) if past_position_B is None else past_position_B.cpu()
    position = torch.from_numpy(position_BS) + position_B[:, None]
    if past_valid_BP is not None:
        past = past_valid_BP.cpu()[:, None, :] & torch.from_numpy(valid_BS)[:, :, None]
        allowed = torch.cat([past, allowed], dim=2)
    advance = torch.tensor([d.advance for d in described], dtype=torch.int64)
    slot = torch.from_numpy(slot_N)
    return Layout(
        batch=batch,
        length=length,
        text=slots[0].size,
        vision=slots[1].size,
        latent=slots[2].size,
        slot_N=slot.to(device),
        flat_BS=torch.from_numpy(flat_BS).view(batch, length).to(device),
        position_N=position.reshape(-1)[slot].to(device),
        allowed_BQK=allowed.to(device),
        valid_BS=torch.from_numpy(valid_BS).to(device),
        next_position_B=(position_B + advance).to(device),
    )
