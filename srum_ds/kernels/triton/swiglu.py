"""The gate of a gated MLP; backward computes silu again from gate and up, all that is kept."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from srum_ds.kernels.triton.tiles import TILE, warps


def swiglu(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """See ``srum_ds.kernels.swiglu.swiglu``."""
    if not torch.is_grad_enabled():
        gate_NF = gate_NF.contiguous()
        return _gated(gate_NF, up_NF.contiguous(), out=gate_NF)
    done: Tensor = _SwiGLU.apply(gate_NF, up_NF)
    return done


@triton.jit
def _forward(gate_ptr, up_ptr, out_ptr, elements, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(g_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, elements, BLOCK: tl.constexpr):
    # With s = sigmoid(gate): d silu = s (1 + gate (1 - s)).
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    dgate = g * up * s * (1.0 + gate * (1.0 - s))
    tl.store(dgate_ptr + at, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
    tl.store(dup_ptr + at, (g * gate * s).to(dup_ptr.dtype.element_ty), mask=inside)


def _gated(gate: Tensor, up: Tensor, out: Tensor) -> Tensor:
    if gate.numel():
        _forward[(triton.cdiv(gate.numel(), TILE),)](gate, up, out, gate.numel(), BLOCK=TILE, num_warps=warps(2 * TILE))
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        gate_NF, up_NF = gate_NF.contiguous(), up_NF.contiguous()
        ctx.save_for_backward(gate_NF, up_NF)
        return _gated(gate_NF, up_NF, torch.empty_like(gate_NF))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        if gate.numel():
            grid = (triton.cdiv(gate.numel(), TILE),)
            _backward[grid](g.contiguous(), gate, up, dgate, dup, gate.numel(), BLOCK=TILE, num_warps=warps(2 * TILE))
        return dgate, dup
