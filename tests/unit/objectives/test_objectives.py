"""Objectives: values by hand, directions of their gradients, and the released losses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config.choices import OBJECTIVES
from srum_ds.config.schema import ObjectiveConfig
from srum_ds.models.matching import CategoricalTokens, FlowMatching, code_logprobs
from srum_ds.objectives import Objective, Terms, get_objective
from srum_ds.objectives.apply import compute_losses
from srum_ds.objectives.losses import nft_of_mixtures, weighted
from tests.support.paths import SHARED

CONFORMANCE = SHARED / "conformance" / "bagel_a"
FLOW = FlowMatching()
CODES = CategoricalTokens()
NAMES = tuple(OBJECTIVES.builtin)
# The weighted loss is released with this constraint, this project's signed one is meant to be held to the base.
OWN_CONSTRAINT = {"weighted": ("target", 0.5), "signed": ("reference", 1.0)}

V = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
TARGET = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
OLD = torch.tensor([[[0.5, 1.0], [1.0, 1.0]]])


def settings_of(name: str, **given: object) -> ObjectiveConfig:
    """Plain settings of an objective: its own constraint, plain squares, and what a test changes."""
    kind, weight = OWN_CONSTRAINT.get(name, ("none", 0.0))
    return replace(ObjectiveConfig(name=name, adaptive=False, constraint=kind, constraint_weight=weight), **given)  # type: ignore[arg-type]


def terms_of(velocity: Tensor, target: Tensor = TARGET, weights_BT: Tensor | None = None, **given: Tensor) -> Terms:
    return Terms(FLOW, velocity, target, weights_BT, **given)


def losses(
    name: str,
    weights: list[float] | None = None,
    velocity: Tensor = V,
    counts_BT: Tensor | None = None,
    time_B: Tensor | None = None,
    **settings: object,
) -> Tensor:
    weights_BT = None if weights is None else torch.tensor([weights])
    terms = Terms(FLOW, velocity, TARGET, weights_BT, OLD, OLD, torch.zeros(1, dtype=torch.int64), time_B)
    return compute_losses(get_objective(name), terms, settings_of(name, **settings), counts_BT)


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
    assert losses("nft", [0.5, -0.5], beta=0.5).tolist() == [pytest.approx(expected)]


def test_adaptive_nft_by_hand() -> None:
    # b = 1 as above: mean |v+ - target| = (1 + 2 + 1 + 0) / 4 = 1 and mean |v- - target| = (0 + 2 + 1 + 2) / 4;
    # at t = 0.5 the squares count t^2 / (t * 1) = 0.5 and 0.25 / 0.625 = 0.4.
    expected = [0.75 * 2.5 * 0.5 + 0.25 * 2 * 0.4, 0.25 * 0.5 * 0.5 + 0.75 * 2.5 * 0.4]
    found = losses("nft", [0.5, -0.5], adaptive=True, time_B=torch.tensor([0.5]))
    assert found.tolist() == [pytest.approx(expected)]
    with pytest.raises(ValueError, match="adaptive form of flow matching needs the noise levels"):
        losses("nft", [0.5, -0.5], adaptive=True)


def test_a_picture_matched_ten_times_worse_pulls_no_harder_in_the_adaptive_form() -> None:
    def pull(times: float, adaptive: bool) -> float:
        old = TARGET + times * (OLD - TARGET)
        velocity = old.clone().requires_grad_()
        terms = Terms(FLOW, velocity, TARGET, torch.ones(1, 2), old, time_B=torch.tensor([0.5]))
        found = compute_losses(get_objective("nft"), terms, settings_of("nft", adaptive=adaptive))
        return float(torch.autograd.grad(found.sum(), velocity)[0].norm())

    assert pull(10.0, True) == pytest.approx(pull(1.0, True))
    assert pull(10.0, False) == pytest.approx(10 * pull(1.0, False))


def test_group_by_hand() -> None:
    # |e_old|^2 = 0.125 and 0.5, so rho = exp(-2.375) and 1
    rho = math.exp(0.125 - 2.5)
    assert losses("group", [0.5, 0.5]).tolist() == [pytest.approx([-0.5 * rho, -0.5])]
    # a negative advantage is clipped once the token is far enough from its target
    assert losses("group", [-0.5, -0.5]).tolist() == [pytest.approx([0.5 * 0.8, 0.5])]
    assert losses("group", [-0.5, 0.5], clip=0.3).tolist() == [pytest.approx([0.5 * 0.7, -0.5])]


def test_awm_by_hand() -> None:
    # |e_old|^2 - |e|^2 = 0.125 - 2.5 and 0.5 - 0.5: the picture's rho = exp(-2.375 / 2), below 0.8
    rho = math.exp(-2.375 / 2)
    assert losses("awm", [0.5, 0.5], constraint="none").tolist() == [pytest.approx([-0.5 * rho, -0.5 * rho])]
    assert losses("awm", [-0.5, 0.5], constraint="none").tolist() == [pytest.approx([0.5 * 0.8, -0.5 * rho])]


def test_awm_with_one_advantage_a_picture_has_the_published_gradient() -> None:
    advantage = 0.7
    near = (OLD + 0.05 * (TARGET - OLD)).requires_grad_()
    ratio = (FLOW.energy(OLD, TARGET).mean() - FLOW.energy(near, TARGET).mean()).exp()
    published = -torch.minimum(advantage * ratio, advantage * ratio.clamp(0.8, 1.2))
    (expected,) = torch.autograd.grad(published, near)
    found = gradient("awm", advantage, near.detach(), constraint="none") / 2
    assert torch.allclose(found, expected, atol=1e-6) and expected.abs().max() > 0
    # Where the picture has moved by the clip range the way it should, nothing pulls any more; else it does.
    closer = OLD + 0.9 * (TARGET - OLD)
    assert gradient("awm", 1.0, closer, constraint="none").abs().max() == 0
    assert gradient("awm", -1.0, closer, constraint="none").abs().max() > 0


def pair(best: Tensor, worst: Tensor, beta: float = 2.0) -> Tensor:
    """Losses of three images: the best, one in no pair, the worst."""
    terms = Terms(
        FLOW,
        torch.cat([best, V, worst]),
        TARGET.expand(3, 2, 2),
        torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, -1.0]]),
        reference=OLD.expand(3, 2, 2),
        partner_B=torch.tensor([2, 1, 0]),
    )
    return compute_losses(get_objective("dpo"), terms, settings_of("dpo", dpo_beta=beta))


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
    losses(name, [weight, weight], trained, **settings).sum().backward()  # type: ignore[arg-type]
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
        pull = gradient("nft", -1.0, away, beta=beta)
        assert ((away - OLD) * pull).sum() > 0
    assert (losses("nft", [-1.0, -1.0], OLD + 1e3) > 0).all()


def test_signed_repulsion_runs_out() -> None:
    far_off = losses("signed", [-1.0, -1.0], V * 1e3, constraint="none")
    assert torch.allclose(far_off[0, 0], torch.tensor(-2.0))
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
    for name in NAMES:
        objective = get_objective(name)
        if objective.weights == "pair":
            # It masks whole pictures.
            continue
        velocity = V.clone().requires_grad_()
        weights = None if objective.weights == "none" else [0.5, math.nan]
        masked = losses(name, weights, velocity, counts_BT=mask, constraint="reference", constraint_weight=0.3)
        masked.sum().backward()
        assert masked[0, 1] == 0 and masked[0, 0] != 0
        assert velocity.grad is not None
        assert torch.isfinite(velocity.grad).all()
        assert velocity.grad[0, 1].eq(0).all() and velocity.grad[0, 0].abs().max() > 0


def test_only_the_trained_velocity_gets_a_gradient() -> None:
    for name in NAMES:
        objective = get_objective(name)
        tensors = [x.clone().requires_grad_() for x in (V, TARGET, OLD, OLD)]
        weights = None if objective.weights == "none" else torch.full((1, 2), 0.5, requires_grad=True)
        terms = Terms(FLOW, tensors[0], tensors[1], weights, tensors[2], tensors[3], torch.zeros(1, dtype=torch.int64))
        settings = settings_of(name, constraint="reference", constraint_weight=1.0)
        compute_losses(objective, terms, settings).sum().backward()
        assert tensors[0].grad is not None
        assert all(x.grad is None for x in tensors[1:])
        assert weights is None or weights.grad is None


def test_bf16_velocities_are_reckoned_with_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 16, 64)
    velocity, target, old = (torch.randn(shape, generator=generator).bfloat16() for _ in range(3))
    weights = torch.rand(2, 16, generator=generator)
    for name in NAMES:
        settings = settings_of(name, constraint="target", constraint_weight=0.5)
        pairs = torch.tensor([1, 0])
        low, high = (
            compute_losses(get_objective(name), Terms(FLOW, v, x, weights, o, o, pairs), settings)
            for v, x, o in ((velocity, target, old), (velocity.float(), target.float(), old.float()))
        )
        assert low.dtype == torch.float32
        assert torch.equal(low, high)


def test_what_is_missing_or_out_of_range_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'weighted'"):
        get_objective("weigthed")
    nft, signed, dpo = (get_objective(name) for name in ("nft", "signed", "dpo"))
    weights = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="needs weights_BT"):
        losses("nft")
    with pytest.raises(ValueError, match="needs the old policy's prediction"):
        compute_losses(nft, terms_of(V, weights_BT=weights), settings_of("nft"))
    with pytest.raises(ValueError, match="constraint 'reference' needs the reference model's prediction"):
        compute_losses(signed, terms_of(V, weights_BT=weights), settings_of("signed"))
    with pytest.raises(ValueError, match="needs the reference model's prediction"):
        compute_losses(dpo, terms_of(V, weights_BT=weights), settings_of("dpo"))
    with pytest.raises(ValueError, match="needs partner_B"):
        compute_losses(dpo, terms_of(V, weights_BT=weights, reference=V), settings_of("dpo"))
    for name, bad in (("weighted", [0.5, -0.1]), ("nft", [1.5, 0.0]), ("nft", [math.nan, 0.0])):
        with pytest.raises(ValueError, match="outside or not a number"):
            losses(name, bad)
    with pytest.raises(ValueError, match="do not fit"):
        compute_losses(get_objective("weighted"), terms_of(V, weights_BT=torch.zeros(1, 3)), settings_of("weighted"))


def test_registry_says_what_each_objective_needs() -> None:
    found = {name: get_objective(name) for name in NAMES}
    assert set(found) == {"weighted", "signed", "group", "nft", "sft", "awm", "dpo"}
    assert {name for name, o in found.items() if o.needs_old} == {"nft", "group", "awm"}
    assert {name for name, o in found.items() if o.needs_reference} == {"dpo"}
    assert {name for name, o in found.items() if o.compares_samples} == {"nft", "group", "awm", "dpo"}
    assert {name for name, o in found.items() if not o.uses_reward} == {"sft"}
    assert {name for name, o in found.items() if o.weights == "positive"} == {"weighted"}
    assert all(isinstance(o, Objective) and o.source for o in found.values())


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
def test_nft_on_energies_is_nft_of_the_two_policies(beta: float) -> None:
    generator = torch.Generator().manual_seed(3)
    v, target, old = (torch.randn(4, 5, 6, generator=generator) for _ in range(3))
    weights = torch.rand(4, 5, generator=generator) * 2 - 1
    v.requires_grad_()
    found = compute_losses(get_objective("nft"), terms_of(v, target, weights, old=old), settings_of("nft", beta=beta))
    attract, repel = (FLOW.energy(FLOW.mix(old, v, share), target) for share in (beta, -beta))
    expected = nft_of_mixtures(attract, repel, weights, beta)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for loss in (found, expected):
        loss.sum().backward(retain_graph=True)
    (one,) = torch.autograd.grad(found.sum(), v, retain_graph=True)
    (other,) = torch.autograd.grad(expected.sum(), v)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# ---- codes: the same objectives on logits

TAKEN = torch.tensor([[1, 0]])
LOGPROBS = torch.tensor([[0.5, 0.6]]).log()
OLD_LOGPROBS = torch.tensor([[0.25, 0.5]]).log()


def code_losses(name: str, weights: list[float], logprobs: Tensor = LOGPROBS, **settings: object) -> Tensor:
    terms = Terms(CODES, logprobs, TAKEN, torch.tensor([weights]), OLD_LOGPROBS, OLD_LOGPROBS)
    given = {"constraint": "none", **settings}
    return compute_losses(get_objective(name), terms, settings_of(name, **given))


def test_codes_by_hand() -> None:
    assert CODES.energy(LOGPROBS, TAKEN).tolist() == [pytest.approx([-math.log(0.5), -math.log(0.6)])]
    # k3 with p = 0.5 against 0.25 and 0.6 against 0.5.
    expected = [0.5 - math.log(0.5) - 1, 0.5 / 0.6 - math.log(0.5 / 0.6) - 1]
    assert CODES.divergence(LOGPROBS, OLD_LOGPROBS).tolist() == [pytest.approx(expected, rel=1e-5)]
    # group is GRPO's ratio p / p_old, clipped: 0.5 / 0.25 = 2 and 0.6 / 0.5 = 1.2.
    assert code_losses("group", [1.0, -1.0]).tolist() == [pytest.approx([-1.2, 1.2])]
    assert code_losses("weighted", [0.5, 1.0]).tolist() == [pytest.approx([-0.5 * math.log(0.5), -math.log(0.6)])]
    # The design's own bound is 1: a negative weight is |w| (p - 1), whose gradient is that of p and fades with it.
    assert code_losses("signed", [-1.0, -0.5]).tolist() == [pytest.approx([0.5 - 1, 0.5 * (0.6 - 1)])]
    assert code_losses("signed", [-1.0, -0.5], bound=2.0).tolist() != [pytest.approx([0.5 - 1, 0.5 * (0.6 - 1)])]
    # A mixture is one of the probabilities: half of 0.25 and 0.5, and of 0.5 and 0.6.
    assert CODES.mix(OLD_LOGPROBS, LOGPROBS, 0.5).exp().tolist() == [pytest.approx([0.375, 0.55])]
    # Beyond the old policy: 2 * 0.5 - 0.6 = 0.4; 2 * 0.25 - 0.5 = 0 stands at the floor, a tenth of 0.25.
    assert CODES.mix(OLD_LOGPROBS, LOGPROBS, -1.0).exp().tolist() == [pytest.approx([0.025, 0.4])]


@pytest.mark.parametrize("adaptive", [False, True])
def test_nft_of_codes_by_hand(adaptive: bool) -> None:
    """NFT's loss -(r log R + (1 - r) log(2 - R)) - log p_old at q = 1/2: b = 1, w = 0.5 means r = 0.75."""
    found = code_losses("nft", [1.0, 0.5], beta=1.0, adaptive=adaptive)
    expected = -(0.75 * math.log(1.2) + 0.25 * math.log(0.8)) - math.log(0.5)
    assert found.tolist() == [pytest.approx([-math.log(0.5), expected])]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_nft_of_codes_moves_by_its_weights_at_the_old_policy(beta: float) -> None:
    logprobs = OLD_LOGPROBS.clone().requires_grad_()
    code_losses("nft", [0.5, -1.0], logprobs, beta=beta).sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.5, 1.0]]))


