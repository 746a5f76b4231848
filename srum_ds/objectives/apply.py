"""An objective over a micro-batch: constraint, mask, and the sum that the engine takes backward.

The training loop calls ``token_losses``; the pure part is ``compute_losses``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from srum_ds.config.schema import ObjectiveConfig
from srum_ds.models.protocol import Matching, OnePassMatching
from srum_ds.objectives.registry import Objective, Terms
from srum_ds.types import Judged, TokenWeights, TrainView


@dataclass(frozen=True)
class Batch(Judged):
    """One micro-batch on its way through a training step."""

    view: TrainView
    weights: TokenWeights

    @property
    def counts_NMT(self) -> Tensor:
        """bool: the tokens that count in the loss, on the CPU or wherever the view lies."""
        counts_N = self.weights.counts_N.to(self.view.counts_NMT.device)
        return counts_N[:, None, None] & self.view.counts_NMT


def count_tokens(batches: Sequence[Batch]) -> Tensor:
    """How many tokens of this rank's micro-batches count, as a float64 scalar."""
    return torch.stack([batch.counts_NMT.double().sum() for batch in batches]).sum()


def token_losses(
    objective: Objective,
    settings: ObjectiveConfig,
    matching: Matching,
    prediction: Tensor,
    batch: Batch,
    old: Tensor | None = None,
    reference: Tensor | None = None,
) -> Tensor:
    """Losses [N * M, T] of a micro-batch, 0 where a token does not count.

    prediction, old, reference: [N, M, T, ...], see ``Terms``. ValueError where the objective misses one of them.
    """
    terms, counts_BT = terms_of(matching, prediction, batch, old, reference)
    return compute_losses(objective, terms, settings, counts_BT)


def terms_of(
    matching: Matching, prediction: Tensor, batch: Batch, old: Tensor | None = None, reference: Tensor | None = None
) -> tuple[Terms, Tensor]:
    """What an objective may use of a micro-batch, and which tokens count, bool [N * M, T]; see ``token_losses``."""
    n, m, t = batch.counts_NMT.shape
    device = prediction.device

    def flat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device).flatten(0, 1)

    weights_BT = partner_B = None
    if batch.weights.map_Nhw is not None:
        weights_BT = batch.weights.map_Nhw.reshape(n, 1, t).expand(n, m, t).reshape(n * m, t).to(device)
    if batch.weights.partner_N is not None:
        partner_B = partner_rows(batch.weights.partner_N, m).to(device)
    terms = Terms(
        matching,
        prediction.flatten(0, 1),
        batch.view.target.to(device).flatten(0, 1),
        weights_BT,
        flat(old),
        flat(reference),
        partner_B,
        flat(batch.view.time_NM),
    )
    return terms, batch.counts_NMT.reshape(n * m, t).to(device)


def compute_losses(
    objective: Objective,
    terms: Terms,
    settings: ObjectiveConfig,
    counts_BT: Tensor | None = None,
    constraint_target: Tensor | None = None,
) -> Tensor:
    """Per-token losses of an objective with its constraint, [B, T] float32.

    objective + constraint_weight * C, where C of ``target`` is the energy against the target of the reference data
    (released: the sample itself unless good data are given), that of ``reference`` the divergence from the untrained
    model: for flow models this is the KL to it.

    Args:
        objective: what to compute.
        terms: what it may use.
        settings: ``objective.*``: the constraint and the objective's own.
        counts_BT: bool, tokens that count. The others have loss 0 and no gradient, even with NaN weights.
        constraint_target: the target of the constraint ``target``; None: the sample's own.

    Raises:
        ValueError: something needed is missing, a shape does not fit, or a weight that counts is out of
            the objective's range.
    """
    if objective.uses_reward:
        terms = _with_checked_weights(terms, objective, counts_BT)
    in_one_pass_BT = _in_one_pass(objective, terms, settings, counts_BT, constraint_target)
    if in_one_pass_BT is not None:
        return in_one_pass_BT
    losses_BT = objective.losses(terms, settings)
    constraint_BT = constraint_losses(terms, settings, constraint_target)
    if constraint_BT is not None:
        losses_BT = losses_BT + constraint_BT
    return losses_BT if counts_BT is None else masked(losses_BT, counts_BT)


def masked(losses_BT: Tensor, counts_BT: Tensor) -> Tensor:
    """The losses, 0 where a token does not count."""
    return torch.where(counts_BT, losses_BT, 0.0)


def constraint_losses(
    terms: Terms, settings: ObjectiveConfig, constraint_target: Tensor | None = None
) -> Tensor | None:
    """What the constraint adds to each token's loss, [B, T]; None where there is none. See ``compute_losses``."""
    if settings.constraint == "target":
        target = terms.target if constraint_target is None else constraint_target
        return settings.constraint_weight * terms.matching.energy(terms.prediction, target)
    if settings.constraint == "reference" and settings.constraint_weight > 0:
        if terms.reference is None:
            raise ValueError("the constraint 'reference' needs the reference model's prediction")
        return settings.constraint_weight * terms.matching.divergence(terms.prediction, terms.reference)
    return None


def _in_one_pass(
    objective: Objective,
    terms: Terms,
    settings: ObjectiveConfig,
    counts_BT: Tensor | None,
    constraint_target: Tensor | None,
) -> Tensor | None:
    """What ``compute_losses`` gives, where the matching has the objective with its constraint in one pass."""
    matching = terms.matching
    if objective.mixtures is None or constraint_target is not None or not isinstance(matching, OnePassMatching):
        return None
    held = settings.constraint == "reference" and settings.constraint_weight > 0
    if not matching.has_one_pass(terms.prediction) or (held and terms.reference is None):
        return None
    mixtures = objective.mixtures(terms, settings)
    shares, coefficient_KBT = mixtures.shares, mixtures.coefficient_KBT
    if settings.constraint == "target":
        shares = (*shares, 1.0)
        constraint_1BT = torch.full_like(coefficient_KBT[:1], settings.constraint_weight)
        coefficient_KBT = torch.cat([coefficient_KBT, constraint_1BT])
    return matching.mixture_losses(
        terms.prediction,
        terms.target,
        shares,
        coefficient_KBT,
        mixtures.old,
        terms.reference if held else None,
        settings.constraint_weight if held else 0.0,
        counts_BT,
    )


def partner_rows(partner_N: Tensor, copies: int) -> Tensor:
    """int64 [N * copies]: for each view the row of the same view of its pair's other image."""
    return (partner_N[:, None] * copies + torch.arange(copies, device=partner_N.device)).flatten()


def _with_checked_weights(terms: Terms, objective: Objective, counts_BT: Tensor | None) -> Terms:
    """The terms with weights 0 where a token does not count, after a check of the others' range."""
    weights_BT = terms.weights
    tokens = tuple(terms.prediction.shape[:2])
    if tuple(weights_BT.shape) != tokens:
        raise ValueError(f"weights {tuple(weights_BT.shape)} do not fit tokens {tokens}")
    if counts_BT is not None:
        # NaN times a zero gradient is NaN: take failed weights out before they meet the prediction.
        weights_BT = torch.where(counts_BT, weights_BT, 0.0)
    low, high = (0.0, torch.inf) if objective.weights == "positive" else (-1.0, 1.0)
    if not bool(((weights_BT >= low) & (weights_BT <= high)).all()):
        raise ValueError(
            f"the objective takes {objective.weights} weights in [{low:g}, {high:g}]; some are outside or not a number"
        )
    return replace(terms, weights_BT=weights_BT)
