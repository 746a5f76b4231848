"""The released sampler as pure functions: noise levels, the times that are passed, guidance, Euler updates; settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.blip3o.denoiser import TIME_SCALE


@dataclass(frozen=True)
class Blip3oSampling:
    """Settings of both samplers; the defaults are the released code's: 30 steps, guidance 3; 50 steps, guidance 3.

    ``num_timesteps`` counts time points of the features, 0 included, so there is one step fewer; ``decoder_timesteps``
    those of the decoder that turns them into pixels. ``text_scale`` is guidance of the features against no condition,
    at 1 there is none. ``decoder_scale`` is guidance of the decoder against the features of the empty text, up to 1
    there is none.

    UserError, naming the setting, for a value out of its range.
    """

    num_timesteps: int = 31
    text_scale: float = 3.0
    decoder_timesteps: int = 51
    decoder_scale: float = 3.0

    def __post_init__(self) -> None:
        for name in ("num_timesteps", "decoder_timesteps"):
            if getattr(self, name) < 2:
                raise UserError(f"the sampler's {name} is {getattr(self, name)}, expected at least 2")
        for name in ("text_scale", "decoder_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"the sampler's {name} is {getattr(self, name)}, expected a number from 0")

    @property
    def steps(self) -> int:
        """How often the features are moved."""
        return self.num_timesteps - 1

    @property
    def decoder_steps(self) -> int:
        """How often the decoder's latents are moved."""
        return self.decoder_timesteps - 1


def noise_levels(steps: int) -> Tensor:
    """linspace(1, 1 / steps, steps) and 0 behind it: [steps + 1] float32, as the released code asks its scheduler."""
    sigmas = torch.from_numpy(np.linspace(1.0, 1.0 / steps, steps)).float()
    return torch.cat([sigmas, torch.zeros(1)])


def passed_timesteps(sigmas: Tensor) -> Tensor:
    """The times that the transformer is given while drawing: 1000 sigma **truncated**, int64, one a step.

    The released code casts them so; the steps themselves go by the exact levels.
    """
    return (sigmas[:-1] * TIME_SCALE).long()


def guide(conditional: Tensor, empty: Tensor, scale: float) -> Tensor:
    """e + scale (c - e): classifier-free guidance (arXiv 2207.12598)."""
    return empty + scale * (conditional - empty)


def euler(velocity: Callable[[Tensor, int], Tensor], noise: Tensor, sigmas: Tensor) -> Tensor:
    """Integrates x <- x + (sigma' - sigma) v from noise to data, in float32 on the noise's device.

    velocity: (x, the time as it is passed) -> v = noise - data. sigmas: as ``noise_levels``.
    """
    x = noise.float()
    levels = sigmas.tolist()
    for now, following, timestep in zip(levels[:-1], levels[1:], passed_timesteps(sigmas).tolist(), strict=True):
        x = x + (following - now) * velocity(x, timestep).float()
    return x


def to_tokens(map_BCHW: Tensor) -> Tensor:
    """Cells of maps as tokens [B, H W, C], row-major."""
    return map_BCHW.flatten(2).transpose(1, 2)


def to_map(tokens_BTC: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens as maps [B, C, H, W]; the inverse of ``to_tokens``."""
    return tokens_BTC.transpose(1, 2).unflatten(2, grid)
