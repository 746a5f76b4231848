"""What a step's metrics say of scores, statuses and diversity, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from srum_ds.monitoring.metrics import group_diversity, reward_std_zero_share, status_counts
from srum_ds.types import Status, TokenSpec
from tests.support.batches import samples_of


def test_share_of_prompts_without_spread() -> None:
    rewards = torch.tensor([0.5, 0.5, 0.1, 0.9, 0.3, math.nan, 0.2, math.nan])
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert reward_std_zero_share(rewards, group) == 0.75
    assert reward_std_zero_share(rewards[:4], group[:4], tolerance=0.5) == 1.0
    assert reward_std_zero_share(torch.zeros(0), torch.zeros(0, dtype=torch.int64)) == 0.0


def test_status_counts_add_up_over_ranks() -> None:
    first = status_counts(torch.tensor([Status.PARSED, Status.FAILED, Status.PARSED]))
    second = status_counts(torch.tensor([Status.CLAMPED]))
    assert (first + second).tolist() == [2, 1, 1]


def test_diversity_falls_to_zero_when_samples_become_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 16, 64, generator=generator)
    spec = TokenSpec("continuous", 64)
    assert group_diversity(spec, samples_of(tokens, (4, 4), [0, 0, 1, 1])) == pytest.approx(math.sqrt(2), rel=0.05)
    assert group_diversity(spec, samples_of(tokens[[0, 0, 2, 2]], (4, 4), [0, 0, 1, 1])) == 0.0
    assert math.isnan(group_diversity(spec, samples_of(tokens[:1], (4, 4), [0])))
