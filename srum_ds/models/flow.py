"""Flow matching: what its designs share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.types import Rollout


@dataclass(frozen=True)
class Sampling:
    """Settings of the flow-matching sampler (BAGEL's names and defaults).

    ``num_timesteps`` counts time points, so there are ``num_timesteps - 1`` Euler updates.
    Guidance applies where ``interval[0] < t <= interval[1]``; scale 1 switches it off.
    ``renorm_scope`` is ``sample`` (a picture never depends on its batch) or ``batch`` (as released).
    """

    num_timesteps: int = 50
    timestep_shift: float = 3.0
    text_scale: float = 4.0
    image_scale: float = 1.0
    interval: tuple[float, float] = (0.4, 1.0)
    renorm: str = "global"
    renorm_min: float = 0.0
    renorm_scope: str = "sample"


@dataclass(frozen=True)
class Noised:
    """M noised copies of each of N pictures: x_t = (1 - t) x0 + t noise, target noise - x0.

    x_NMTC, target_NMTC: float32. t_NM in [0, 1]. dropped_NM (bool): copies trained without prompt.
    """

    x_NMTC: Tensor
    target_NMTC: Tensor
    t_NM: Tensor
    dropped_NM: Tensor


def timesteps(uniform: Tensor, distribution: str, shift: float) -> Tensor:
    """Training times in (0, 1) from uniform numbers: ``logit_normal`` is sigmoid(N(0, 1)), as BAGEL trains.

    ``shift`` moves them towards noise: shift * t / (1 + (shift - 1) * t) (SD3, arXiv 2403.03206).
    """
    if distribution == "logit_normal":
        uniform = torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))
    return shift * uniform / (1 + (shift - 1) * uniform)


def add_noise(
    rollout: Rollout,
    copies: int,
    distribution: str,
    shift: float,
    caption_dropout: float,
    seed: int,
    step: int,
    shared: bool = False,
) -> Noised:
    """``copies`` noised copies of every picture, each with its own noise, time and caption dropout.

    shared: the samples of a prompt get the same ones instead, so that their losses can be compared.
    """
    x0_NTC = rollout.targets_NTC.float()
    device = x0_NTC.device
    samples = [0] * len(rollout.group_N) if shared else rollout.sample_N.tolist()
    names = [(rollout.prompts[g].name, k) for g, k in zip(rollout.group_N.tolist(), samples, strict=True)]
    shape = (copies, *x0_NTC.shape[1:])
    noise = torch.stack([seeds.noise(shape, seed, "noise", step, i, k) for i, k in names]).to(device)
    u_N2M = torch.stack([seeds.uniform((2, copies), seed, "time", step, i, k) for i, k in names]).to(device)
    t_NM = timesteps(u_N2M[:, 0], distribution, shift)
    t = t_NM[:, :, None, None]
    x0 = x0_NTC[:, None]
    return Noised((1 - t) * x0 + t * noise, noise - x0, t_NM, u_N2M[:, 1] < caption_dropout)
