"""How a code is chosen from logits: guidance, temperature, and the uniform number that decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.common.seeds import Key
from srum_ds.models.janus.settings import CodeSampling as CodeSampling


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u + s (c - u): classifier-free guidance of logits (arXiv 2207.12598, as the release has it)."""
    return unconditional + scale * (conditional - unconditional)


def uniforms(keys: Sequence[Key], tokens: int) -> Tensor:
    """One number in [0, 1) for each of the codes of the pictures that ``keys`` seed: float32 [N, tokens], CPU."""
    return torch.stack([seeds.uniform((tokens,), *key) for key in keys])


def choose(logits_NV: Tensor, uniform_N: Tensor, temperature: float) -> Tensor:
    """The code of each row by inversion: how many of the sums of softmax(logits / temperature) are <= u; int64 [N].

    In double precision, so that it does not depend on how sums are taken. Temperature 0: the likeliest code.
    """
    if temperature == 0:
        return logits_NV.argmax(dim=-1)
    share_NV = (logits_NV.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    code_N1 = torch.searchsorted(share_NV, uniform_N.double()[:, None].contiguous(), right=True)
    # The last sum may stay below 1 by rounding.
    return code_N1[:, 0].clamp(max=logits_NV.shape[-1] - 1)
