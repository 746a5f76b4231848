"""Noised pictures side by side, each behind a context that is read and never written: how they are arranged.

A noised picture is a start token, latent tokens and an end token at one rotary position; it sees all of its context
and all of itself. So nothing needs a mask: pictures with equally long contexts stand next to each other, a group, and
attend in one call. And as attention depends on differences of rotary positions alone, every picture stands at position
0, where rotation changes nothing, and its context at the positions before it, which are negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.kernels.rotary import rotary_factors
from srum_ds.models.bagel.attention import attend_freely

Context = tuple[Tensor, Tensor]
"""Keys, rotated, and values of one layer that each of a group's pictures sees, [B, P, KV, head] both."""


@dataclass(frozen=True)
class Group:
    """Neighbours with contexts of ``length`` tokens; row_B (int64): the row of each picture's context."""

    pictures: int
    length: int
    row_B: Tensor


@dataclass(frozen=True)
class Arrangement:
    """Pictures in groups. order_B (int64): the picture at each place; back_B: the place of each picture."""

    groups: tuple[Group, ...]
    order_B: Tensor
    back_B: Tensor


def arrange(length_B: Sequence[int], row_B: Sequence[int], device: torch.device) -> Arrangement:
    """Groups pictures by the length of their contexts, shortest first, otherwise in the order given.

    length_B, row_B: of each picture, how many tokens its context has, and in which row of the contexts it stands.
    """
    order = sorted(range(len(length_B)), key=lambda picture: length_B[picture])
    back = sorted(range(len(order)), key=lambda place: order[place])
    rows = [row_B[picture] for picture in order]
    order_B, back_B, rows_B = torch.tensor([order, back, rows], dtype=torch.int64).to(device)
    groups: list[Group] = []
    start = 0
    for length in sorted(set(length_B)):
        count = sum(1 for one in length_B if one == length)
        groups.append(Group(count, length, rows_B[start : start + count]))
        start += count
    return Arrangement(tuple(groups), order_B, back_B)


@dataclass(frozen=True)
class Texts:
    """Texts that are read in the same pass as the pictures behind them; all padded at their ends to one length.

    cos_N1D, sin_N1D: rotary factors of their tokens, row by row. groups: the pictures that see them. unseen: whether
    no picture sees any of them.
    """

    batch: int
    cos_N1D: Tensor
    sin_N1D: Tensor
    groups: tuple[Group, ...]
    unseen: bool

    def seen(self, k_BLGD: Tensor, v_BLGD: Tensor) -> tuple[Context | None, ...]:
        """The context of each group, from the keys and values of the texts."""
        return tuple(
            (k_BLGD[:, : g.length].index_select(0, g.row_B), v_BLGD[:, : g.length].index_select(0, g.row_B))
            if g.length
            else None
            for g in self.groups
        )


def place_texts(
    length_B: Tensor, width: int, groups: tuple[Group, ...], head_size: int, theta: float, dtype: torch.dtype
) -> Texts:
    """Texts of ``length_B`` tokens (int64), padded to ``width``, whose pictures stand at position 0."""
    position_BL = torch.arange(width, device=length_B.device)[None] - length_B[:, None]
    cos_N1D, sin_N1D = rotary_factors(position_BL.reshape(-1), head_size, theta)
    unseen = not any(group.length for group in groups)
    return Texts(len(length_B), cos_N1D.to(dtype), sin_N1D.to(dtype), groups, unseen)


@dataclass(frozen=True)
class Pictures:
    """What every layer of one pass over pictures shares.

    sizes: pictures of each group. texts: those read in the same pass, None where contexts are given.
    """

    sizes: tuple[int, ...]
    texts: Texts | None = None

    def by_group(self, x_NHD: Tensor) -> tuple[Tensor, ...]:
        """The parts [pictures, S, H, D] of ``x`` that belong to each group; all pictures have as many rows."""
        x_BSHD = x_NHD.view(sum(self.sizes), -1, *x_NHD.shape[1:])
        return x_BSHD.split(self.sizes) if len(self.sizes) > 1 else (x_BSHD,)


def attend_in_groups(
    pictures: Pictures,
    before: Context | tuple[Context | None, ...],
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
) -> list[Tensor]:
    """Attention outputs [N, H * head] of each kind of the pictures' tokens that asks.

    before: the context of each group, or keys and values [P, L, KV, head] of the pass's texts. queries: [N, H, head]
    of each kind; keys, values: [N, KV, head] of all kinds. Inside a picture the order of keys changes nothing, and no
    query is moved.
    """
    if isinstance(before[0], Tensor):
        assert pictures.texts is not None
        before = pictures.texts.seen(*before)
    seen: list[Context] = []
    for context, *new in zip(before, *(pictures.by_group(x) for x in (*keys, *values)), strict=True):
        ours = new[: len(keys)], new[len(keys) :]
        old = ((), ()) if context is None else ((context[0],), (context[1],))
        k_BPGD, v_BPGD = (torch.cat([*x, *y], dim=1) for x, y in zip(old, ours, strict=True))
        seen.append((k_BPGD, v_BPGD))
    found: list[Tensor] = []
    for q_NHD in queries:
        outs = [attend_freely(q, *context) for q, context in zip(pictures.by_group(q_NHD), seen, strict=True)]
        found.append((outs[0] if len(outs) == 1 else torch.cat(outs)).reshape(len(q_NHD), -1))
    return found
