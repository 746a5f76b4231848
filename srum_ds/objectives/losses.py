"""The losses: from velocities and token weights to one loss for every latent token.

Notation: x_t = (1 - t) x0 + t noise, target = noise - x0, v the trained velocity, e = v - target, and |.|^2
the mean of squares over a token's channels. Every function returns [B, T] float32, whatever precision
comes in; the caller sums and divides by the number of tokens that count on all ranks. Nothing but
``velocity_BTC`` receives a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    t_B: Tensor | None = None,
    *,
    beta: float = 1.0,
    adaptive: bool = False,
) -> Tensor:
    """Implicit positive and negative policies, token by token.

    r = (w + 1) / 2, v+ = (1 - b) v_old + b v, v- = (1 + b) v_old - b v,
    loss = (r |v+ - target|^2 + (1 - r) |v- - target|^2) / b.

    At v = v_old its gradient is w times that of |e|^2, so that weight 0 does not move the model. Away
    from v_old it is drawn back by b |v - v_old|^2 at any weight: it is bounded from below.

    With ``adaptive`` both squares are errors of the predicted picture, t e, each divided by its own mean
    absolute size over the picture: t^2 |e|^2 / mean(t |e|). A picture that is matched badly then pulls in
    proportion to its error instead of the error's square, and high noise counts for more than low.

    Source: DiffusionNFT, arXiv 2509.16117 (the adaptive form: its code divides so), with r
    for each token instead of each picture.

    Args:
        weights_BT: in [-1, 1].
        old_velocity_BTC: velocity of the policy that drew the samples, at the same x_t and t.
        t_B: in [0, 1], the noise level of each row; needed by ``adaptive``.
        beta: b > 0.
    """
    velocity_BTC = velocity_BTC.float()
    old_velocity_BTC = old_velocity_BTC.detach().float()
    probability_BT = (weights_BT.detach().float() + 1) / 2
    positive_BTC = (1 - beta) * old_velocity_BTC + beta * velocity_BTC
    negative_BTC = (1 + beta) * old_velocity_BTC - beta * velocity_BTC
    attract_BT = square_error(positive_BTC, target_BTC)
    repel_BT = square_error(negative_BTC, target_BTC)
    if adaptive:
        if t_B is None:
            raise ValueError("the adaptive form of nft needs t_B")
        attract_BT = attract_BT * _relative(positive_BTC, target_BTC, t_B)
        repel_BT = repel_BT * _relative(negative_BTC, target_BTC, t_B)
    return (probability_BT * attract_BT + (1 - probability_BT) * repel_BT) / beta


def _relative(velocity_BTC: Tensor, target_BTC: Tensor, t_B: Tensor) -> Tensor:
    """t^2 / mean(t |v - target|) of each row, a constant: [B, 1]."""
    size_B = (velocity_BTC - target_BTC).detach().float().abs().mean(dim=(1, 2))
    return (t_B.float() ** 2 / (t_B.float() * size_B).clamp(min=1e-5))[:, None]


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


def awm(
    velocity_BTC: Tensor,
    target_BTC: Tensor,
    weights_BT: Tensor,
    old_velocity_BTC: Tensor,
    *,
    clip: float = 0.2,
) -> Tensor:
    """Advantage-weighted matching: flow matching weighted by A, with one ratio for each noised picture.

    -|e|^2 stands for the log-likelihood, so that rho = exp(mean_T(|e_old|^2 - |e|^2)) is the picture's
    ratio of policies, and loss = -min(A s, A clamp(s, 1 - c, 1 + c)) with s = rho in value, while its
    gradient is -rho times that of the token's own |e|^2.

    At v = v_old its gradient is A times that of |e|^2. With one A for the whole picture its mean over
    tokens has the gradient of the published loss -min(A rho, A clamp(rho)). It differs from ``group`` in
    what the clip looks at: the picture as a whole instead of each token.

    Source: AWM, arXiv 2509.25050 (uniform weighting over t, its code 12b1397); a token's gradient through
    a ratio of the whole: GSPO-token, arXiv 2507.18071.

    Args:
        weights_BT: A, in [-1, 1].
        old_velocity_BTC: velocity of the policy that drew the samples, at the same x_t and t.
        clip: c in (0, 1).
    """
    advantage_BT = weights_BT.detach().float()
    error_BT = square_error(velocity_BTC, target_BTC)
    old_error_BT = square_error(old_velocity_BTC, target_BTC).detach()
    ratio_B1 = (old_error_BT - error_BT.detach()).mean(dim=1, keepdim=True).exp()
    # exp(0) in value; its gradient is that of -|e|^2.
    ratio_BT = ratio_B1 * (error_BT.detach() - error_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - clip, 1 + clip)
    return -torch.minimum(advantage_BT * ratio_BT, advantage_BT * clipped_BT)


def dpo(
    velocity_BTC: Tensor,
    target_BTC: Tensor,
    weights_BT: Tensor,
    reference_velocity_BTC: Tensor,
    partner_B: Tensor,
    *,
    dpo_beta: float = 100.0,
) -> Tensor:
    """Direct preference: the best picture of a prompt against its worst.

    g = mean_T(|v_ref - target|^2 - |v - target|^2) is how much better than the reference a picture is
    matched, and the loss of a pair is -log sigmoid(b (g_best - g_worst)). It stands at every token of both
    pictures, so that the mean over the tokens that count is the mean over pairs. 0 where there is no pair.

    At v = v_ref it is log 2, and its gradient is b / 2 times that of |e_best|^2 - |e_worst|^2.

    Source: Diffusion-DPO, arXiv 2311.12908, whose b is beta T w(lambda), with the velocities of flow
    matching in place of the noises. Both pictures of a pair need the same noise and t.

    Args:
        weights_BT: 1 on the tokens of a best picture, -1 on those of a worst one, 0 elsewhere.
        reference_velocity_BTC: velocity of the reference model at the same x_t and t.
        partner_B: int64, the row of the other picture of the pair; a row without one names itself.
        dpo_beta: b > 0.
    """
    sign_B1 = weights_BT.detach().float()[:, :1]
    error_BT = square_error(velocity_BTC, target_BTC)
    reference_BT = square_error(reference_velocity_BTC, target_BTC).detach()
    gain_B1 = (reference_BT - error_BT).mean(dim=1, keepdim=True)
    margin_B1 = sign_B1 * (gain_B1 - gain_B1[partner_B])
    losses_B1 = torch.where(sign_B1 != 0, -F.logsigmoid(dpo_beta * margin_B1), 0.0)
    return losses_B1.expand_as(error_BT)
