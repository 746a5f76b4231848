"""Norm, rotation and placement of queries or keys in one pass over them, and one back.

A row here is one head of one token. Each half of it is a tile of its own, as a rotation mixes them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from srum_ds.kernels.triton.tiles import row_tile, stages, steps_and_programs, warps


def qk_norm_rotary(
    first_UHD: Tensor,
    second_GHD: Tensor,
    first_weight_D: Tensor,
    second_weight_D: Tensor,
    eps: float,
    cos_P1D: Tensor,
    sin_P1D: Tensor,
    slot_N: Tensor | None,
    places: int,
) -> Tensor:
    """See ``srum_ds.kernels.qk.qk_norm_rotary``."""
    args = (first_UHD, second_GHD, first_weight_D, second_weight_D, eps, cos_P1D, sin_P1D, slot_N, places)
    if not torch.is_grad_enabled():
        return _placed(*args)
    done: Tensor = _QKNormRotary.apply(*args)
    return done


@triton.jit
def _forward(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    slot_ptr,
    out_ptr,
    rows,
    eps,
    H: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_SLOT: tl.constexpr,
):
    eps = tl.cast(eps, tl.float32)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, COLUMNS)
    inside = (n[:, None] < rows) & (i[None, :] < HALF)
    place = n // H
    if HAS_SLOT:
        place = tl.load(slot_ptr + place, mask=n < rows, other=0)
    place = place.to(tl.int64)
    at = n[:, None].to(tl.int64) * D + i[None, :]
    to = (place * H + n % H)[:, None] * D + i[None, :]
    factor = place[:, None] * D + i[None, :]
    a = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + at + HALF, mask=inside, other=0.0).to(tl.float32)
    weight_a = tl.load(weight_ptr + i, mask=i < HALF, other=0.0).to(tl.float32)
    weight_b = tl.load(weight_ptr + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + factor, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + factor, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(a * a + b * b, axis=1) / D + eps)
    a = a * scale[:, None] * weight_a[None, :]
    b = b * scale[:, None] * weight_b[None, :]
    tl.store(out_ptr + to, (a * cos - b * sin).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + to + HALF, (b * cos + a * sin).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    g_ptr,
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    slot_ptr,
    dx_ptr,
    dweight_ptr,
    rows,
    eps,
    H: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_SLOT: tl.constexpr,
    FOR_WEIGHT: tl.constexpr,
):
    # Taken from its place and rotated back; from there on it is the gradient of a norm (see norm.py).
    eps = tl.cast(eps, tl.float32)
    i = tl.arange(0, COLUMNS)
    weight_a = tl.load(weight_ptr + i, mask=i < HALF, other=0.0).to(tl.float32)
    weight_b = tl.load(weight_ptr + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
    dweight_a = tl.zeros((COLUMNS,), dtype=tl.float32)
    dweight_b = tl.zeros((COLUMNS,), dtype=tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        n = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (n[:, None] < rows) & (i[None, :] < HALF)
        place = n // H
        if HAS_SLOT:
            place = tl.load(slot_ptr + place, mask=n < rows, other=0)
        place = place.to(tl.int64)
        at = n[:, None].to(tl.int64) * D + i[None, :]
        to = (place * H + n % H)[:, None] * D + i[None, :]
        factor = place[:, None] * D + i[None, :]
        g_a = tl.load(g_ptr + to, mask=inside, other=0.0).to(tl.float32)
        g_b = tl.load(g_ptr + to + HALF, mask=inside, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + factor, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + factor, mask=inside, other=0.0).to(tl.float32)
        back_a = g_a * cos + g_b * sin
        back_b = g_b * cos - g_a * sin
        a = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(x_ptr + at + HALF, mask=inside, other=0.0).to(tl.float32)
        # Rows beyond the end have no part in the sums, even where eps is 0.
        scale = tl.where(n < rows, tl.rsqrt(tl.sum(a * a + b * b, axis=1) / D + eps), 0.0)[:, None]
        if FOR_WEIGHT:
            dweight_a += tl.sum(back_a * a * scale, axis=0)
            dweight_b += tl.sum(back_b * b * scale, axis=0)
        back_a = back_a * weight_a[None, :]
        back_b = back_b * weight_b[None, :]
        pull = tl.sum(back_a * a + back_b * b, axis=1)[:, None] * scale * scale / D
        tl.store(dx_ptr + at, (scale * (back_a - a * pull)).to(dx_ptr.dtype.element_ty), mask=inside)
        tl.store(dx_ptr + at + HALF, (scale * (back_b - b * pull)).to(dx_ptr.dtype.element_ty), mask=inside)
    if FOR_WEIGHT:
        own = tl.program_id(0) * D + i
        tl.store(dweight_ptr + own, dweight_a, mask=i < HALF)
        tl.store(dweight_ptr + own + HALF, dweight_b, mask=i < HALF)


def _shape(x_NHD: Tensor, back: bool) -> dict[str, int]:
    """The constants of a group's kernels, and their warps; back: whose tiles have twice as many rows."""
    _, heads, width = x_NHD.shape
    tile, columns = row_tile(width // 2)
    rows = tile if back else max(1, tile // 2)
    sizes = {"H": heads, "D": width, "HALF": width // 2, "ROWS": rows, "COLUMNS": columns}
    return sizes | {"num_warps": warps(tile * columns)}


def _slots(slot_N: Tensor | None, split: int) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if slot_N is None else (slot_N[:split], slot_N[split:])


def _placed(
    first_UHD: Tensor,
    second_GHD: Tensor,
    first_weight_D: Tensor,
    second_weight_D: Tensor,
    eps: float,
    cos_P1D: Tensor,
    sin_P1D: Tensor,
    slot_N: Tensor | None,
    places: int,
) -> Tensor:
    shape = (places, *first_UHD.shape[1:])
    full = slot_N is None or len(slot_N) == places
    grid = first_UHD.new_empty(shape) if full else first_UHD.new_zeros(shape)
    cos, sin = cos_P1D.contiguous(), sin_P1D.contiguous()
    groups = ((first_UHD, first_weight_D), (second_GHD, second_weight_D))
    for (x_NHD, weight_D), slot in zip(groups, _slots(slot_N, len(first_UHD)), strict=True):
        rows = x_NHD.shape[0] * x_NHD.shape[1]
        if rows:
            sizes = _shape(x_NHD, back=False)
            x_NHD = x_NHD.contiguous()
            _forward[(triton.cdiv(rows, sizes["ROWS"]),)](
                x_NHD,
                weight_D,
                cos,
                sin,
                x_NHD if slot is None else slot,
                grid,
                rows,
                eps,
                HAS_SLOT=slot is not None,
                **sizes,
            )
    return grid


def _gradients(
    g_PHD: Tensor,
    x_NHD: Tensor,
    weight_D: Tensor,
    slot: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    for_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """Of one group, and of its weight if it is wanted."""
    rows = x_NHD.shape[0] * x_NHD.shape[1]
    sizes = _shape(x_NHD, back=True)
    steps, programs = steps_and_programs(triton.cdiv(rows, sizes["ROWS"]), finer=8)
    dx = torch.empty_like(x_NHD)
    partial = torch.empty(programs if for_weight else 0, x_NHD.shape[-1], dtype=torch.float32, device=x_NHD.device)
    if rows:
        _backward[(programs,)](
            g_PHD,
            x_NHD,
            weight_D,
            cos,
            sin,
            x_NHD if slot is None else slot,
            dx,
            partial,
            rows,
            eps,
            STEPS=steps,
            # Two halves each of the gradient, of what was normed and of the factors.
            STAGES=stages(6 * sizes["ROWS"] * sizes["COLUMNS"] * x_NHD.element_size()),
            HAS_SLOT=slot is not None,
            FOR_WEIGHT=for_weight,
            **sizes,
        )
    return dx, partial.sum(dim=0).to(weight_D.dtype) if for_weight else None


class _QKNormRotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        first_UHD: Tensor,
        second_GHD: Tensor,
        first_weight_D: Tensor,
        second_weight_D: Tensor,
        eps: float,
        cos_P1D: Tensor,
        sin_P1D: Tensor,
        slot_N: Tensor | None,
        places: int,
    ) -> Tensor:
        first_UHD, second_GHD = first_UHD.contiguous(), second_GHD.contiguous()
        cos, sin = cos_P1D.contiguous(), sin_P1D.contiguous()
        ctx.save_for_backward(first_UHD, second_GHD, first_weight_D, second_weight_D, cos, sin, slot_N)
        ctx.eps = eps
        return _placed(first_UHD, second_GHD, first_weight_D, second_weight_D, eps, cos, sin, slot_N, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_PHD: Tensor) -> tuple[Tensor | None, ...]:
        first, second, first_weight, second_weight, cos, sin, slot_N = ctx.saved_tensors
        g_PHD = g_PHD.contiguous()
        slots = _slots(slot_N, len(first))
        _, _, for_first, for_second, *_ = ctx.needs_input_grad
        dfirst, dfirst_weight = _gradients(g_PHD, first, first_weight, slots[0], cos, sin, ctx.eps, for_first)
        dsecond, dsecond_weight = _gradients(g_PHD, second, second_weight, slots[1], cos, sin, ctx.eps, for_second)
        return dfirst, dsecond, dfirst_weight, dsecond_weight, None, None, None, None, None
