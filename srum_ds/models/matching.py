"""How predictions are compared: ``FlowMatching`` for velocities, ``CategoricalTokens`` for log p of codes.

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

    bound: float = 2.0
    quadratic: bool = True

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
    """Codes: a prediction is log p of the drawn code [B, T], given what the view shows, and its energy is -log p.

    The module computes it (``Generator.predict``), so that the logits over a vocabulary never leave it: what other
    policies say of a token costs one number. A difference of energies is a log-ratio, exp(E_old - E) = p / p_old.

    floor: smallest factor by which ``mix`` may lower a probability, > 0.
    """

    floor: float = 0.1
    bound: float = 1.0
    quadratic: bool = False

    def energy(self, prediction_BT: Tensor, target_BT: Tensor) -> Tensor:
        """-log p in float32: [B, T]. The codes of ``target`` are those that the prediction is of already.

        ValueError for logits [B, T, V]: a design predicts log p of its codes.
        """
        if prediction_BT.shape != target_BT.shape:
            raise ValueError(
                f"predictions {list(prediction_BT.shape)} for codes {list(target_BT.shape)}: "
                "expected log p of each code"
            )
        return -prediction_BT.float()

    def divergence(self, prediction_BT: Tensor, other_BT: Tensor) -> Tensor:
        """k3 = exp(d) - d - 1 with d = log p_other - log p of the code: [B, T] float32, >= 0, 0 where both agree.

        Over codes that the prediction itself drew its mean is KL(prediction || other). Codes are fixed, so its
        gradient is that of KL(other || prediction): it holds the prediction to what the other gives these codes.

        Source: the estimator k3 of Schulman, "Approximating KL Divergence"; as a constraint GRPO, arXiv 2402.03300.
        """
        log_ratio_BT = other_BT.detach().float() - prediction_BT.float()
        return torch.expm1(log_ratio_BT) - log_ratio_BT

    def mix(self, old_BT: Tensor, new_BT: Tensor, share: float) -> Tensor:
        """log((1 - share) p_old + share p_new) in float32: the mixture of both distributions; ``old`` is a constant.

        As log p_old + log max(1 - share + share R, floor), R = p_new / p_old; at the floor the value stands still and
        the gradient does not. With share -q / (1 - q) it is the implicit negative policy (p_old - q p_new) / (1 - q).

        Source: NFT, arXiv 2505.18116, equations 8 and 10, where q is the share of good samples.
        """
        old_BT = old_BT.detach().float()
        ratio_BT = (new_BT.float() - old_BT).exp()
        factor_BT = 1 - share + share * ratio_BT
        factor_BT = factor_BT + (factor_BT.clamp(min=self.floor) - factor_BT).detach()
        return old_BT + factor_BT.log()

    def inverse_size(self, prediction_BT: Tensor, target_BT: Tensor, time_B: Tensor | None) -> Tensor:
        """Ones [B, 1]: -log p has no scale that could differ between images, so that nothing is to be divided by."""
        del target_BT, time_B
        return torch.ones_like(prediction_BT[:, :1], dtype=torch.float32)


def code_logprobs(logits_BTV: Tensor, code_BT: Tensor) -> Tensor:
    """log softmax(logits)[code] in float32: [B, T], for the ``predict`` of designs that have all logits."""
    logits_BVT = logits_BTV.float().transpose(1, 2)
    return -F.cross_entropy(logits_BVT, code_BT, reduction="none")
