"""A token's loss where it is a weighted sum of squared distances, as most objectives of flow models are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srum_ds.kernels.dispatch import fusable

MAX_BRANCHES = 3


@fusable
def velocity_loss(
    prediction_BTC: Tensor,
    target_BTC: Tensor,
    shares: Sequence[float],
    coefficient_KBT: Tensor,
    old_BTC: Tensor | None = None,
    reference_BTC: Tensor | None = None,
    reference_weight: float = 0.0,
    counts_BT: Tensor | None = None,
) -> Tensor:
    """sum_k a_k |(1 - s_k) old + s_k v - target|^2 + c |v - reference|^2, |.|^2 the mean over channels: [B, T] float32.

    Only the prediction v receives a gradient, and the loss can be differentiated once.

    Args:
        prediction_BTC: v.
        target_BTC: what the mixtures are held against.
        shares: s_k, at most ``MAX_BRANCHES``; one that is not 1 needs ``old_BTC``.
        coefficient_KBT: a_k, a constant of each token.
        old_BTC, reference_BTC: constants; without a reference its term is left out.
        reference_weight: c.
        counts_BT: bool; tokens that do not count have loss 0 and no gradient.
    """
    wide = torch.promote_types(prediction_BTC.dtype, torch.float32)
    v_BTC, target_BTC = prediction_BTC.to(wide), target_BTC.detach().to(wide)
    losses_BT = v_BTC.new_zeros(v_BTC.shape[:2])
    for share, coefficient_BT in zip(shares, coefficient_KBT.detach().to(wide), strict=True):
        mixed_BTC = v_BTC if old_BTC is None else (1 - share) * old_BTC.detach().to(wide) + share * v_BTC
        losses_BT = losses_BT + coefficient_BT * (mixed_BTC - target_BTC).square().mean(dim=-1)
    if reference_BTC is not None:
        drift_BT = (v_BTC - reference_BTC.detach().to(wide)).square().mean(dim=-1)
        losses_BT = losses_BT + reference_weight * drift_BT
    return losses_BT if counts_BT is None else torch.where(counts_BT, losses_BT, 0.0)
