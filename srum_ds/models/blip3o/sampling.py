"""The released sampler as pure functions: noise levels, the times that are passed, guidance, Euler steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from srum_ds.models.blip3o.settings import TIME_SCALE


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
    map_BCHW: Tensor = tokens_BTC.transpose(1, 2).unflatten(2, grid)
    return map_BCHW
