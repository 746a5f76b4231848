"""A step's pieces: which map an objective gets, and which pictures count."""

from __future__ import annotations

import math

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.config import Config, load_config
from srum_ds.models.flow import Noised
from srum_ds.monitoring.metrics import StillLearns
from srum_ds.objectives import get_objective
from srum_ds.objectives.apply import Batch, partners, reward_weights, token_losses, token_mask
from srum_ds.types import Prompt, Regions, Samples, Scores

COPIES, TOKENS, CHANNELS = 2, 4, 3


def batch(global_N: list[float], local_R: list[float]) -> Batch:
    """Two prompts with two pictures each on a 2 x 2 grid, one box over the left half of each picture."""
    generator = torch.Generator().manual_seed(0)
    n = len(global_N)
    latents = torch.randn(n, TOKENS, CHANNELS, generator=generator)
    rollout = Samples(
        (Prompt("a", "a"), Prompt("b", "b")),
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0, 1, 0, 1]),
        torch.zeros(n, 3, 32, 32),
        latents,
        (2, 2),
    )
    regions = Regions(owner_R=torch.arange(n), boxes_R4=torch.tensor([[0.0, 0.0, 0.5, 1.0]] * n))
    scores = Scores(
        global_N=torch.tensor(global_N),
        global_status_N=torch.zeros(n, dtype=torch.int64),
        local_R=torch.tensor(local_R),
        local_status_R=torch.zeros(n, dtype=torch.int64),
        phrase_R=torch.zeros(n, dtype=torch.int64),
        missing_N=torch.zeros(n),
    )
    noise = torch.randn(n, COPIES, TOKENS, CHANNELS, generator=generator)
    t = torch.full((n, COPIES), 0.5)
    x = 0.5 * latents[:, None] + 0.5 * noise
    return Batch(rollout, regions, scores, Noised(x, noise - latents[:, None], t, torch.zeros(n, COPIES).bool()))


def recipe(name: str, *more: str) -> Config:
    return load_config("launch/recipes/tiny.yaml", [f"objective.name={name}", *more])


def weights_of(name: str, given: Batch, *more: str) -> torch.Tensor:
    weights = reward_weights(recipe(name, *more), get_objective(name).weights, given)
    assert weights is not None
    return weights


def test_group_weighs_each_token_against_the_same_token_of_its_group() -> None:
    given = batch([0.5, 0.5, -1.0, 1.0], [1.0, -1.0, 0.0, 0.0])
    found = weights_of("group", given)
    # Prompt a: only the left half differs, by +-1 (local weight 1): 1 / (1 + 0.1) / 2.
    assert found[0].tolist() == [pytest.approx([1 / 1.1 / 2, 0.0])] * 2
    assert found[1, 0, 0] == pytest.approx(-1 / 1.1 / 2)
    # Prompt b: the whole picture, +-1.
    assert found[3].flatten().tolist() == pytest.approx([1 / 1.1 / 2] * 4)


def test_a_pair_is_the_best_against_the_worst_and_only_pairs_count() -> None:
    given = batch([0.5, 0.9, 0.3, math.nan], [0.0] * 4)
    weights = weights_of("dpo", given)
    assert weights[:, 0, 0].tolist() == [-1, 1, 0, 0]
    assert token_mask(given, "pair", weights)[:, 0, 0].tolist() == [True, True, False, False]
    assert token_mask(given, "signed", weights)[:, 0, 0].tolist() == [True, True, True, False]
    assert partners(weights, given.samples.group_N, COPIES).tolist() == [2, 3, 0, 1, 4, 5, 6, 7]
    # At the reference every pair's loss is log 2, with equal and opposite pulls.
    v = torch.randn(4, COPIES, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))
    cfg = recipe("dpo", "objective.constraint=none", "objective.dpo_beta=3")
    mask = token_mask(given, "pair", weights)
    losses = token_losses(cfg, v, given, weights, mask, None, v)
    assert losses.shape == (4 * COPIES, TOKENS)
    assert torch.allclose(losses[: 2 * COPIES], torch.tensor(math.log(2)))
    assert losses[2 * COPIES :].eq(0).all()


@pytest.mark.parametrize("name", ["nft", "weighted", "sft", "signed", "group", "awm", "dpo"])
def test_every_objective_takes_its_options_from_the_recipe(name: str) -> None:
    given = batch([0.5, -0.5, 0.3, -0.9], [0.4, -0.4, 0.9, -0.1])
    cfg = recipe(name)
    kind = get_objective(name).weights
    weights = reward_weights(cfg, kind, given)
    generator = torch.Generator().manual_seed(2)
    v, old, reference = (torch.randn(4, COPIES, TOKENS, CHANNELS, generator=generator) for _ in range(3))
    v.requires_grad_()
    losses = token_losses(cfg, v, given, weights, token_mask(given, kind, weights), old, reference)
    losses.sum().backward()
    assert v.grad is not None and torch.isfinite(v.grad).all() and v.grad.abs().max() > 0
    for option in get_objective(name).options:
        other = recipe(name, f"objective.{option}={'false' if option == 'adaptive' else 0.05}")
        changed = token_losses(other, v, given, weights, token_mask(given, kind, weights), old, reference)
        assert not torch.equal(changed, losses)


def test_map_settings_reach_the_weights() -> None:
    given = batch([0.5, -0.5, 0.3, -0.9], [0.4, -0.4, 0.9, -0.1])
    plain = weights_of("nft", given)
    for setting in ("reward.background=-1", "reward.global_factor=multiplicative"):
        assert not torch.allclose(weights_of("nft", given, setting), plain)
    # On boxes that follow the grid, both ways of coming down to tokens agree.
    assert torch.allclose(weights_of("nft", given, "reward.resize=bilinear", "rollout.image_size=[32,32]"), plain)


def test_a_run_that_learns_nothing_any_more_ends() -> None:
    learns = StillLearns()
    for step, norm in enumerate([0.1, math.nan, math.inf, 0.2, math.nan, math.nan]):
        learns.check(step, norm)
    with pytest.raises(UserError, match="3 steps in a row, the last being 6"):
        learns.check(6, math.nan)
