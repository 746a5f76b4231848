"""Attention over a layout: one dense mask, or a block mask that skips what no query may see.

Query heads that share a key head lie one after another along the query axis, so a query's row of the mask is
its index modulo the number of tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from srum_ds.models.bagel.layout import Layout

Kernel = Literal["auto", "sdpa", "flex"]
KERNELS: tuple[str, ...] = get_args(Kernel)
FLEX_FROM_TOKENS = 256
"""Below this length a block mask has too few blocks to skip any."""


def choose_kernel(kernel: str, device: torch.device, tokens: int) -> str:
    """``sdpa`` or ``flex``: what ``auto`` means for training on this device with so many tokens a sample."""
    if kernel not in KERNELS:
        raise ValueError(f"attention kernel {kernel!r} is none of {', '.join(KERNELS)}")
    if kernel != "auto":
        return kernel
    fits = device.type == "cuda" and tokens >= FLEX_FROM_TOKENS
    return "flex" if fits and torch.is_grad_enabled() else "sdpa"


def dense_mask(layout: Layout, groups: int, dtype: torch.dtype) -> Tensor:
    """0 or -inf, [B, 1, groups * S, K]."""
    allowed = layout.allowed_BQK[:, None].repeat(1, 1, groups, 1)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, float("-inf"))


def block_mask(layout: Layout, groups: int) -> BlockMask:
    """The same mask by blocks, for ``flex_attention``."""
    allowed_BQK = layout.allowed_BQK
    batch, length, keys = allowed_BQK.shape

    def allowed(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed_BQK[b, query % length, key]

    return create_block_mask(allowed, batch, None, groups * length, keys, device=str(allowed_BQK.device))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask) -> Tensor:
    """Scaled dot-product attention, in q's dtype; a dense mask is additive, [B, 1, Q, K].

    On CPU it computes in float32: the bfloat16 kernel's backward pass is several times slower there.
    """
    if isinstance(mask, BlockMask):
        return _flex(q.device.type)(q, k, v, block_mask=mask)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask.float())
    return out.to(q.dtype)


@lru_cache(maxsize=1)
def _flex(device_type: str) -> Any:
    # Uncompiled, flex attention is a plain reference; compiled it is one kernel, and needs a GPU for backward.
    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention
