"""The losses: from velocities and token weights to one loss for every latent token.

Notation: x_t = (1 - t) x0 + t noise, target = noise - x0, v the trained velocity, e = v - target, and |.|^2
the mean of squares over a token's channels. Every function returns [B, T] float32, whatever precision
comes in; the caller sums and divides by the number of tokens that count on all ranks. Nothing but
``velocity_BTC`` receives a gradient.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from srum_ds.errors import UserError

WeightKind = Literal["signed", "positive", "none"]
Constraint = Literal["none", "target", "reference"]
CONSTRAINTS: tuple[str, ...] = get_args(Constraint)


def square_error(velocity_BTC: Tensor, other_BTC: Tensor) -> Tensor:
    """|v - other|^2, the mean over channels in float32: [B, T]. ``other`` is taken as a constant."""
    return (velocity_BTC.float() - other_BTC.detach().float()).square().mean(dim=-1)


def sft(velocity_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """Plain flow matching on the model's own samples: |e|^2. The baseline without a reward.

    Source: flow matching, arXiv 2210.02747; rectified flow, arXiv 2209.03003.
    """
    return square_error(velocity_BTC, target_BTC)


def weighted(velocity_BTC: Tensor, target_BTC: Tensor, weights_BT: Tensor) -> Tensor:
    """Reward-weighted flow matching: R |e|^2 with R >= 0.

    The released loss is this plus 0.5 |v - target_ref|^2, the ``target`` constraint.

    Source: SRUM, arXiv 2510.12784 and its code a53ba18.
    """
    return weights_BT.detach().float() * square_error(velocity_BTC, target_BTC)


def signed(velocity_BTC: Tensor, target_BTC: Tensor, weights_BT: Tensor, *, bound: float = 2.0) -> Tensor:
    """Signed weights: good tokens attract, bad ones repel, and repulsion runs out.

    w |e|^2 for w >= 0, and w c (1 - exp(-|e|^2 / c)) for w < 0. Near the target the second equals w |e|^2,
    and it never falls below w c: without the bound the loss has no minimum. The default c = 2 is
    |target|^2 for latents of unit scale, the error of a velocity that knows nothing.

    Source: this project; the released map cannot express a negative weight.

    Args:
        weights_BT: in [-1, 1].
        bound: c > 0.
    """
    weights_BT = weights_BT.detach().float()
    error_BT = square_error(velocity_BTC, target_BTC)
    repelling_BT = -bound * torch.expm1(-error_BT / bound)
    return weights_BT * torch.where(weights_BT >= 0, error_BT, repelling_BT)


def nft(
    velocity_BTC: Tensor,
    target_BTC: Tensor,
    weights_BT: Tensor,
    old_velocity_BTC: Tensor,
    *,
    beta: float = 1.0,
) -> Tensor:
    """Implicit positive and negative policies, token by token.

    r = (w + 1) / 2, v+ = (1 - b) v_old + b v, v- = (1 + b) v_old - b v,
    loss = (r |v+ - target|^2 + (1 - r) |v- - target|^2) / b.

    At v = v_old its gradient is w times that of |e|^2, so that weight 0 does not move the model. Away
    from v_old it is drawn back by b |v - v_old|^2 at any weight: it is bounded from below.

    Source: DiffusionNFT, arXiv 2509.16117, with r for each token instead of each picture.

    Args:
        weights_BT: in [-1, 1].
        old_velocity_BTC: velocity of the policy that drew the samples, at the same x_t and t.
        beta: b > 0.
    """
    velocity_BTC = velocity_BTC.float()
    old_velocity_BTC = old_velocity_BTC.detach().float()
    probability_BT = (weights_BT.detach().float() + 1) / 2
    positive_BTC = (1 - beta) * old_velocity_BTC + beta * velocity_BTC
    negative_BTC = (1 + beta) * old_velocity_BTC - beta * velocity_BTC
    attract_BT = probability_BT * square_error(positive_BTC, target_BTC)
    repel_BT = (1 - probability_BT) * square_error(negative_BTC, target_BTC)
    return (attract_BT + repel_BT) / beta


def group(
    velocity_BTC: Tensor,
    target_BTC: Tensor,
    weights_BT: Tensor,
    old_velocity_BTC: Tensor,
    *,
    clip: float = 0.2,
) -> Tensor:
    """Clipped policy gradient on dense group advantages.

    rho = exp(|e_old|^2 - |e|^2), loss = -min(A rho, A clamp(rho, 1 - c, 1 + c)); A is meant to be
    ``reward_map.group_map``, each token's map value against its group's.

    At v = v_old its gradient is A times that of |e|^2; once a token has moved by the clip range in its
    advantage's direction, its gradient is 0.

    Source: flow policy optimization, arXiv 2507.21053 (the ratio), with GRPO's group advantages, arXiv
    2402.03300; token by token instead of one ratio a sample.

    Args:
        weights_BT: A, in [-1, 1].
        old_velocity_BTC: velocity of the policy that drew the samples, at the same x_t and t.
        clip: c in (0, 1).
    """
    advantage_BT = weights_BT.detach().float()
    gain_BT = square_error(old_velocity_BTC, target_BTC).detach() - square_error(velocity_BTC, target_BTC)
    ratio_BT = gain_BT.exp()
    clipped_BT = ratio_BT.clamp(1 - clip, 1 + clip)
    return -torch.minimum(advantage_BT * ratio_BT, advantage_BT * clipped_BT)


@dataclass(frozen=True)
class Objective:
    """A loss and what it needs.

    ``weights``: "signed" in [-1, 1], "positive" >= 0, or "none". ``options``: names of its settings.
    ``constraint`` and ``constraint_weight`` are its defaults in ``compute_losses``.
    """

    fn: Callable[..., Tensor]
    weights: WeightKind
    source: str
    needs_old: bool = False
    options: tuple[str, ...] = ()
    constraint: Constraint = "none"
    constraint_weight: float = 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether its default constraint asks for the reference model's velocity."""
        return self.constraint == "reference"


