"""Cross-entropy of a linear head over many codes, without all its logits at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NO_CODE = -1


def linear_cross_entropy_reference(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, bias_V: Tensor | None = None
) -> Tensor:
    """-log softmax(hidden weight^T + bias)[target] from all logits [N, V]: [N], in float32 at least."""
    logits_NV = F.linear(hidden_ND, weight_VD, bias_V)
    return F.cross_entropy(_wide(logits_NV), target_N, ignore_index=NO_CODE, reduction="none")


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, bias_V: Tensor | None = None, chunk: int = 512
) -> Tensor:
    """The same with the logits of ``chunk`` rows at a time; backward computes them once more instead of keeping them.

    Products are in the dtype of hidden and weight, everything after them, and the sum of the weight's gradient over
    chunks, in float32 at least.

    Args:
        hidden_ND: what the head reads, of the dtype of weight_VD and bias_V.
        weight_VD, bias_V: the head.
        target_N: int64 codes in [0, V); -1 is no code and has loss 0.
        chunk: rows whose logits exist at once, >= 1.
    """
    done: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, target_N, bias_V, chunk)  # type: ignore[no-untyped-call]
    return done


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, bias_V: Tensor | None, chunk: int
    ) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, target_N, bias_V)
        ctx.chunk = chunk
        losses = [
            linear_cross_entropy_reference(hidden, weight_VD, target, bias_V)
            for hidden, target in zip(hidden_ND.split(chunk), target_N.split(chunk), strict=True)
        ]
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        # d loss / d logits = softmax(logits) - onehot(target), 0 where there is no code.
        hidden_ND, weight_VD, target_N, bias_V = ctx.saved_tensors
        for_hidden, for_weight, _, for_bias, _ = ctx.needs_input_grad
        hidden_grad_ND = torch.empty_like(hidden_ND) if for_hidden else None
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=wide) if for_weight else None
        bias_grad_V = torch.zeros_like(bias_V, dtype=wide) if for_bias else None
        for start in range(0, len(target_N), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            target = target_N[rows]
            slope = _wide(F.linear(hidden_ND[rows], weight_VD, bias_V)).softmax(dim=-1)
            known = target != NO_CODE
            slope.scatter_add_(1, target.clamp(min=0)[:, None], slope.new_full((len(target), 1), -1.0))
            slope.mul_(torch.where(known, g_N[rows], 0.0)[:, None])
            if bias_grad_V is not None:
                bias_grad_V += slope.sum(dim=0)
            slope = slope.to(weight_VD.dtype)
            if hidden_grad_ND is not None:
                torch.mm(slope, weight_VD, out=hidden_grad_ND[rows])
            if weight_grad_VD is not None:
                weight_grad_VD += slope.t() @ hidden_ND[rows]
        weight_grad = None if weight_grad_VD is None else weight_grad_VD.to(weight_VD.dtype)
        bias_grad = None if bias_grad_V is None else bias_grad_V.to(bias_V.dtype)
        return hidden_grad_ND, weight_grad, None, bias_grad, None
