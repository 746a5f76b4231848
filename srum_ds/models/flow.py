"""What designs that match flows share: the sampler's settings, noise levels, and noised views of samples.

All randomness is by identity: seeded by the keys that the caller gives, so that an image and its noised views are the
same for any batch, rank or world size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.flow_settings import FlowSampling as FlowSampling
from srum_ds.models.protocol import ViewSettings
from srum_ds.types import Samples, TrainView


def initial_noise(keys: Sequence[Key], shape: tuple[int, int]) -> Tensor:
    """Standard normal noise [N, T, C] of the images that ``keys`` seed, float32 on the CPU."""
    return torch.stack([seeds.normal(shape, *key) for key in keys])


def timesteps(uniform: Tensor, distribution: str, shift: float) -> Tensor:
    """Training times in (0, 1) from uniform numbers: ``logit_normal`` is sigmoid(N(0, 1)), as BAGEL trains.

    ``shift`` moves them towards noise: shift * t / (1 + (shift - 1) * t) (SD3, arXiv 2403.03206).
    """
    if distribution == "logit_normal":
        uniform = torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))
    return shift * uniform / (1 + (shift - 1) * uniform)


def noised_views(samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
    """``settings.copies`` noised copies of every image, each with its own noise, time and prompt dropout.

    x_t = (1 - t) x0 + t noise, target = noise - x0. inputs: ``x_NMTC`` float32, ``time_NM`` in [0, 1] and
    ``dropped_NM`` (bool, on the CPU: a model arranges its batch by it), the copies that are trained without their
    prompt. Every token counts.
    """
    x0_NTC = samples.tokens.float()
    device = x0_NTC.device
    shape = (settings.copies, *x0_NTC.shape[1:])
    noise = torch.stack([seeds.normal(shape, *key) for key in keys.of("noise")]).to(device)
    u_N2M = torch.stack([seeds.uniform((2, settings.copies), *key) for key in keys.of("time")])
    t_NM = timesteps(u_N2M[:, 0].to(device), settings.time_distribution, settings.time_shift)
    t = t_NM[:, :, None, None]
    x0 = x0_NTC[:, None]
    x_NMTC = (1 - t) * x0 + t * noise
    dropped_NM = u_N2M[:, 1] < settings.prompt_dropout
    counts_NMT = torch.ones(x_NMTC.shape[:3], dtype=torch.bool, device=device)
    return TrainView({"x_NMTC": x_NMTC, "time_NM": t_NM, "dropped_NM": dropped_NM}, noise - x0, counts_NMT, t_NM)
