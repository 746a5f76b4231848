"""Drawing a step's pictures, and the noised copies of them that training looks at.

All randomness is by identity: seeded by (run seed, purpose, step, prompt name, sample index), so that a
picture and its noised copies are the same for any batch, rank or world size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds import seeds
from srum_ds.models.base import Prompt, Rollout, Sampling, UnifiedModel


@dataclass(frozen=True)
class Noised:
    """M noised copies of each of N pictures: x_t = (1 - t) x0 + t noise, target noise - x0.

    x_NMTC, target_NMTC: float32. t_NM in [0, 1]. dropped_NM (bool): copies trained without prompt.
    """

    x_NMTC: Tensor
    target_NMTC: Tensor
    t_NM: Tensor
    dropped_NM: Tensor


def roll_out(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    images_per_prompt: int,
    grid: tuple[int, int],
    token_channels: int,
    sampling: Sampling,
    seed: int,
    step: int,
) -> Rollout:
    """Draws K pictures of each prompt; the samples of a prompt stand next to each other."""
    repeated = [prompt for prompt in prompts for _ in range(images_per_prompt)]
    samples = list(range(images_per_prompt)) * len(prompts)
    shape = (grid[0] * grid[1], token_channels)
    noise = [seeds.noise(shape, seed, "rollout", step, p.name, k) for p, k in zip(repeated, samples, strict=True)]
    targets_NTC, images_NCHW = model.generate(repeated, torch.stack(noise), grid, sampling)
    return Rollout(
        prompts=tuple(prompts),
        group_N=torch.arange(len(prompts)).repeat_interleave(images_per_prompt),
        sample_N=torch.tensor(samples),
        images_NCHW=images_NCHW,
        targets_NTC=targets_NTC,
        grid=grid,
    )


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
