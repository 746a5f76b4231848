"""How a code is chosen from logits: guidance, temperature, and the uniform number that decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key


@dataclass(frozen=True)
class CodeSampling:
    """Settings of the sampler of codes (defaults: the release's).

    guidance: scale s of u + s (c - u), between logits without and with the prompt; 1 switches it off. temperature: what
    guided logits are divided by; 0 takes the likeliest code.

    UserError, naming the setting, for a value out of its range.
    """

    guidance: float = 5.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("guidance", self.guidance), ("temperature", self.temperature)):
            if not 0 <= value < math.inf:
                raise UserError(f"the sampler's {name} is {value}, expected a number from 0")

    @property
    def guided(self) -> bool:
        """Whether a second pass, without the prompt, takes part."""
        return self.guidance != 1


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
