"""Which losses there are, what each needs, and its constraint: ``compute_losses`` by an objective's name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.objectives.losses import awm, dpo, group, nft, sft, signed, square_error, weighted

WeightKind = Literal["signed", "positive", "group", "pair", "none"]
Constraint = Literal["none", "target", "reference"]
CONSTRAINTS: tuple[str, ...] = get_args(Constraint)


@dataclass(frozen=True)
class Objective:
    """A loss and what it needs.

    ``weights``: "signed" in [-1, 1], "group" (the same, each token against its group's), "positive" >= 0,
    "pair" (1, -1 or 0 on a whole picture), or "none". ``needs_base``: takes the reference model's velocity
    itself, beside any constraint. ``needs_t``: takes the noise levels, where they are given. ``options``: names
    of its settings. ``constraint`` and ``constraint_weight`` are its defaults in ``compute_losses``.
    """

    fn: Callable[..., Tensor]
    weights: WeightKind
    source: str
    needs_old: bool = False
    needs_base: bool = False
    needs_t: bool = False
    options: tuple[str, ...] = ()
    constraint: Constraint = "none"
    constraint_weight: float = 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether it, or its default constraint, asks for the reference model's velocity."""
        return self.needs_base or self.constraint == "reference"


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
        weights="group",
        source="arXiv 2507.21053, arXiv 2402.03300",
        needs_old=True,
        options=("clip",),
    ),
    "nft": Objective(
        fn=nft,
        weights="signed",
        source="DiffusionNFT, arXiv 2509.16117",
        needs_old=True,
        needs_t=True,
        options=("beta", "adaptive"),
    ),
    "awm": Objective(
        fn=awm,
        weights="signed",
        source="AWM, arXiv 2509.25050",
        needs_old=True,
        options=("clip",),
    ),
    "dpo": Objective(
        fn=dpo,
        weights="pair",
        source="Diffusion-DPO, arXiv 2311.12908",
        needs_base=True,
        options=("dpo_beta",),
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
    partner_B: Tensor | None = None,
    t_B: Tensor | None = None,
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
        reference_velocity_BTC: needed by the constraint ``reference`` and where ``needs_base``.
        constraint: one of ``CONSTRAINTS``; None: the objective's own, with its own weight.
        constraint_weight: >= 0; None: the objective's own.
        constraint_target_BTC: anchor of ``target``; None: ``target_BTC``.
        partner_B: needed by weights of the kind "pair", see ``dpo``.
        t_B: in [0, 1], the noise level of each row; needed by ``nft`` with ``adaptive``.
        mask_BT: bool, tokens that count. The others have loss 0 and no gradient, even with NaN weights.
        options: settings of the objective by name (``beta``, ``adaptive``, ``bound``, ``clip``, ``dpo_beta``).

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
    if objective.needs_base:
        base = _needed(reference_velocity_BTC, f"objective {name!r}", "reference_velocity_BTC")
        arguments["reference_velocity_BTC"] = base
    if objective.weights == "pair":
        arguments["partner_B"] = _needed(partner_B, f"objective {name!r}", "partner_B")
    if objective.needs_t and t_B is not None:
        arguments["t_B"] = t_B
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
    low, high = (0.0, torch.inf) if kind == "positive" else (-1.0, 1.0)
    if not bool(((weights_BT >= low) & (weights_BT <= high)).all()):
        raise ValueError(
            f"objective {name!r} takes {kind} weights in [{low:g}, {high:g}]; some are outside or not a number"
        )
    return weights_BT
