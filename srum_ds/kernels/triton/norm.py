"""RMSNorm, alone and behind a residual sum. Backward reads the row again and keeps nothing but the sum."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from srum_ds.kernels.triton.tiles import row_tile, stages, steps_and_programs, warps


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See ``srum_ds.kernels.norm.rms_norm``."""
    if not torch.is_grad_enabled():
        return _normed(x.contiguous(), None, weight_D, eps)[1]
    done: Tensor = _RMSNorm.apply(x, weight_D, eps)
    return done


def add_rms_norm(x_ND: Tensor, delta_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ``srum_ds.kernels.norm.add_rms_norm``."""
    if not torch.is_grad_enabled():
        # The sum takes the place of the change, which nobody else has.
        return _normed(x_ND.contiguous(), delta_ND.contiguous(), weight_D, eps, spare=True)
    both: tuple[Tensor, Tensor] = _AddRMSNorm.apply(x_ND, delta_ND, weight_D, eps)
    return both


@triton.jit
def _forward(
    x_ptr,
    delta_ptr,
    weight_ptr,
    sum_ptr,
    normed_ptr,
    rows,
    eps,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ADD: tl.constexpr,
):
    eps = tl.cast(eps, tl.float32)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, COLUMNS)
    inside = (n[:, None] < rows) & (d[None, :] < D)
    at = n[:, None].to(tl.int64) * D + d[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32)
        # What is normed is the sum as it is stored.
        stored = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, stored, mask=inside)
        x = stored.to(tl.float32)
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / D + eps)
    normed = x * scale[:, None] * weight[None, :]
    tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    g_ptr,
    g_sum_ptr,
    x_ptr,
    weight_ptr,
    dx_ptr,
    dweight_ptr,
    rows,
    eps,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    ADD: tl.constexpr,
    FOR_WEIGHT: tl.constexpr,
):
    # With s the scale: dw = sum over rows of g x s, dx = s g w - x s^3 mean(g w x), and the sum's own gradient on top.
    eps = tl.cast(eps, tl.float32)
    d = tl.arange(0, COLUMNS)
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    dweight = tl.zeros((COLUMNS,), dtype=tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        n = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (n[:, None] < rows) & (d[None, :] < D)
        at = n[:, None].to(tl.int64) * D + d[None, :]
        g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        # Rows beyond the end have no part in the sums, even where eps is 0.
        scale = tl.where(n < rows, tl.rsqrt(tl.sum(x * x, axis=1) / D + eps), 0.0)[:, None]
        if FOR_WEIGHT:
            dweight += tl.sum(g * x * scale, axis=0)
        g = g * weight[None, :]
        pull = tl.sum(g * x, axis=1)[:, None] * scale * scale / D
        dx = scale * (g - x * pull)
        if ADD:
            dx += tl.load(g_sum_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if FOR_WEIGHT:
        tl.store(dweight_ptr + tl.program_id(0) * D + d, dweight, mask=d < D)


def _normed(
    x: Tensor, delta: Tensor | None, weight_D: Tensor, eps: float, spare: bool = False
) -> tuple[Tensor, Tensor]:
    """The sum (x itself without a delta) and the normed sum; ``spare``: the array of the delta may be written to."""
    added = x
    if delta is not None:
        dtype = torch.promote_types(x.dtype, delta.dtype)
        added = delta if spare and delta.dtype == dtype else torch.empty_like(x, dtype=dtype)
    normed = torch.empty_like(added)
    width = x.shape[-1]
    rows = x.numel() // width
    if rows:
        tile, columns = row_tile(width)
        _forward[(triton.cdiv(rows, tile),)](
            x,
            x if delta is None else delta,
            weight_D,
            added,
            normed,
            rows,
            eps,
            D=width,
            ROWS=tile,
            COLUMNS=columns,
            ADD=delta is not None,
            num_warps=warps(tile * columns),
        )
    return added, normed


def _gradients(
    g: Tensor, g_sum: Tensor | None, x: Tensor, weight_D: Tensor, eps: float, for_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Of what was normed, and of the weight if it is wanted."""
    width = x.shape[-1]
    rows = x.numel() // width
    tile, columns = row_tile(width)
    steps, programs = steps_and_programs(triton.cdiv(rows, tile))
    dx = torch.empty_like(x)
    partial = torch.empty(programs if for_weight else 0, width, dtype=torch.float32, device=x.device)
    if rows:
        _backward[(programs,)](
            g.contiguous(),
            g if g_sum is None else g_sum.contiguous(),
            x,
            weight_D,
            dx,
            partial,
            rows,
            eps,
            D=width,
            ROWS=tile,
            COLUMNS=columns,
            STEPS=steps,
            STAGES=stages((2 + (g_sum is not None)) * tile * columns * x.element_size()),
            ADD=g_sum is not None,
            FOR_WEIGHT=for_weight,
            num_warps=warps(tile * columns),
        )
    return dx, partial.sum(dim=0).to(weight_D.dtype) if for_weight else None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight_D)
        ctx.eps = eps
        return _normed(x, None, weight_D, eps)[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight_D = ctx.saved_tensors
        return *_gradients(g, None, x, weight_D, ctx.eps, ctx.needs_input_grad[1]), None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, delta_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        added, normed = _normed(x_ND.contiguous(), delta_ND.contiguous(), weight_D, eps)
        ctx.save_for_backward(added, weight_D)
        ctx.eps = eps
        ctx.dtypes = x_ND.dtype, delta_ND.dtype
        return added, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_sum: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        added, weight_D = ctx.saved_tensors
        dx, dweight = _gradients(g, g_sum, added, weight_D, ctx.eps, ctx.needs_input_grad[2])
        return dx.to(ctx.dtypes[0]), dx.to(ctx.dtypes[1]), dweight, None
