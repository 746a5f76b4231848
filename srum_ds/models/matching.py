"""How predictions are compared: ``FlowMatching`` for velocities, ``CategoricalTokens`` for logits.

Both are the ``Matching`` of models/protocol.py. Objectives are written once, on energies and divergences; which of the
two they compute is the model's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.kernels.dispatch import is_fused
from srum_ds.kernels.velocity import velocity_loss


@dataclass(frozen=True)
class FlowMatching:
    """Velocities: x_t = (1 - t) x0 + t noise, target = noise - x0, |.|^2 the mean of squares over a token's channels.

    Source: flow matching, arXiv 2210.02747; rectified flow, arXiv 2209.03003.
    """

    def energy(self, prediction_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        """|v - target|^2 in float32: [B, T]. Only the prediction receives a gradient."""
        return (prediction_BTC.float() - target_BTC.detach().float()).square().mean(dim=-1)

    def divergence(self, prediction_BTC: Tensor, other_BTC: Tensor) -> Tensor:
        """|v - other|^2 in float32: [B, T]; for flow models the KL between the two policies, up to a factor of t."""
        return self.energy(prediction_BTC, other_BTC)

    def mix(self, old_BTC: Tensor, new_BTC: Tensor, share: float) -> Tensor:
        """The velocity (1 - share) old + share new in float32; ``old`` is a constant."""
        return (1 - share) * old_BTC.detach().float() + share * new_BTC.float()

    def inverse_size(self, prediction_BTC: Tensor, target_BTC: Tensor, time_B: Tensor | None) -> Tensor:
        """t^2 / mean(t |v - target|) of each image, a constant: [B, 1].

        Times an energy it is the squared error of the predicted image, t e, over that error's mean size. Source: the
        code of DiffusionNFT, arXiv 2509.16117. ValueError without noise levels.
        """
        if time_B is None:
            raise ValueError("the adaptive form of flow matching needs the noise levels of its views")
        size_B = (prediction_BTC - target_BTC).detach().float().abs().mean(dim=(1, 2))
        return (time_B.float() ** 2 / (time_B.float() * size_B).clamp(min=1e-5))[:, None]

    def has_one_pass(self, prediction_BTC: Tensor) -> bool:
        """Whether the fused kernel is in use for such predictions; its plain form has no advantage."""
        return is_fused(velocity_loss.__name__, prediction_BTC)

    def mixture_losses(
        self,
        prediction_BTC: Tensor,
        target_BTC: Tensor,
        shares: Sequence[float],
        coefficient_KBT: Tensor,
        old_BTC: Tensor | None = None,
        reference_BTC: Tensor | None = None,
        reference_weight: float = 0.0,
        counts_BT: Tensor | None = None,
    ) -> Tensor:
        """sum_k a_k |(1 - s_k) old + s_k v - target|^2 + c |v - reference|^2: [B, T] float32; see ``velocity_loss``."""
        return velocity_loss(
            prediction_BTC, target_BTC, shares, coefficient_KBT, old_BTC, reference_BTC, reference_weight, counts_BT
        )


@dataclass(frozen=True)
class CategoricalTokens:
    """Logits over V codes: the energy of a token is -log p(code), and so a difference of energies a log-ratio."""

    def energy(self, prediction_BTV: Tensor, target_BT: Tensor) -> Tensor:
        """-log softmax(logits)[code] in float32: [B, T]. target: int64 codes; -1 is no code and has energy 0."""
        logits_BVT = prediction_BTV.float().transpose(1, 2)
        return F.cross_entropy(logits_BVT, target_BT.detach(), ignore_index=-1, reduction="none")

    def divergence(self, prediction_BTV: Tensor, other_BTV: Tensor) -> Tensor:
        """KL(prediction || other) in float32: [B, T]. Only the prediction receives a gradient."""
        own_BTV = prediction_BTV.float().log_softmax(dim=-1)
        other_BTV = other_BTV.detach().float().log_softmax(dim=-1)
        return (own_BTV.exp() * (own_BTV - other_BTV)).sum(dim=-1)

    def mix(self, old_BTV: Tensor, new_BTV: Tensor, share: float) -> Tensor:
        """The logits (1 - share) old + share new: a geometric mixture of both distributions; ``old`` is a constant."""
        return (1 - share) * old_BTV.detach().float() + share * new_BTV.float()

    def inverse_size(self, prediction_BTV: Tensor, target_BT: Tensor, time_B: Tensor | None) -> Tensor:
        """1 / mean(-log p) of each image, a constant: [B, 1]."""
        del time_B
        with torch.no_grad():
            return 1.0 / self.energy(prediction_BTV, target_BT).mean(dim=1, keepdim=True).clamp(min=1e-5)
