"""What a token is, and what its spread and distance are worth in numbers."""

from __future__ import annotations

import math

import pytest
import torch

from srum_ds.monitoring.metrics import group_diversity
from srum_ds.types import Prompt, Samples, TokenSpec

FLOATS = TokenSpec("continuous", 2)
CODES = TokenSpec("discrete", 8)


def test_which_tensors_fit() -> None:
    assert FLOATS.fits(torch.zeros(3, 4, 2)) and not FLOATS.fits(torch.zeros(3, 4, 5))
    assert not FLOATS.fits(torch.zeros(3, 4, dtype=torch.int64))
    assert CODES.fits(torch.zeros(3, 4, dtype=torch.int64)) and not CODES.fits(torch.zeros(3, 4, 2))


def test_moments_by_hand() -> None:
    assert FLOATS.moments(torch.tensor([[[1.0, 2.0], [3.0, -2.0]]])) == (4.0, 18.0, 4)
    # One code everywhere has no spread; four different codes of four: 1 - 4 / 16.
    alike, different, halves = torch.tensor([[5, 5, 5, 5], [0, 1, 2, 3], [1, 1, 2, 2]])
    assert CODES.moments(alike[None]) == (0.0, 0.0, 4)
    assert CODES.moments(different[None])[1] == pytest.approx(4 * (1 - 4 / 16))
    total = CODES.moments(torch.stack([alike, different, halves]))
    assert total[1] == pytest.approx(0 + 3 + 4 * 0.5) and total[2] == 12


def test_distances_by_hand() -> None:
    # Three images of two tokens with two channels: differences 1, 2 and 1 everywhere.
    tokens = torch.stack([torch.full((2, 2), value) for value in (0.0, 1.0, 2.0)])
    assert FLOATS.mean_distance(tokens) == pytest.approx((1 + 2 + 1) / 3)
    codes = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5], [5, 6, 7, 8]])
    assert CODES.mean_distance(codes) == pytest.approx((1 / 4 + 1 + 1) / 3)


def test_diversity_is_within_prompts() -> None:
    prompts = (Prompt("a", "a"), Prompt("b", "b"))
    codes = torch.tensor([[1, 1], [1, 2], [3, 3], [3, 3]])
    samples = Samples(
        prompts, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), torch.zeros(4, 3, 2, 2), codes, (1, 2)
    )
    assert group_diversity(CODES, samples) == pytest.approx((1 / 2 + 0) / 2)
    alone = Samples(prompts[:1], torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 3, 2, 2), codes[:1], (1, 2))
    assert math.isnan(group_diversity(CODES, alone))