OBJECTIVES: dict[str, Objective] = {
    "weighted": Objective(
        fn=weighted,
        weights="positive",
        source="SRUM, arXiv 2510.12784",
        constraint="target",
        constraint_weight=0.5,
    ),
    "signed": Objective(
        fn=signed,
        weights="signed",
        source="this project",
        options=("bound",),
        constraint="reference",
        constraint_weight=1.0,
    ),
    "group": Objective(
        fn=group,
        weights="signed",
        source="arXiv 2507.21053, arXiv 2402.03300",
        needs_old=True,
        options=("clip",),
    ),
    "nft": Objective(
        fn=nft,
        weights="signed",
        source="DiffusionNFT, arXiv 2509.16117",
        needs_old=True,
        options=("beta",),
    ),
    "sft": Objective(fn=sft, weights="none", source="arXiv 2210.02747"),
}


def get_objective(name: str) -> Objective:
    """The objective of this name.

    Raises:
        UserError: unknown name; says the nearest known one.
    """
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(name, OBJECTIVES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"objective {name!r} is not known: use one of {', '.join(OBJECTIVES)}{hint}")
    return OBJECTIVES[name]


def compute_losses(
    name: str,
    velocity_BTC: Tensor,
    target_BTC: Tensor,
    *,
    weights_BT: Tensor | None = None,
    old_velocity_BTC: Tensor | None = None,
    reference_velocity_BTC: Tensor | None = None,
    constraint: str | None = None,
    constraint_weight: float | None = None,
    constraint_target_BTC: Tensor | None = None,
    mask_BT: Tensor | None = None,
    options: Mapping[str, float] | None = None,
) -> Tensor:
    """Per-token losses of an objective with its constraint.

    objective + constraint_weight * |v - anchor|^2, where the anchor of ``target`` is the target of the
    reference data (released: the sample itself unless good data are given), that of ``reference`` the
    frozen base model's velocity at the same x_t and t: for flow models this is the KL to the base.

    Args:
        name: a key of ``OBJECTIVES``.
        velocity_BTC: trained velocities, any float dtype.
        target_BTC: noise - x0.
        weights_BT: as the objective says; ignored where it says "none".
        old_velocity_BTC: needed where ``needs_old``.
        reference_velocity_BTC: needed by the constraint ``reference``.
        constraint: one of ``CONSTRAINTS``; None: the objective's own, with its own weight.
        constraint_weight: >= 0; None: the objective's own.
        constraint_target_BTC: anchor of ``target``; None: ``target_BTC``.
        mask_BT: bool, tokens that count. The others have loss 0 and no gradient, even with NaN weights.
        options: settings of the objective by name (``beta``, ``bound``, ``clip``).

    Returns:
        [B, T] float32.

    Raises:
        UserError: unknown objective, constraint or option.
        ValueError: something needed is missing, a shape does not fit, or a weight that counts is out of
            the objective's range.
    """
    objective = get_objective(name)
    options = dict(options or {})
    for option in options:
        if option not in objective.options:
            known = ", ".join(objective.options) or "none"
            raise UserError(f"objective {name!r} has no option {option!r}; its options: {known}")
    arguments: dict[str, Tensor] = {}
    if objective.weights != "none":
        weights = _needed(weights_BT, f"objective {name!r}", "weights_BT")
        arguments["weights_BT"] = _checked_weights(weights, mask_BT, velocity_BTC, objective.weights, name)
    if objective.needs_old:
        arguments["old_velocity_BTC"] = _needed(old_velocity_BTC, f"objective {name!r}", "old_velocity_BTC")
    losses_BT = objective.fn(velocity_BTC, target_BTC, **arguments, **options)
    chosen = objective.constraint if constraint is None else constraint
    strength = objective.constraint_weight if constraint_weight is None else constraint_weight
    if chosen not in CONSTRAINTS:
        raise UserError(f"constraint {chosen!r} is not known: use one of {', '.join(CONSTRAINTS)}")
    if chosen == "target":
        anchor_BTC = target_BTC if constraint_target_BTC is None else constraint_target_BTC
        losses_BT = losses_BT + strength * square_error(velocity_BTC, anchor_BTC)
    elif chosen == "reference":
        anchor_BTC = _needed(reference_velocity_BTC, "constraint 'reference'", "reference_velocity_BTC")
        losses_BT = losses_BT + strength * square_error(velocity_BTC, anchor_BTC)
    if mask_BT is not None:
        losses_BT = torch.where(mask_BT, losses_BT, 0.0)
    return losses_BT


def _needed(value: Tensor | None, who: str, name: str) -> Tensor:
    if value is None:
        raise ValueError(f"{who} needs {name}")
    return value


def _checked_weights(weights_BT: Tensor, mask_BT: Tensor | None, velocity_BTC: Tensor, kind: str, name: str) -> Tensor:
    """Weights of the tokens that count, 0 for the others, after a check of their range."""
    if weights_BT.shape != velocity_BTC.shape[:2]:
        tokens = tuple(velocity_BTC.shape[:2])
        raise ValueError(f"weights {tuple(weights_BT.shape)} do not fit tokens {tokens}")
    weights_BT = weights_BT.detach().float()
    if mask_BT is not None:
        # NaN times a zero gradient is NaN: take failed weights out before they meet the velocity.
        weights_BT = torch.where(mask_BT, weights_BT, 0.0)
    low, high = (-1.0, 1.0) if kind == "signed" else (0.0, torch.inf)
    if not bool(((weights_BT >= low) & (weights_BT <= high)).all()):
        raise ValueError(
            f"objective {name!r} takes {kind} weights in [{low:g}, {high:g}]; some are outside or not a number"
        )
    return weights_BT
