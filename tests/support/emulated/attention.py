"""Attention and RMSNorm as the single kernels that an accelerator has for them, by their definitions on the CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.emulated.counts import current_line, report, report_attention
from tests.support.emulated.tensor import EmulatedTensor, wrapped

aten = torch.ops.aten


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``aten::scaled_dot_product_attention``: one kernel, whatever the mask.

    CUDA's choice among its kernels is not followed: with a mask it can be no flash attention, with grouped heads as
    well only single operations.
    """
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise RuntimeError(f"{query.shape[1]} query heads and {key.shape[1]} key heads need enable_gqa=True")
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    kernel = aten._scaled_dot_product_fused_attention_overrideable.default
    return kernel(query, key, value, mask, dropout, causal, False, scale=scale)[0]


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    _debug: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """``_scaled_dot_product_fused_attention_overrideable``: [B, H, S, D] queries, keys may have fewer heads."""
    if dropout:
        raise NotImplementedError("the emulated device has no dropout in attention")
    report_attention("sdpa", query, key, bias, causal)
    out = F.scaled_dot_product_attention(
        query, key, value, bias, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    unused = torch.zeros(0)
    logsumexp = torch.zeros(query.shape[:-1])
    return out, logsumexp, unused, unused, query.shape[-2], key.shape[-2], unused, unused, unused


def sdpa_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    wanted: list[bool],
    out: Tensor,
    *rest: Any,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of ``sdpa`` to query, key, value and bias."""
    causal = rest[6]
    groups = query.shape[1] // key.shape[1]
    k, v = (x.float().repeat_interleave(groups, dim=1) for x in (key, value))
    dq, dk, dv, scores = _backward(gradient.float(), query.float(), k, v, bias, causal, scale)
    dk, dv = (x.unflatten(1, (key.shape[1], groups)).sum(2) for x in (dk, dv))
    d_bias = scores.sum_to_size(bias.shape).to(bias.dtype) if bias is not None and wanted[3] else None
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), d_bias


def _backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dS = P * (dP - rowsum(dP * P)) with P = softmax(S), S = scale * Q K^T + bias; all [..., tokens, head]."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q @ k.mT * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    share = scores.softmax(-1)
    d_share = gradient @ v.mT
    d_scores = share * (d_share - (d_share * share).sum(-1, keepdim=True))
    return d_scores @ k * scale, d_scores.mT @ q * scale, share.mT @ gradient, d_scores


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    causal: bool = False,
    scale: float | None = None,
    *rest: Any,
    **others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch_attn::_varlen_attn``: [tokens, heads, head], each sequence on its own. Paged keys are not there.

    Flash attention, as CUDA has it: RuntimeError for what is not half precision.
    """
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(f"FlashAttention only supports fp16 and bf16, got {query.dtype} (at {current_line()})")
    if others.get("seqused_k") is not None or any(isinstance(each, Tensor) for each in rest):
        raise NotImplementedError("the emulated device's varlen attention has no seqused_k and no block_table")
    report_attention("varlen", query, key, None, causal)
    out = torch.zeros_like(query)
    for q_rows, k_rows in _sequences(cu_seq_q, cu_seq_k):
        q, k, v = (x.transpose(0, 1)[None] for x in (query[q_rows], key[k_rows], value[k_rows]))
        gqa = query.shape[1] != key.shape[1]
        part = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=gqa)
        out[q_rows] = part[0].transpose(0, 1)
    return out, torch.zeros(query.shape[1], query.shape[0]), torch.zeros(2, dtype=torch.uint64)


def varlen_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _out: Tensor,
    _lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    _max_q: int,
    _max_k: int,
    causal: bool,
    _rng: Tensor,
    scale: float | None = None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``varlen`` to query, key and value."""
    found = [torch.zeros_like(x) for x in (query, key, value)]
    groups = query.shape[1] // key.shape[1]
    for q_rows, k_rows in _sequences(cu_seq_q, cu_seq_k):
        g, q = (x[q_rows].float().transpose(0, 1) for x in (gradient, query))
        k, v = (x[k_rows].float().transpose(0, 1).repeat_interleave(groups, dim=0) for x in (key, value))
        dq, dk, dv, _scores = _backward(g, q, k, v, None, causal, scale)
        dk, dv = (x.unflatten(0, (key.shape[1], groups)).sum(1) for x in (dk, dv))
        for whole, rows, part in zip(found, (q_rows, k_rows, k_rows), (dq, dk, dv), strict=True):
            whole[rows] = part.transpose(0, 1).to(whole.dtype)
    return found[0], found[1], found[2]


def _sequences(cu_seq_q: Tensor, cu_seq_k: Tensor) -> list[tuple[slice, slice]]:
    """Rows of each sequence's queries and keys."""
    bounds = [list(map(int, cu.tolist())) for cu in (cu_seq_q, cu_seq_k)]
    return [
        (slice(*q), slice(*k))
        for q, k in zip(
            zip(bounds[0], bounds[0][1:], strict=False), zip(bounds[1], bounds[1][1:], strict=False), strict=True
        )
    ]


class _RMSNorm(torch.autograd.Function):
    """``rms_norm`` on emulated tensors, a kernel forward and one back, as CUDA has."""

    @staticmethod
    def forward(ctx: Any, x: EmulatedTensor, weight: EmulatedTensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        report(x.number, "rms_norm" if x.numel() else None)
        out = F.rms_norm(x.host, (x.shape[-1],), None if weight is None else weight.host, eps)
        return EmulatedTensor(out, x.number)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any, None]:
        x, weight = ctx.saved_tensors
        wide, gradient = x.host.float(), gradients[0].host.float()
        factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + ctx.eps)
        normed = wide * factor
        scaled = gradient if weight is None else gradient * weight.host.float()
        d_x = factor * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
        report(x.number, "rms_norm_backward" if x.numel() else None)
        d_weight = None
        if weight is not None:
            d_weight = (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype)
        return wrapped(d_x.to(x.dtype), x.number), wrapped(d_weight, x.number), None


def rms_norm(x: Any, shape: list[int], weight: Any = None, eps: float | None = None) -> Any:
    """``aten::rms_norm`` over the last dimension."""
    if len(shape) != 1:
        raise NotImplementedError("the emulated device normalises over one dimension")
    return _RMSNorm.apply(x, weight, torch.finfo(x.dtype).eps if eps is None else eps)
