"""What to watch: label-free signals of a step. Sums and counts first, so that ranks can add them up."""

from __future__ import annotations

import torch
from torch import Tensor

from srum_ds.types import Status


def status_counts(status_M: Tensor) -> Tensor:
    """How many answers were [parsed, clamped, failed]: int64 [3], to be summed over ranks."""
    return torch.bincount(status_M.flatten().long(), minlength=len(Status))


def reward_std_zero_share(global_N: Tensor, group_N: Tensor, tolerance: float = 1e-6) -> float:
    """Share of prompts whose samples all got the same reward, and so teach nothing.

    Args:
        global_N: rewards, NaN where failed (left out).
        group_N: prompt of each picture, int64.
        tolerance: largest population standard deviation that counts as none.

    Returns:
        Share in [0, 1] of the groups present. A group with fewer than two valid rewards counts, since
        it has nothing to compare.
    """
    groups = torch.unique(group_N).tolist()
    flat = 0
    for index in groups:
        values = global_N[group_N == index].double()
        values = values[torch.isfinite(values)]
        if values.numel() < 2 or float(values.std(correction=0)) <= tolerance:
            flat += 1
    return flat / len(groups) if groups else 0.0


def group_diversity(targets_NTC: Tensor, group_N: Tensor) -> float:
    """How different the samples of one prompt are: root mean square distance of their latents.

    For each pair of samples of a prompt, the root of the mean squared difference over tokens and
    channels; averaged over the pairs of a prompt, then over prompts. Independent latents of unit
    scale give sqrt(2); identical ones 0. NaN when no prompt has two samples.
    """
    per_group: list[float] = []
    for index in torch.unique(group_N).tolist():
        members = targets_NTC[group_N == index].detach().double().flatten(start_dim=1)
        if members.shape[0] < 2:
            continue
        per_group.append(float(torch.pdist(members).mean()) / members.shape[1] ** 0.5)
    return sum(per_group) / len(per_group) if per_group else float("nan")
