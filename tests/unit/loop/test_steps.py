"""A step's pieces: which map an objective gets, and which images count."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config import Config, load_config
from srum_ds.monitoring.metrics import StillLearns
from srum_ds.objectives.apply import Batch, count_tokens, partner_rows
from tests.support.batches import left_half_batch, losses_of, map_of

COPIES, TOKENS, CHANNELS = 2, 4, 3
GROUPS = (0, 0, 1, 1)
OPTIONS = {
    "nft": ("beta", "adaptive"),
    "signed": ("bound",),
    "group": ("clip",),
    "awm": ("clip",),
    "dpo": ("dpo_beta",),
}


def recipe(name: str, *more: str) -> Config:
    return load_config("launch/recipes/tiny.yaml", [f"objective.name={name}", *more])


def batch(cfg: Config, global_N: list[float], local_R: list[float]) -> Batch:
    """Two prompts with two images each, one box over the left half of each image."""
    return left_half_batch(cfg, global_N, local_R, GROUPS, COPIES, CHANNELS)


def weights_of(name: str, global_N: list[float], local_R: list[float], *more: str) -> Tensor:
    return map_of(batch(recipe(name, *more), global_N, local_R))


def test_group_weighs_each_token_against_the_same_token_of_its_group() -> None:
    found = weights_of("group", [0.5, 0.5, -1.0, 1.0], [1.0, -1.0, 0.0, 0.0])
    # Prompt a: only the left half differs, by +-1 (local weight 1): 1 / (1 + 0.1) / 2.
    assert found[0].tolist() == [pytest.approx([1 / 1.1 / 2, 0.0])] * 2
    assert found[1, 0, 0] == pytest.approx(-1 / 1.1 / 2)
    # Prompt b: the whole image, +-1.
    assert found[3].flatten().tolist() == pytest.approx([1 / 1.1 / 2] * 4)


def test_a_pair_is_the_best_against_the_worst_and_only_pairs_count() -> None:
    cfg = recipe("dpo", "objective.constraint=none", "objective.dpo_beta=3")
    scores = ([0.5, 0.9, 0.3, math.nan], [0.0] * 4)
    given = batch(cfg, *scores)
    assert map_of(given)[:, 0, 0].tolist() == [-1, 1, 0, 0]
    assert given.counts_NMT[:, 0, 0].tolist() == [True, True, False, False]
    assert batch(recipe("signed"), *scores).counts_NMT[:, 0, 0].tolist() == [True, True, True, False]
    assert given.weights.partner_N is not None
    assert partner_rows(given.weights.partner_N, COPIES).tolist() == [2, 3, 0, 1, 4, 5, 6, 7]
    # At the reference every pair's loss is log 2, with equal and opposite pulls.
    v = torch.randn(4, COPIES, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))
    losses = losses_of(cfg, given, v, None, v)
    assert losses.shape == (4 * COPIES, TOKENS)
    assert torch.allclose(losses[: 2 * COPIES], torch.tensor(math.log(2)))
    assert losses[2 * COPIES :].eq(0).all()
    assert float(count_tokens([given, given])) == 2 * 2 * COPIES * TOKENS


@pytest.mark.parametrize("name", ["nft", "weighted", "sft", "signed", "group", "awm", "dpo"])
def test_every_objective_takes_its_options_from_the_recipe(name: str) -> None:
    cfg = recipe(name)
    given = batch(cfg, [0.5, -0.5, 0.3, -0.9], [0.4, -0.4, 0.9, -0.1])
    generator = torch.Generator().manual_seed(2)
    v, old, reference = (torch.randn(4, COPIES, TOKENS, CHANNELS, generator=generator) for _ in range(3))
    v.requires_grad_()
    losses = losses_of(cfg, given, v, old, reference)
    losses.sum().backward()
    assert v.grad is not None and torch.isfinite(v.grad).all() and v.grad.abs().max() > 0
    for option in OPTIONS.get(name, ()):
        other = recipe(name, f"objective.{option}={'false' if option == 'adaptive' else 0.05}")
        assert not torch.equal(losses_of(other, given, v, old, reference), losses)


def test_map_settings_reach_the_weights() -> None:
    scores = ([0.5, -0.5, 0.3, -0.9], [0.4, -0.4, 0.9, -0.1])
    plain = weights_of("nft", *scores)
    for setting in ("reward.background=-1", "reward.global_factor=multiplicative"):
        assert not torch.allclose(weights_of("nft", *scores, setting), plain)
    # On boxes that follow the grid, both ways of coming down to tokens agree.
    assert torch.allclose(weights_of("nft", *scores, "reward.resize=bilinear"), plain)


def test_a_run_that_learns_nothing_any_more_ends() -> None:
    learns = StillLearns()
    for step, norm in enumerate([0.1, math.nan, math.inf, 0.2, math.nan, math.nan]):
        learns.check(step, norm)
    with pytest.raises(UserError, match="3 steps in a row, the last being 6"):
        learns.check(6, math.nan)
