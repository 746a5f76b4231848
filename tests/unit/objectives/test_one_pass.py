"""Losses by the fused kernel, constraint and mask included, equal those of the plain formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.config.schema import ObjectiveConfig
from srum_ds.kernels.dispatch import active
from srum_ds.kernels.triton.velocity import velocity_loss
from srum_ds.models.matching import CategoricalTokens, FlowMatching
from srum_ds.objectives import get_objective
from srum_ds.objectives.apply import compute_losses
from srum_ds.objectives.registry import Terms

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
SHAPE = (3, 10, 5)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def losses_and_slope(name: str, settings: ObjectiveConfig, fused: bool, calls: list[str]) -> tuple[Tensor, Tensor]:
    def counted(*args: Any) -> Tensor:
        calls.append(name)
        return velocity_loss(*args)

    low = 0.0 if get_objective(name).weights == "positive" else -1.0
    weights_BT = (randn(4, *SHAPE[:2]) / 4).clamp(low, 1.0)
    counts_BT = randn(5, *SHAPE[:2]) > -1
    weights_BT[~counts_BT] = torch.nan
    prediction = randn(1).requires_grad_()
    time_B = torch.tensor([0.2, 0.5, 0.9], device=DEVICE)
    terms = Terms(FlowMatching(), prediction, randn(2), weights_BT, randn(3), randn(6), time_B=time_B)
    with active({"velocity_loss": counted} if fused else {}, DEVICE):
        losses_BT = compute_losses(get_objective(name), terms, settings, counts_BT)
    losses_BT.mul(randn(7, *SHAPE[:2])).sum().backward()
    assert prediction.grad is not None
    assert bool((losses_BT[~counts_BT] == 0).all())
    return losses_BT.detach(), prediction.grad


@pytest.mark.parametrize("constraint", ["reference", "target", "none"])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("name", ["nft", "weighted", "sft"])
def test_one_pass_gives_the_same(name: str, adaptive: bool, constraint: Any) -> None:
    settings = ObjectiveConfig(beta=0.7, adaptive=adaptive, constraint=constraint, constraint_weight=0.4)
    calls: list[str] = []
    ours, slope = losses_and_slope(name, settings, True, calls)
    assert calls == [name]
    plain, plain_slope = losses_and_slope(name, settings, False, calls)
    assert calls == [name]
    torch.testing.assert_close(ours, plain, rtol=0, atol=2e-6 * float(plain.abs().max()))
    torch.testing.assert_close(slope, plain_slope, rtol=0, atol=2e-6 * float(plain_slope.abs().max()))


@pytest.mark.parametrize("name", ["signed", "group", "awm"])
def test_losses_that_are_no_sum_of_energies_stay_as_they_are(name: str) -> None:
    calls: list[str] = []
    ours, plain = (losses_and_slope(name, ObjectiveConfig(), fused, calls)[0] for fused in (True, False))
    assert calls == [] and torch.equal(ours, plain)


def test_the_constraint_still_needs_its_reference() -> None:
    terms = Terms(FlowMatching(), randn(1), randn(2), randn(4, *SHAPE[:2]).clamp(0, 1))
    with active({"velocity_loss": velocity_loss}, DEVICE), pytest.raises(ValueError, match="reference model's"):
        compute_losses(get_objective("weighted"), terms, ObjectiveConfig(constraint="reference"))


def test_codes_have_no_such_pass() -> None:
    logprobs, codes = randn(1)[..., 0].requires_grad_(), torch.zeros(SHAPE[:2], dtype=torch.int64, device=DEVICE)
    terms = Terms(CategoricalTokens(), logprobs, codes, randn(4, *SHAPE[:2]).clamp(0, 1))
    settings = ObjectiveConfig(constraint="none")
    with active({"velocity_loss": velocity_loss}, DEVICE):
        assert compute_losses(get_objective("weighted"), terms, settings).shape == SHAPE[:2]