def test_the_negative_policy_keeps_its_gradient_at_the_floor() -> None:
    """Of log(2 - R) the gradient by log p is -R / floor where 2 - R is below it: here R = 2, floor 0.1."""
    logprobs = LOGPROBS.clone().requires_grad_()
    CODES.mix(OLD_LOGPROBS, logprobs, -1.0).sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-2.0 / 0.1, -1.2 / 0.8]]))


def test_the_constraint_of_codes_pulls_to_the_reference_and_its_mean_is_the_divergence() -> None:
    p, reference = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.25, 0.25, 0.5])
    k3 = CODES.divergence(p.log()[None], reference.log()[None])[0]
    torch.testing.assert_close((p * k3).sum(), (p * (p / reference).log()).sum())
    logprobs = LOGPROBS.clone().requires_grad_()
    code_losses("sft", [0.0, 0.0], logprobs, constraint="reference", constraint_weight=1.0).sum().backward()
    assert logprobs.grad is not None
    # -1 of the energy, and 1 - p_ref / p of the constraint.
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.5, -0.5 / 0.6]]))


def test_logits_are_no_predictions_of_codes() -> None:
    with pytest.raises(ValueError, match="log p of each code"):
        CODES.energy(torch.zeros(1, 2, 3), TAKEN)
    logits = torch.tensor([[[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]]).log() + 7.0
    torch.testing.assert_close(code_logprobs(logits, TAKEN), LOGPROBS)


@pytest.mark.parametrize("name", ["nft", "group", "awm", "signed", "weighted"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_good_codes_become_likelier(name: str, adaptive: bool) -> None:
    logprobs = OLD_LOGPROBS.clone().requires_grad_()
    code_losses(name, [1.0, 0.5], logprobs, adaptive=adaptive).sum().backward()
    assert logprobs.grad is not None
    assert bool((logprobs.grad < 0).all())


def test_released_losses() -> None:
    if not CONFORMANCE.is_dir():
        pytest.skip(f"the conformance set is not at {CONFORMANCE}")
    tensors = load_file(CONFORMANCE / "cases.safetensors")
    case = {k.removeprefix("srum/"): v for k, v in tensors.items() if k.startswith("srum/")}
    velocity, bad, good = (case[name][None] for name in ("velocity", "target_bad", "target_gt"))
    rewards = case["token_rewards"][None]

    def close(value: Tensor, name: str) -> bool:
        return torch.allclose(value.mean(), case[name], rtol=0, atol=1e-6)

    assert close(weighted(FLOW.energy(velocity, bad), rewards), "loss_reward")
    assert close(FLOW.energy(velocity, good), "loss_constraint")
    terms = terms_of(velocity, bad, rewards)
    settings = settings_of("weighted")
    assert close(compute_losses(get_objective("weighted"), terms, settings, constraint_target=good), "loss")
    assert close(FLOW.energy(velocity, bad), "same_loss_constraint")
    assert close(weighted(FLOW.energy(velocity, bad), rewards), "same_loss_reward")
    assert close(compute_losses(get_objective("weighted"), terms, settings), "same_loss")
    assert close(compute_losses(get_objective("sft"), terms_of(velocity, good), settings_of("sft")), "nomap_loss")
