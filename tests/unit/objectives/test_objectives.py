"""Objectives: values by hand, directions of their gradients, and the released losses."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.objectives import OBJECTIVES, compute_losses, get_objective, nft, signed, square_error, weighted
from tests.support.paths import CONFORMANCE as SETS

CONFORMANCE = SETS / "bagel_a"

V = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
TARGET = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
OLD = torch.tensor([[[0.5, 1.0], [1.0, 1.0]]])


def losses(name: str, weights: list[float] | None = None, velocity: Tensor = V, **settings: object) -> Tensor:
    weights_BT = None if weights is None else torch.tensor([weights])
    return compute_losses(
        name,
        velocity,
        TARGET,
        weights_BT=weights_BT,
        old_velocity_BTC=OLD,
        reference_velocity_BTC=OLD,
        partner_B=torch.zeros(1, dtype=torch.int64),
        **settings,  # type: ignore[arg-type]
    )


def test_values_by_hand() -> None:
    # |e|^2: (1 + 4) / 2 = 2.5 and (1 + 0) / 2 = 0.5
    assert losses("sft").tolist() == [[2.5, 0.5]]
    assert losses("weighted", [0.2, 1.0], constraint="none").tolist() == [pytest.approx([0.5, 0.5])]
    # released: plus 0.5 |e|^2
    assert losses("weighted", [0.2, 1.0]).tolist() == [pytest.approx([1.75, 0.75])]
    # |v - old|^2: (0.25 + 4) / 2 = 2.125 and (1 + 1) / 2 = 1
    held = losses("sft", constraint="reference", constraint_weight=0.1)
    assert held.tolist() == [pytest.approx([2.7125, 0.6])]
    repelled = -0.5 * 2.0 * (1 - math.exp(-0.5 / 2))
    assert losses("signed", [1.0, -0.5], constraint="none").tolist() == [pytest.approx([2.5, repelled])]
    assert losses("signed", [1.0, -0.5]).tolist() == [pytest.approx([2.5 + 2.125, repelled + 1.0])]


def test_nft_by_hand() -> None:
    # b = 1: v+ = v, v- = 2 old - v = (0, -1) and (2, 2)
    # |v- - target|^2 = (0 + 4) / 2 = 2 and (1 + 4) / 2 = 2.5; r = 0.75 and 0.25
    expected = [0.75 * 2.5 + 0.25 * 2, 0.25 * 0.5 + 0.75 * 2.5]
    assert losses("nft", [0.5, -0.5]).tolist() == [pytest.approx(expected)]
    # b = 0.5: v+ = (0.75, 2), (0.5, 0.5); v- = (0.25, 0), (1.5, 1.5)
    plus = [(0.75**2 + 1) / 2, 0.25]
    minus = [(0.25**2 + 1) / 2, (0.25 + 2.25) / 2]
    expected = [(0.75 * plus[0] + 0.25 * minus[0]) / 0.5, (0.25 * plus[1] + 0.75 * minus[1]) / 0.5]
    assert losses("nft", [0.5, -0.5], options={"beta": 0.5}).tolist() == [pytest.approx(expected)]


def test_adaptive_nft_by_hand() -> None:
    # b = 1 as above: mean |v+ - target| = (1 + 2 + 1 + 0) / 4 = 1 and mean |v- - target| = (0 + 2 + 1 + 2) / 4;
    # at t = 0.5 the squares count t^2 / (t * 1) = 0.5 and 0.25 / 0.625 = 0.4.
    expected = [0.75 * 2.5 * 0.5 + 0.25 * 2 * 0.4, 0.25 * 0.5 * 0.5 + 0.75 * 2.5 * 0.4]
    found = losses("nft", [0.5, -0.5], options={"adaptive": True}, t_B=torch.tensor([0.5]))
    assert found.tolist() == [pytest.approx(expected)]
    with pytest.raises(ValueError, match="adaptive form of nft needs t_B"):
        losses("nft", [0.5, -0.5], options={"adaptive": True})


def test_a_picture_matched_ten_times_worse_pulls_no_harder_in_the_adaptive_form() -> None:
    def pull(times: float, adaptive: bool) -> float:
        old = TARGET + times * (OLD - TARGET)
        velocity = old.clone().requires_grad_()
        found = nft(velocity, TARGET, torch.ones(1, 2), old, torch.tensor([0.5]), adaptive=adaptive)
        return float(torch.autograd.grad(found.sum(), velocity)[0].norm())

    assert pull(10.0, True) == pytest.approx(pull(1.0, True))
    assert pull(10.0, False) == pytest.approx(10 * pull(1.0, False))


def test_group_by_hand() -> None:
    # |e_old|^2 = 0.125 and 0.5, so rho = exp(-2.375) and 1
    rho = math.exp(0.125 - 2.5)
    assert losses("group", [0.5, 0.5]).tolist() == [pytest.approx([-0.5 * rho, -0.5])]
    # a negative advantage is clipped once the token is far enough from its target
    assert losses("group", [-0.5, -0.5]).tolist() == [pytest.approx([0.5 * 0.8, 0.5])]
    assert losses("group", [-0.5, 0.5], options={"clip": 0.3}).tolist() == [pytest.approx([0.5 * 0.7, -0.5])]


def test_awm_by_hand() -> None:
    # |e_old|^2 - |e|^2 = 0.125 - 2.5 and 0.5 - 0.5: the picture's rho = exp(-2.375 / 2), below 0.8
    rho = math.exp(-2.375 / 2)
    assert losses("awm", [0.5, 0.5], constraint="none").tolist() == [pytest.approx([-0.5 * rho, -0.5 * rho])]
    assert losses("awm", [-0.5, 0.5], constraint="none").tolist() == [pytest.approx([0.5 * 0.8, -0.5 * rho])]


def test_awm_with_one_advantage_a_picture_has_the_published_gradient() -> None:
    advantage = 0.7
    near = (OLD + 0.05 * (TARGET - OLD)).requires_grad_()
    ratio = (square_error(OLD, TARGET).mean() - square_error(near, TARGET).mean()).exp()
    published = -torch.minimum(advantage * ratio, advantage * ratio.clamp(0.8, 1.2))
    (expected,) = torch.autograd.grad(published, near)
    found = gradient("awm", advantage, near.detach(), constraint="none") / 2
    assert torch.allclose(found, expected, atol=1e-6) and expected.abs().max() > 0
    # Where the picture has moved by the clip range the way it should, nothing pulls any more; else it does.
    closer = OLD + 0.9 * (TARGET - OLD)
    assert gradient("awm", 1.0, closer, constraint="none").abs().max() == 0
    assert gradient("awm", -1.0, closer, constraint="none").abs().max() > 0


def pair(best: Tensor, worst: Tensor, beta: float = 2.0) -> Tensor:
    """Losses of three pictures: the best, one in no pair, the worst."""
    return compute_losses(
        "dpo",
        torch.cat([best, V, worst]),
        TARGET.expand(3, 2, 2),
        weights_BT=torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, -1.0]]),
        reference_velocity_BTC=OLD.expand(3, 2, 2),
        partner_B=torch.tensor([2, 1, 0]),
        options={"dpo_beta": beta},
    )


def test_dpo_by_hand() -> None:
    # The reference's errors are 0.125 and 0.5, their mean 0.3125. The best hits its target, gain 0.3125; the
    # worst is V with errors 2.5 and 0.5, mean 1.5, gain -1.1875. Margin 1.5.
    expected = math.log1p(math.exp(-2.0 * 1.5))
    assert pair(TARGET, V)[[0, 2]].tolist() == [pytest.approx([expected] * 2)] * 2
    assert pair(TARGET, V)[1].tolist() == [0.0, 0.0]
    # At the reference: log 2 whatever the strength, and equal pulls, towards the best and away from the worst.
    assert pair(OLD, OLD, beta=50.0)[0].tolist() == pytest.approx([math.log(2)] * 2)
    best, worst = (OLD.clone().requires_grad_() for _ in range(2))
    (pair(best, worst)[[0, 2]].sum() / 4).backward()
    assert best.grad is not None and worst.grad is not None
    # b / 2 times the gradient of the picture's mean error, whose own is gradient("sft") / 2.
    assert torch.allclose(best.grad, 2.0 / 2 * gradient("sft", 0.0) / 2, atol=1e-6)
    assert torch.allclose(worst.grad, -best.grad, atol=1e-6)


def gradient(name: str, weight: float, velocity: Tensor = OLD, **settings: object) -> Tensor:
    trained = velocity.clone().requires_grad_()
    losses(name, [weight, weight], trained, **settings).sum().backward()
    assert trained.grad is not None
    return trained.grad


@pytest.mark.parametrize("name", ["nft", "group", "awm", "signed"])
def test_good_tokens_move_to_the_target_and_bad_ones_away(name: str) -> None:
    error = OLD - TARGET
    for weight in (1.0, 0.3, -0.3, -1.0):
        # a step along -gradient approaches the target when gradient and error point the same way
        inner = (gradient(name, weight, constraint="none") * error).sum()
        assert math.copysign(1, inner) == math.copysign(1, weight)


@pytest.mark.parametrize("name", ["nft", "group", "awm"])
def test_at_the_old_policy_the_gradient_is_the_weight_times_flow_matchings(name: str) -> None:
    flow = gradient("sft", 0.0)
    for weight in (1.0, 0.4, 0.0, -0.7):
        assert torch.allclose(gradient(name, weight, constraint="none"), weight * flow, atol=1e-6)
    assert gradient("nft", 0.0).abs().max() == 0


def test_nft_is_bounded_below_and_drawn_back_when_it_strays() -> None:
    for beta in (1.0, 0.5):
        away = OLD + 50 * (OLD - TARGET)
        pull = gradient("nft", -1.0, away, options={"beta": beta})
        assert ((away - OLD) * pull).sum() > 0
    far = nft(OLD + 1e3, TARGET, torch.full((1, 2), -1.0), OLD)
    assert (far > 0).all()


def test_signed_repulsion_runs_out() -> None:
    weights = torch.full((1, 2), -1.0)
    assert torch.allclose(signed(V * 1e3, TARGET, weights)[0, 0], torch.tensor(-2.0))
    near, far = TARGET + 0.1, TARGET + 10.0
    assert gradient("signed", -1.0, far, constraint="none").abs().max() < 1e-6
    assert torch.allclose(
        gradient("signed", -1.0, near, constraint="none"), -gradient("sft", 0.0, near), rtol=0.01, atol=0
    )


def test_group_stops_at_the_clip_range() -> None:
    closer = TARGET + 0.1 * (OLD - TARGET)
    moved = gradient("group", 1.0, closer)
    # token 1 gained exp(0.495) > 1.2, token 0 only exp(0.124)
    assert moved[0, 1].abs().max() == 0 and moved[0, 0].abs().max() > 0
    assert gradient("group", -1.0, closer)[0, 1].abs().max() > 0


def test_masked_tokens_have_no_loss_and_no_gradient_even_with_failed_weights() -> None:
    mask = torch.tensor([[True, False]])
    for name, objective in OBJECTIVES.items():
        if objective.weights == "pair":
            # It masks whole pictures.
            continue
        velocity = V.clone().requires_grad_()
        weights = None if objective.weights == "none" else [0.5, math.nan]
        masked = losses(name, weights, velocity, mask_BT=mask, constraint="reference", constraint_weight=0.3)
        masked.sum().backward()
        assert masked[0, 1] == 0 and masked[0, 0] != 0
        assert velocity.grad is not None
        assert torch.isfinite(velocity.grad).all()
        assert velocity.grad[0, 1].eq(0).all() and velocity.grad[0, 0].abs().max() > 0


def test_only_the_trained_velocity_gets_a_gradient() -> None:
    for name, objective in OBJECTIVES.items():
        tensors = [x.clone().requires_grad_() for x in (V, TARGET, OLD, OLD)]
        weights = None if objective.weights == "none" else torch.full((1, 2), 0.5, requires_grad=True)
        total = compute_losses(
            name,
            tensors[0],
            tensors[1],
            weights_BT=weights,
            old_velocity_BTC=tensors[2],
            reference_velocity_BTC=tensors[3],
            partner_B=torch.zeros(1, dtype=torch.int64),
            constraint="reference",
            constraint_weight=1.0,
        ).sum()
        total.backward()
        assert tensors[0].grad is not None
        assert all(x.grad is None for x in tensors[1:])
        assert weights is None or weights.grad is None


def test_bf16_velocities_are_reckoned_with_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 16, 64)
    velocity, target, old = (torch.randn(shape, generator=generator).bfloat16() for _ in range(3))
    weights = torch.rand(2, 16, generator=generator)
    for name in OBJECTIVES:
        given = {"weights_BT": weights, "constraint": "target", "constraint_weight": 0.5}
        given["partner_B"] = torch.tensor([1, 0])
        low = compute_losses(
            name,
            velocity,
            target,
            old_velocity_BTC=old,
            reference_velocity_BTC=old,
            **given,  # type: ignore[arg-type]
        )
        high = compute_losses(
            name,
            velocity.float(),
            target.float(),
            old_velocity_BTC=old.float(),
            reference_velocity_BTC=old.float(),
            **given,  # type: ignore[arg-type]
        )
        assert low.dtype == torch.float32
        assert torch.equal(low, high)


def test_what_is_missing_or_out_of_range_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'weighted'"):
        get_objective("weigthed")
    with pytest.raises(UserError, match="no option 'gamma'; its options: beta"):
        losses("nft", [0.5, 0.5], options={"gamma": 1.0})
    with pytest.raises(UserError, match="constraint 'kl'"):
        losses("sft", constraint="kl")
    with pytest.raises(ValueError, match="needs weights_BT"):
        losses("nft")
    with pytest.raises(ValueError, match="needs old_velocity_BTC"):
        compute_losses("nft", V, TARGET, weights_BT=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="needs reference_velocity_BTC"):
        compute_losses("signed", V, TARGET, weights_BT=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="'dpo' needs reference_velocity_BTC"):
        compute_losses("dpo", V, TARGET, weights_BT=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="needs partner_B"):
        compute_losses("dpo", V, TARGET, weights_BT=torch.zeros(1, 2), reference_velocity_BTC=V)
    for name, bad in (("weighted", [0.5, -0.1]), ("nft", [1.5, 0.0]), ("nft", [math.nan, 0.0])):
        with pytest.raises(ValueError, match="outside or not a number"):
            losses(name, bad)
    with pytest.raises(ValueError, match="do not fit"):
        compute_losses("weighted", V, TARGET, weights_BT=torch.zeros(1, 3))


def test_registry_says_what_each_objective_needs() -> None:
    assert set(OBJECTIVES) == {"weighted", "signed", "group", "nft", "sft", "awm", "dpo"}
    assert {name for name, o in OBJECTIVES.items() if o.needs_old} == {"nft", "group", "awm"}
    assert {name for name, o in OBJECTIVES.items() if o.needs_reference} == {"signed", "dpo"}
    assert {name for name, o in OBJECTIVES.items() if o.weights == "positive"} == {"weighted"}


def test_released_losses() -> None:
    if not CONFORMANCE.is_dir():
        pytest.skip(f"the conformance set is not at {CONFORMANCE}")
    tensors = load_file(CONFORMANCE / "cases.safetensors")
    case = {k.removeprefix("srum/"): v for k, v in tensors.items() if k.startswith("srum/")}
    velocity, bad, good = (case[name][None] for name in ("velocity", "target_bad", "target_gt"))
    rewards = case["token_rewards"][None]

    def close(value: Tensor, name: str) -> bool:
        return torch.allclose(value.mean(), case[name], rtol=0, atol=1e-6)

    assert close(weighted(velocity, bad, rewards), "loss_reward")
    assert close(square_error(velocity, good), "loss_constraint")
    total = compute_losses("weighted", velocity, bad, weights_BT=rewards, constraint_target_BTC=good)
    assert close(total, "loss")
    assert close(square_error(velocity, bad), "same_loss_constraint")
    assert close(weighted(velocity, bad, rewards), "same_loss_reward")
    same = compute_losses("weighted", velocity, bad, weights_BT=rewards)
    assert close(same, "same_loss")
    assert close(compute_losses("sft", velocity, good), "nomap_loss")
