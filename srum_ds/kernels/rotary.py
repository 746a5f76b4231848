"""Rotary embedding by rotated halves (RoFormer, arXiv 2104.09864).

The gradient of a rotation is the rotation back, so nothing of x is kept and no half is copied together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotary_factors(position_N: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, head] (float32) of integer positions."""
    index = torch.arange(0, head_size, 2, dtype=torch.float32, device=position_N.device)
    frequency = 1.0 / theta ** (index / head_size)
    angle = position_N[:, None].float() * frequency[None, :]
    angle = torch.cat([angle, angle], dim=-1)[:, None, :]
    return angle.cos(), angle.sin()


def rotate_reference(x_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """x cos + (-second half, first half) sin, in x's dtype."""
    first, second = x_NHD.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_NHD * cos_N1D.to(x_NHD.dtype) + turned * sin_N1D.to(x_NHD.dtype)


def rotate(x_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """The same; the factors are constants, in x's dtype."""
    if not torch.is_grad_enabled():
        return _turn(x_NHD, cos_N1D, sin_N1D, 1)
    done: Tensor = _Rotate.apply(x_NHD, cos_N1D, sin_N1D)  # type: ignore[no-untyped-call]
    return done


def _turn(x_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor, sign: int) -> Tensor:
    half = x_NHD.shape[-1] // 2
    out = x_NHD * cos_N1D
    out[..., :half].addcmul_(x_NHD[..., half:], sin_N1D[..., :half], value=-sign)
    out[..., half:].addcmul_(x_NHD[..., :half], sin_N1D[..., half:], value=sign)
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
        ctx.save_for_backward(cos_N1D, sin_N1D)
        return _turn(x_NHD, cos_N1D, sin_N1D, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos_N1D, sin_N1D = ctx.saved_tensors
        return _turn(gradients[0], cos_N1D, sin_N1D, -1), None, None
