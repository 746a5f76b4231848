"""The velocity loss of every token, and its gradient in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from srum_ds.kernels.triton.tiles import row_tile, warps


def velocity_loss(
    prediction_BTC: Tensor,
    target_BTC: Tensor,
    shares: Sequence[float],
    coefficient_KBT: Tensor,
    old_BTC: Tensor | None = None,
    reference_BTC: Tensor | None = None,
    reference_weight: float = 0.0,
    counts_BT: Tensor | None = None,
) -> Tensor:
    """See ``srum_ds.kernels.velocity.velocity_loss``."""
    losses_BT: Tensor = _VelocityLoss.apply(
        prediction_BTC, target_BTC, shares, coefficient_KBT, old_BTC, reference_BTC, reference_weight, counts_BT
    )
    return losses_BT


@triton.jit
def _branch(v, old, target, coefficient_ptr, share, n, counted, C: tl.constexpr):
    """a |(1 - s) old + s v - target|^2 of each token, and its slope in v without the factor 2 / C."""
    share = tl.cast(share, tl.float32)
    coefficient = tl.load(coefficient_ptr + n, mask=counted, other=0.0).to(tl.float32)
    error = (1.0 - share) * old + share * v - target
    return coefficient * tl.sum(error * error, axis=1) / C, (coefficient * share)[:, None] * error


@triton.jit
def _losses_and_slopes(
    v_ptr,
    target_ptr,
    coefficient_ptr,
    old_ptr,
    reference_ptr,
    counts_ptr,
    loss_ptr,
    slope_ptr,
    tokens,
    share_0,
    share_1,
    share_2,
    reference_weight,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BRANCHES: tl.constexpr,
    HAS_OLD: tl.constexpr,
    HAS_REFERENCE: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
):
    reference_weight = tl.cast(reference_weight, tl.float32)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    counted = n < tokens
    if HAS_COUNTS:
        counted = tl.load(counts_ptr + n, mask=counted, other=0) != 0
    # What does not count is not even read: it may be no number.
    inside = counted[:, None] & (c[None, :] < C)
    at = n[:, None].to(tl.int64) * C + c[None, :]
    v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + at, mask=inside, other=0.0).to(tl.float32)
    old = v
    if HAS_OLD:
        old = tl.load(old_ptr + at, mask=inside, other=0.0).to(tl.float32)
    loss, slope = _branch(v, old, target, coefficient_ptr, share_0, n, counted, C)
    if BRANCHES > 1:
        more_loss, more_slope = _branch(v, old, target, coefficient_ptr + tokens, share_1, n, counted, C)
        loss += more_loss
        slope += more_slope
    if BRANCHES > 2:
        more_loss, more_slope = _branch(v, old, target, coefficient_ptr + 2 * tokens, share_2, n, counted, C)
        loss += more_loss
        slope += more_slope
    if HAS_REFERENCE:
        drift = v - tl.load(reference_ptr + at, mask=inside, other=0.0).to(tl.float32)
        loss += reference_weight * tl.sum(drift * drift, axis=1) / C
        slope += reference_weight * drift
    tl.store(loss_ptr + n, loss, mask=n < tokens)
    tl.store(slope_ptr + at, slope * (2.0 / C), mask=(n[:, None] < tokens) & (c[None, :] < C))


class _VelocityLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        v_BTC: Tensor,
        target_BTC: Tensor,
        shares: Sequence[float],
        coefficient_KBT: Tensor,
        old_BTC: Tensor | None,
        reference_BTC: Tensor | None,
        reference_weight: float,
        counts_BT: Tensor | None,
    ) -> Tensor:
        v_BTC = v_BTC.contiguous()
        channels = v_BTC.shape[-1]
        tokens = v_BTC.numel() // channels
        losses_BT = torch.empty(v_BTC.shape[:-1], dtype=torch.float32, device=v_BTC.device)
        # In float32, for backward scales it before it is rounded.
        slope_BTC = torch.empty_like(v_BTC, dtype=torch.float32)
        # Without an old prediction every mixture is v itself.
        used = [1.0 if old_BTC is None else float(share) for share in shares]
        share_0, share_1, share_2 = used + [1.0] * (3 - len(used))
        tile, columns = row_tile(channels)
        if tokens:
            _losses_and_slopes[(triton.cdiv(tokens, tile),)](
                v_BTC,
                target_BTC.contiguous(),
                coefficient_KBT.contiguous(),
                v_BTC if old_BTC is None else old_BTC.contiguous(),
                v_BTC if reference_BTC is None else reference_BTC.contiguous(),
                v_BTC if counts_BT is None else counts_BT.contiguous().view(torch.uint8),
                losses_BT,
                slope_BTC,
                tokens,
                share_0,
                share_1,
                share_2,
                float(reference_weight),
                C=channels,
                ROWS=tile,
                COLUMNS=columns,
                BRANCHES=len(used),
                HAS_OLD=old_BTC is not None,
                HAS_REFERENCE=reference_BTC is not None,
                HAS_COUNTS=counts_BT is not None,
                num_warps=warps(2 * tile * columns),
            )
        ctx.save_for_backward(slope_BTC)
        ctx.dtype = v_BTC.dtype
        return losses_BT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BT: Tensor) -> tuple[Tensor | None, ...]:
        (slope_BTC,) = ctx.saved_tensors
        return (slope_BTC * g_BT[..., None]).to(ctx.dtype), None, None, None, None, None, None, None
