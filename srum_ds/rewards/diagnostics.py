"""What to watch: label-free signals of a step. Sums and counts first, so that ranks can add them up."""

from __future__ import annotations

import torch
from torch import Tensor

from srum_ds.models.base import Status


def status_counts(status_M: Tensor) -> Tensor:
    """How many answers were [parsed, clamped, failed]: int64 [3], to be summed over ranks."""
    return torch.bincount(status_M.flatten().long(), minlength=len(Status))


def failed_share(counts_3: Tensor) -> float:
    """Share of failed answers in [0, 1] from ``status_counts``; 0 when nothing was asked."""
    total = int(counts_3.sum())
    return float(counts_3[int(Status.FAILED)]) / total if total else 0.0


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


def finite_sums(values: Tensor) -> Tensor:
    """[count, sum, sum of squares] of the finite values, float64 [3], to be summed over ranks."""
    values = values.detach().double().flatten()
    values = values[torch.isfinite(values)]
    return torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])


def moments(sums_3: Tensor) -> tuple[float, float]:
    """(mean, population standard deviation) from ``finite_sums``; NaN for no values.

    For the rollouts' latents this is the earliest sign of collapse: on latents of unit scale the standard
    deviation should stay within a few hundredths of the base model's.
    """
    count, total, squares = (float(x) for x in sums_3)
    if count == 0:
        return float("nan"), float("nan")
    mean = total / count
    return mean, max(squares / count - mean * mean, 0.0) ** 0.5


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


def surplus_share(phrase_R: Tensor) -> float:
    """Share in [0, 1] of the regions that no phrase claims; 0 without regions."""
    return float((phrase_R < 0).double().mean()) if phrase_R.numel() else 0.0
