"""The sampler of flow-matching pipelines as pure functions: guidance, Euler updates, and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.common.errors import UserError


@dataclass(frozen=True)
class PipelineSampling:
    """Settings of a pipeline's sampler; the defaults are Qwen-Image's: 50 steps, guidance 4.

    ``num_timesteps`` counts time points, 0 included, so there is one step fewer. ``text_scale`` is classifier-free
    guidance against the empty prompt; up to 1 there is none. The noise levels are the pipeline's own.

    UserError, naming the setting, for a value out of its range.
    """

    num_timesteps: int = 51
    text_scale: float = 4.0

    def __post_init__(self) -> None:
        if self.num_timesteps < 3:
            raise UserError(f"the sampler's num_timesteps is {self.num_timesteps}, expected at least 3")
        if not 0 <= self.text_scale < math.inf:
            raise UserError(f"the sampler's text_scale is {self.text_scale}, expected a number from 0")

    @property
    def steps(self) -> int:
        """How often the denoiser runs with the prompt."""
        return self.num_timesteps - 1

    @property
    def guided(self) -> bool:
        """Whether the empty prompt is looked at, too."""
        return self.text_scale > 1


Guide = Callable[[Tensor, Tensor, float], Tensor]
"""Velocities [B, T, C] with the prompt and without, and the scale -> the guided velocity [B, T, C]."""


def plain(conditional_BTC: Tensor, empty_BTC: Tensor, scale: float) -> Tensor:
    """e + s (c - e): classifier-free guidance (arXiv 2207.12598)."""
    return empty_BTC + scale * (conditional_BTC - empty_BTC)


def rescaled(conditional_BTC: Tensor, empty_BTC: Tensor, scale: float) -> Tensor:
    """``plain``, each token scaled to the length of c: Qwen-Image's (the released pipeline's code)."""
    guided_BTC = plain(conditional_BTC, empty_BTC, scale)
    return guided_BTC * (_length(conditional_BTC) / _length(guided_BTC))


def shortened(conditional_BTC: Tensor, empty_BTC: Tensor, scale: float) -> Tensor:
    """``plain``, each token longer than c scaled to the length of c: LongCat-Image's (the released pipeline's code)."""
    guided_BTC = plain(conditional_BTC, empty_BTC, scale)
    return guided_BTC * (_length(conditional_BTC) / (_length(guided_BTC) + 1e-8)).clamp(max=1.0)


def _length(v_BTC: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v_BTC, dim=-1, keepdim=True)
    return length


GUIDES: Mapping[str, Guide] = {"plain": plain, "rescaled": rescaled, "shortened": shortened}
"""The ways of guiding that are known, by name."""


def euler(velocity: Callable[[Tensor, float], Tensor], noise_BTC: Tensor, sigmas: Tensor) -> Tensor:
    """Integrates x <- x + (sigma' - sigma) v from noise to data, in float32 on the noise's device.

    velocity: (x [B, T, C], sigma) -> v [B, T, C] = noise - data. sigmas: [N + 1], descending, the last 0.
    """
    x_BTC = noise_BTC.float()
    for now, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x_BTC = x_BTC + (following - now) * velocity(x_BTC, now).float()
    return x_BTC
