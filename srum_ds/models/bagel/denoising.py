"""What stays the same while pictures are denoised: their contexts, arranged once, and constant embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.kernels.rotary import rotary_factors, rotate
from srum_ds.models.bagel.cache import Cache
from srum_ds.models.bagel.pictures import Arrangement, Context, Pictures, arrange


@dataclass(frozen=True)
class Branch:
    """One context for each of some pictures. contexts_LG: by layer, then by group; None where it is empty."""

    arrangement: Arrangement
    contexts_LG: tuple[tuple[Context | None, ...], ...]


@torch.no_grad()
def open_branch(cache: Cache, theta: float) -> Branch:
    """Arranges one picture behind each sample of a cache, whose padding is left out.

    Waits once for the device, to learn how long the contexts are.
    """
    valid_BP = cache.valid_BP.cpu()
    length_B = valid_BP.sum(1)
    arrangement = arrange(length_B.tolist(), range(cache.batch), cache.valid_BP.device)
    packed = torch.arange(valid_BP.shape[1])[None] < length_B[:, None]
    # Where padding stands inside, what is real moves before it, in order.
    first_BP = None if torch.equal(packed, valid_BP) else cache.valid_BP.logical_not().sort(dim=1, stable=True).indices
    head = cache.keys_L[0].shape[-1]
    cos_B1D, sin_B1D = (x.to(cache.keys_L[0].dtype) for x in rotary_factors(-cache.position_B, head, theta))

    def of(x_BGPD: Tensor, row_B: Tensor, length: int) -> Tensor:
        x_BPGD = x_BGPD.transpose(1, 2)
        if first_BP is None:
            return x_BPGD[:, :length].index_select(0, row_B)
        return x_BPGD[row_B[:, None], first_BP.index_select(0, row_B)[:, :length]]

    def seen(keys: Tensor, values: Tensor) -> tuple[Context | None, ...]:
        contexts: list[Context | None] = []
        for group in arrangement.groups:
            if group.length == 0:
                contexts.append(None)
                continue
            turn = (x.index_select(0, group.row_B)[:, None] for x in (cos_B1D, sin_B1D))
            turned = rotate(of(keys, group.row_B, group.length), *turn)
            contexts.append((turned.contiguous(), of(values, group.row_B, group.length).contiguous()))
        return tuple(contexts)

    return Branch(arrangement, tuple(seen(k, v) for k, v in zip(cache.keys_L, cache.values_L, strict=True)))


@dataclass(frozen=True)
class Denoising:
    """N pictures, each under every one of some branches, for as many velocities as are wanted.

    picture_R: the picture at each of R = branches x N places. back_R: the place of picture n under branch b, branch by
    branch. contexts_LG: by layer, then by group. und_UD: embeddings of start and end tokens by place; place_TD: those
    of the latent tokens' positions.
    """

    branches: int
    pictures: Pictures
    picture_R: Tensor
    back_R: Tensor
    contexts_LG: tuple[tuple[Context | None, ...], ...]
    und_UD: Tensor
    place_TD: Tensor


def plan_denoising(branches: Sequence[Branch], wrap_2D: Tensor, place_TD: Tensor) -> Denoising:
    """Lays branches one after the other. wrap_2D: embeddings of the start and the end token."""
    arrangements = [branch.arrangement for branch in branches]
    sizes = tuple(group.pictures for a in arrangements for group in a.groups)
    n = len(arrangements[0].order_B)
    return Denoising(
        len(branches),
        Pictures(sizes),
        torch.cat([a.order_B for a in arrangements]),
        torch.cat([a.back_B + number * n for number, a in enumerate(arrangements)]),
        tuple(sum(layers, ()) for layers in zip(*(b.contexts_LG for b in branches), strict=True)),
        wrap_2D.repeat(sum(sizes), 1),
        place_TD,
    )
