"""Attention of one pass: over which grid of tokens, under which mask.

Passes that read work on the padded grid [B, S] with a dense mask. Noised pictures and the prompts that are read with
them (``pictures``) need none: ``attend_freely``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from srum_ds.models.bagel.layout import Layout

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""What may serve on an accelerator: not cuDNN's kernel, which builds a plan for every new number of keys, and so for
every decoded token and every length of prompt."""


def backends(device: torch.device) -> AbstractContextManager[None]:
    """Inside, ``BACKENDS`` alone serve; a CPU chooses as it does."""
    return nullcontext() if device.type == "cpu" else sdpa_kernel(BACKENDS)


@dataclass(frozen=True)
class Plan:
    """How the layers of one pass attend.

    grid: rows and columns of the tokens' places, [B, S] padded. slot_N: place of each flat
    token, counted over the grid; None where understanding rows alone fill the grid, in its order. position_P:
    rotary position at each place. groups: query heads that share a key head. mask: additive, 0 or -inf,
    [B, 1, S, past + S], S repeated for each of the groups where they are laid along the query axis
    (``shared_heads``).
    """

    grid: tuple[int, int]
    slot_N: Tensor | None
    position_P: Tensor
    groups: int
    mask: Tensor

    @property
    def places(self) -> int:
        return self.grid[0] * self.grid[1]


def make_plan(layout: Layout, groups: int, dtype: torch.dtype) -> Plan:
    """The plan of a pass over ``layout`` whose activations have ``dtype``."""
    grid = (layout.batch, layout.length)
    position_P = _by_place(layout.position_N, layout.slot_N, grid[0] * grid[1])
    # See attend: CPUs compute in float32 and share heads by themselves.
    on_cpu = layout.slot_N.device.type == "cpu"
    mask = dense_mask(layout, torch.float32) if on_cpu else dense_mask(layout, dtype).repeat(1, 1, groups, 1)
    return Plan(grid, layout.slot_N, position_P, groups, mask)


def narrow(plan: Plan, slot_L: Tensor) -> Plan:
    """The same for the queries at places ``slot_L`` (int64, all different) alone, each in its sample's row.

    A row has as many columns as the sample with the most of them needs. position_P is each query's own, by place.
    """
    batch, length = plan.grid
    sample_L = slot_L // length
    count_B = torch.bincount(sample_L, minlength=batch)
    columns = max(1, int(count_B.max()))
    order_L = slot_L.argsort()
    first_B = count_B.cumsum(0) - count_B
    rank_L = torch.empty_like(slot_L)
    rank_L[order_L] = torch.arange(len(slot_L), device=slot_L.device) - first_B[sample_L[order_L]]
    narrow_L = sample_L * columns + rank_L
    places = batch * columns
    # On a GPU the heads that share a key head stand along the query axis: one of them is enough, then as before.
    repeats = plan.mask.shape[2] // length
    mask_PK = plan.mask[:, 0, :length].reshape(batch * length, -1)
    mask_PK = mask_PK.new_zeros(places, mask_PK.shape[1]).index_copy(0, narrow_L, mask_PK.index_select(0, slot_L))
    return Plan(
        (batch, columns),
        narrow_L,
        _by_place(plan.position_P.index_select(0, slot_L), narrow_L, places),
        plan.groups,
        mask_PK.view(batch, 1, columns, -1).repeat(1, 1, repeats, 1),
    )


def _by_place(x_N: Tensor, slot_N: Tensor, places: int) -> Tensor:
    return x_N.new_zeros(places).index_copy(0, slot_N, x_N)


def dense_mask(layout: Layout, dtype: torch.dtype) -> Tensor:
    """0 or -inf, [B, 1, S, past + S]."""
    allowed = layout.allowed_BQK[:, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def attend(q_BHSD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, plan: Plan) -> Tensor:
    """Scaled dot-product attention [B, H, S, D] in q's dtype; query heads h and h + 1 may share a key head.

    On CPU it computes in float32: the bfloat16 kernel's backward pass is several times slower there.
    """
    mask = plan.mask
    if q_BHSD.device.type != "cpu":
        return shared_heads(q_BHSD, k_BGKD, v_BGKD, mask, plan.groups)
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.float() for x in (q_BHSD, k_BGKD, v_BGKD))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=plan.groups > 1)
    return out.to(q_BHSD.dtype)


def shared_heads(q_BHSD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, mask: Tensor, groups: int) -> Tensor:
    """SDPA with query heads that share a key head laid along the query axis.

    No copy of keys or values, and a kernel that takes a mask but no grouped heads (the memory-efficient one of
    GPUs) fits. mask: [B, 1, groups * S, K].
    """
    batch, heads, length, head = q_BHSD.shape
    q = q_BHSD.reshape(batch, heads // groups, groups * length, head)
    with backends(q.device):
        out = F.scaled_dot_product_attention(q, k_BGKD, v_BGKD, attn_mask=mask)
    return out.reshape(batch, heads, length, head)


def attend_freely(q_BSHD: Tensor, k_BPGD: Tensor, v_BPGD: Tensor, causal: bool = False) -> Tensor:
    """Attention without a mask [B, S, H, D] in q's dtype, each query to all keys, or ``causal`` to none after it.

    Heads may share keys as in ``attend``; on a CPU it computes in float32, as that does.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BPGD, v_BPGD))
    shared = q.shape[1] != k.shape[1]
    if q.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)
        return out.to(q_BSHD.dtype).transpose(1, 2)
    with backends(q.device):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared).transpose(1, 2)
