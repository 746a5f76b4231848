"""Drawing a step's pictures, and the noised copies of them that training looks at.

All randomness is by identity: seeded by (run seed, purpose, step, prompt name, sample index), so that a
picture and its noised copies are the same for any batch, rank or world size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from srum_ds.common import seeds
from srum_ds.config import Config
from srum_ds.models.flow import FlowSampling
from srum_ds.models.protocol import UnifiedModel
from srum_ds.types import Prompt, Samples


def roll_out(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    images_per_prompt: int,
    grid: tuple[int, int],
    token_channels: int,
    sampling: FlowSampling,
    seed: int,
    step: int,
) -> Samples:
    """Draws K pictures of each prompt; the samples of a prompt stand next to each other."""
    repeated = [prompt for prompt in prompts for _ in range(images_per_prompt)]
    samples = list(range(images_per_prompt)) * len(prompts)
    shape = (grid[0] * grid[1], token_channels)
    noise = [seeds.noise(shape, seed, "rollout", step, p.name, k) for p, k in zip(repeated, samples, strict=True)]
    targets_NTC, images_NCHW = model.generate(repeated, torch.stack(noise), grid, sampling)
    return Samples(
        prompts=tuple(prompts),
        group_N=torch.arange(len(prompts)).repeat_interleave(images_per_prompt),
        sample_N=torch.tensor(samples),
        images_NCHW=images_NCHW,
        tokens=targets_NTC,
        grid=grid,
    )


def generate(cfg: Config, model: Any, prompts: Sequence[Prompt], sampling: FlowSampling, step: int) -> Samples:
    """K pictures of each prompt; see ``roll_out``."""
    return roll_out(
        model,
        prompts,
        cfg.rollout.images_per_prompt,
        model.grid_of(*cfg.rollout.image_size),
        model.config.token_channels,
        sampling,
        cfg.run.seed,
        step,
    )
