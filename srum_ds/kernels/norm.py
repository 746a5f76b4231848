"""RMSNorm (arXiv 1910.07467): y = w * x / sqrt(mean(x^2) + eps) over the last dimension.

torch differentiates its CPU version step by step: about a dozen elementwise passes over x forward and back. Here
both directions are written out, and their sums over rows and columns are norms and matrix-vector products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srum_ds.kernels.dispatch import fusable


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The formula as torch has it, in x's dtype."""
    return F.rms_norm(x, (x.shape[-1],), weight_D, eps)


@fusable
def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm of x [..., D], in x's dtype; sums are in float32 at least. On a GPU torch has one kernel for it."""
    if x.device.type != "cpu":
        return rms_norm_reference(x, weight_D, eps)
    if not torch.is_grad_enabled():
        # Without the wrapper of a gradient, which costs as much as a small norm.
        return _forward(x, weight_D, eps)[0]
    done: Tensor = _RMSNorm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]
    return done


def add(stream_ND: Tensor, change_ND: Tensor) -> Tensor:
    """Their sum; where nothing is differentiated, in the array of the change, which nobody else has."""
    if torch.is_grad_enabled() or stream_ND.dtype != change_ND.dtype:
        return stream_ND + change_ND
    return change_ND.add_(stream_ND)


@fusable
def add_rms_norm(x_ND: Tensor, delta_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta (``add``), and its RMSNorm, both in their common dtype."""
    sum_ND = add(x_ND, delta_ND)
    return sum_ND, rms_norm(sum_ND, weight_D, eps)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _forward(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normed rows, and what each was multiplied by."""
    wide = _wide(x)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).mul_(_wide(weight_D)).to(x.dtype), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        normed, scale = _forward(x, weight_D, eps)
        ctx.save_for_backward(x, weight_D, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        # With s the scale: dw = sum over rows of g x s, dx = s g w - x s^3 mean(g w x).
        x, weight_D, scale = ctx.saved_tensors
        width = x.shape[-1]
        x_ND = _wide(x).reshape(-1, width)
        g_ND = _wide(gradients[0]).reshape(-1, width)
        scale_N = scale.reshape(-1)
        wide_D = _wide(weight_D)
        product_ND = g_ND * x_ND
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = torch.mv(product_ND.t(), scale_N).to(weight_D.dtype)
        if not ctx.needs_input_grad[0]:
            return None, for_weight, None
        pull_N = torch.mv(product_ND, wide_D).mul_(scale_N.pow(3)).div_(width)
        torch.mul(g_ND, wide_D, out=product_ND)
        product_ND.mul_(scale_N[:, None]).addcmul_(x_ND, pull_N[:, None], value=-1)
        return product_ND.view_as(x).to(x.dtype), for_weight, None


class RMSNorm(nn.RMSNorm):
    """``torch.nn.RMSNorm`` with a weight, over one dimension, through ``rms_norm``."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None and self.eps is not None
        return rms_norm(x, self.weight, self.eps)
