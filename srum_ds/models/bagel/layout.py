"""Where every token of a batch stands: positions, experts, and who may attend to whom.

A sample is a sequence of segments. Text is causal; an image segment is its start token, its image
tokens and its end token, all sharing one rotary position, with full attention inside. A noised
image is invisible to everything outside its own segment, and so is a branch: a text that goes on from
everything before it but other branches. Every segment sees all earlier ones that are not hidden from it.

Tokens travel in one flat order, ``[text-like | vision | latent]``: the first two groups use the
understanding expert and the last the generation expert, so each expert works on one contiguous run
of rows. ``Layout`` holds the indices between that order and the padded ``[B, S]`` of attention, and
what ``attention.visible`` needs to know of every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["text", "branch", "vision", "clean", "noised"]

_TEXT, _VISION, _LATENT = 0, 1, 2
_GROUP: dict[Kind, int] = {"text": _TEXT, "branch": _TEXT, "vision": _VISION, "clean": _LATENT, "noised": _LATENT}


@dataclass(frozen=True)
class Segment:
    """``tokens`` counts what lies inside: text ids (bos and eos included), ViT or latent tokens.

    Image segments have two text-like tokens more: their start and end. Noised images and branches take no
    position: what follows them starts where they started.
    """

    kind: Kind
    tokens: int

    @property
    def length(self) -> int:
        return self.tokens if self.kind in ("text", "branch") else self.tokens + 2


@dataclass(frozen=True)
class _Sample:
    """One sample's tokens in sequence order; positions start at 0."""

    group_S: np.ndarray
    position_S: np.ndarray
    segment_S: np.ndarray
    causal_S: np.ndarray
    hidden_S: np.ndarray
    advance: int


@lru_cache(maxsize=4096)
def _describe(segments: tuple[Segment, ...]) -> _Sample:
    groups: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    number: list[np.ndarray] = []
    causal: list[np.ndarray] = []
    unseen: list[np.ndarray] = []
    position = 0
    for index, segment in enumerate(segments):
        n = segment.length
        inner = _GROUP[segment.kind]
        written = inner == _TEXT
        hidden = segment.kind in ("branch", "noised")
        group = np.full(n, inner)
        if written:
            positions.append(position + np.arange(n))
        else:
            group[0] = _TEXT
            group[-1] = _TEXT
            positions.append(np.full(n, position))
        if not hidden:
            position += n if written else 1
        groups.append(group)
        number.append(np.full(n, index))
        causal.append(np.full(n, written))
        unseen.append(np.full(n, hidden))
    if not groups:
        whole = np.zeros(0, dtype=np.int64)
        return _Sample(whole, whole, whole, whole.astype(bool), whole.astype(bool), 0)
    return _Sample(
        np.concatenate(groups),
        np.concatenate(positions),
        np.concatenate(number),
        np.concatenate(causal),
        np.concatenate(unseen),
        position,
    )


def visible(
    segment_Q: Tensor, causal_Q: Tensor, place_Q: Tensor, segment_K: Tensor, hidden_K: Tensor, place_K: Tensor
) -> Tensor:
    """Whether a query of one sample may attend to a key of the same sample; broadcasts.

    Segments are numbered in order; hidden is what only its own segment sees; place is the order of tokens.
    """
    earlier = (segment_K < segment_Q) & ~hidden_K
    inside = (segment_K == segment_Q) & (~causal_Q | (place_K <= place_Q))
    return earlier | inside


@dataclass(frozen=True)
class Layout:
    """Indices of one forward pass; see the module's docstring for the flat order.

    slot_N: row of the padded [B * S] grid at which flat token n stands. position_N: rotary positions.
    segment_BS: number of the segment at each grid place, -1 for padding; causal_BS and hidden_BS (bool):
    whether it is text, and whether only its own segment sees it (noised images, branches and padding).
    past_valid_BP: which cached keys are real, None without a cache. next_position_B: where the next
    segment starts. ``text``, ``vision`` and ``latent`` count the flat groups.
    """

    batch: int
    length: int
    text: int
    vision: int
    latent: int
    slot_N: Tensor
    position_N: Tensor
    segment_BS: Tensor
    causal_BS: Tensor
    hidden_BS: Tensor
    past_valid_BP: Tensor | None
    next_position_B: Tensor

    @property
    def understanding(self) -> int:
        return self.text + self.vision

    @property
    def tokens(self) -> int:
        return self.text + self.vision + self.latent

    @property
    def valid_BS(self) -> Tensor:
        """Which grid places are real."""
        return self.segment_BS >= 0

    @cached_property
    def allowed_BQK(self) -> Tensor:
        """bool [B, S, past + S]: who may attend to whom. Padding sees padding, so that no row is empty."""
        place_S = torch.arange(self.length, device=self.segment_BS.device)
        allowed_BSS = visible(
            self.segment_BS[:, :, None],
            self.causal_BS[:, :, None],
            place_S[:, None],
            self.segment_BS[:, None, :],
            self.hidden_BS[:, None, :],
            place_S[None, :],
        )
        if self.past_valid_BP is None:
            return allowed_BSS
        past_BSP = self.past_valid_BP[:, None, :] & self.valid_BS[:, :, None]
        return torch.cat([past_BSP, allowed_BSS], dim=2)


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
    segment_BS = np.full((batch, length), -1)
    causal_BS = np.zeros((batch, length), dtype=bool)
    hidden_BS = np.ones((batch, length), dtype=bool)
    for row, sample in enumerate(described):
        n = sample.group_S.size
        group_BS[row, :n] = sample.group_S
        position_BS[row, :n] = sample.position_S
        segment_BS[row, :n] = sample.segment_S
        causal_BS[row, :n] = sample.causal_S
        hidden_BS[row, :n] = sample.hidden_S
    flat_group = group_BS.reshape(-1)
    slots = [np.flatnonzero(flat_group == g) for g in (_TEXT, _VISION, _LATENT)]
    slot = torch.from_numpy(np.concatenate(slots))
    position_B = torch.zeros(batch, dtype=torch.int64) if past_position_B is None else past_position_B.cpu()
    position = torch.from_numpy(position_BS) + position_B[:, None]
    advance = torch.tensor([d.advance for d in described], dtype=torch.int64)
    return Layout(
        batch=batch,
        length=length,
        text=slots[0].size,
        vision=slots[1].size,
        latent=slots[2].size,
        slot_N=slot.to(device),
        position_N=position.reshape(-1)[slot].to(device),
        segment_BS=torch.from_numpy(segment_BS).to(device),
        causal_BS=torch.from_numpy(causal_BS).to(device),
        hidden_BS=torch.from_numpy(hidden_BS).to(device),
        past_valid_BP=None if past_valid_BP is None else past_valid_BP.to(device),
        next_position_B=(position_B + advance).to(device),
    )
