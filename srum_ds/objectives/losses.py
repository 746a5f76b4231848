"""The losses: from energies and token weights to one loss for every token.

E is the energy of the trained prediction (how badly it matches its target), E_old and E_ref that of the policy that
drew the samples and of the untrained model, D the divergence of the trained prediction from the old one. What these
are is the model's affair (``srum_ds/models/matching.py``): a squared error where a model predicts continuous tokens,
-log p and an estimate of the KL divergence where it predicts codes. Every function is pure and returns [B, T] float32;
the caller sums and divides by the number of tokens that count on all ranks. Only E, D and mixed predictions carry a
gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.config.schema import ObjectiveConfig
from srum_ds.objectives.registry import Mixtures, Objective, Terms


def weighted(energy_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Reward-weighted matching: R E with R >= 0.

    The released loss is this plus 0.5 E_ref, the constraint ``target``.

    Source: SRUM, arXiv 2510.12784 and its code a53ba18.
    """
    return weights_BT * energy_BT


def signed(energy_BT: Tensor, weights_BT: Tensor, bound: float = 2.0) -> Tensor:
    """Signed weights: good tokens attract, bad ones repel, and repulsion runs out.

    w E for w >= 0, and w c (1 - exp(-E / c)) for w < 0. Near the target the second equals w E, and it never falls
    below w c: without the bound the loss has no minimum. For codes (E = -log p) and c = 1 it is |w| (p - 1).

    Source: this project; the released map cannot express a negative weight.

    Args:
        energy_BT: E >= 0.
        weights_BT: w in [-1, 1].
        bound: c > 0.
    """
    repelling_BT = -bound * torch.expm1(-energy_BT / bound)
    return weights_BT * torch.where(weights_BT >= 0, energy_BT, repelling_BT)


def nft(energy_BT: Tensor, old_energy_BT: Tensor, divergence_BT: Tensor, weights_BT: Tensor, beta: float) -> Tensor:
    """Implicit positive and negative policies, token by token: E_old / b + w (E - E_old - D) + b D.

    It equals (r E(v+) + (1 - r) E(v-)) / b with r = (w + 1) / 2, v+ = (1 - b) v_old + b v and v- = (1 + b) v_old - b v,
    where E and D are the squared error and the squared distance (``Matching.quadratic``).

    At v = v_old its gradient is w times that of E, so that weight 0 does not move the model. Away
    from v_old it is drawn back by b D at any weight: it is bounded from below.

    Source: DiffusionNFT, arXiv 2509.16117, with r for each token instead of each image.

    Args:
        energy_BT, old_energy_BT: E and E_old.
        divergence_BT: D, of the trained prediction from the old one.
        weights_BT: w in [-1, 1].
        beta: b > 0.
    """
    gain_BT = energy_BT - old_energy_BT - divergence_BT
    return old_energy_BT / beta + weights_BT * gain_BT + beta * divergence_BT


def nft_of_mixtures(attract_BT: Tensor, repel_BT: Tensor, weights_BT: Tensor, beta: float) -> Tensor:
    """The same from the two policies' own energies: (r E(v+) + (1 - r) E(v-)) / b with r = (w + 1) / 2.

    The adaptive form scales either energy by its image's size first, which no divergence of v from v_old can say. For
    codes it is -(r log p+ + (1 - r) log p-) / b with p+ = (1 - b) p_old + b p and p- = (1 + b) p_old - b p, whose
    gradient at p = p_old is w times that of E. With b = 1 it is NFT's own loss, arXiv 2505.18116, equation 10, at
    q = 1/2 and with r for each token.
    """
    probability_BT = (weights_BT + 1) / 2
    return (probability_BT * attract_BT + (1 - probability_BT) * repel_BT) / beta


def group(energy_BT: Tensor, old_energy_BT: Tensor, advantage_BT: Tensor, clip: float = 0.2) -> Tensor:
    """Clipped policy gradient on dense group advantages.

    rho = exp(E_old - E), loss = -min(A rho, A clamp(rho, 1 - c, 1 + c)); A is meant to be
    ``token_weights.group_map``, each token's map value against its group's.

    At v = v_old its gradient is A times that of E; once a token has moved by the clip range in its
    advantage's direction, its gradient is 0. For codes rho is the ratio p / p_old of GRPO itself.

    Source: flow policy optimization, arXiv 2507.21053 (the ratio), with GRPO's group advantages, arXiv
    2402.03300; token by token instead of one ratio per sample.

    Args:
        energy_BT, old_energy_BT: E and E_old, the latter of the policy that drew the samples.
        advantage_BT: A in [-1, 1].
        clip: c in (0, 1).
    """
    ratio_BT = (old_energy_BT - energy_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - clip, 1 + clip)
    return -torch.minimum(advantage_BT * ratio_BT, advantage_BT * clipped_BT)


def awm(energy_BT: Tensor, old_energy_BT: Tensor, advantage_BT: Tensor, clip: float = 0.2) -> Tensor:
    """Advantage-weighted matching: matching weighted by A, with one ratio for each view of an image.

    -E stands for the log-likelihood, so that rho = exp(mean_T(E_old - E)) is the image's ratio of policies, and
    loss = -min(A s, A clamp(s, 1 - c, 1 + c)) with s = rho in value, while its
    gradient is -rho times that of the token's own E.

    At v = v_old its gradient is A times that of E. With one A for the whole image its mean over
    tokens has the gradient of the published loss -min(A rho, A clamp(rho)). It differs from ``group`` in
    what the clip looks at: the image as a whole instead of each token.

    Source: AWM, arXiv 2509.25050 (uniform weighting over t, its code 12b1397); a token's gradient through
    a ratio of the whole: GSPO-token, arXiv 2507.18071.

    Args:
        energy_BT, old_energy_BT: E and E_old, the latter of the policy that drew the samples.
        advantage_BT: A in [-1, 1].
        clip: c in (0, 1).
    """
    ratio_B1 = (old_energy_BT - energy_BT.detach()).mean(dim=1, keepdim=True).exp()
    # exp(0) in value; its gradient is that of -E.
    ratio_BT = ratio_B1 * (energy_BT.detach() - energy_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - clip, 1 + clip)
    return -torch.minimum(advantage_BT * ratio_BT, advantage_BT * clipped_BT)


def dpo(
    energy_BT: Tensor, reference_energy_BT: Tensor, sign_BT: Tensor, partner_B: Tensor, dpo_beta: float = 100.0
) -> Tensor:
    """Direct preference: the best image of a prompt against its worst.

    g = mean_T(E_ref - E) is how much better than the reference an image is matched, and the loss of a pair is
    -log sigmoid(b (g_best - g_worst)). It stands at every token of both images, so that the mean over the tokens that
    count is the mean over pairs. 0 where there is no pair.

    At v = v_ref it is log 2, and its gradient is b / 2 times that of E_best - E_worst.

    Source: Diffusion-DPO, arXiv 2311.12908, whose b is beta T w(lambda). Both images of a pair need the same views.

    Args:
        energy_BT, reference_energy_BT: E and E_ref.
        sign_BT: 1 on the tokens of a best image, -1 on those of a worst one, 0 elsewhere.
        partner_B: int64, the row of the other image of the pair; a row without one names itself.
        dpo_beta: b > 0.
    """
    sign_B1 = sign_BT[:, :1]
    gain_B1 = (reference_energy_BT - energy_BT).mean(dim=1, keepdim=True)
    margin_B1 = sign_B1 * (gain_B1 - gain_B1[partner_B])
    losses_B1 = torch.where(sign_B1 != 0, -F.logsigmoid(dpo_beta * margin_B1), 0.0)
    return losses_B1.expand_as(energy_BT)


# ---- what the loop calls: each loss with the terms and settings that it takes


def _nft(terms: Terms, settings: ObjectiveConfig) -> Tensor:
    matching, old, beta = terms.matching, terms.old_prediction, settings.beta
    if not settings.adaptive and matching.quadratic:
        divergence_BT = matching.divergence(terms.prediction, old)
        return nft(terms.energy, terms.old_energy, divergence_BT, terms.weights, beta)
    energies = []
    for share in (beta, -beta):
        mixed = matching.mix(old, terms.prediction, share)
        energy_BT = matching.energy(mixed, terms.target)
        if settings.adaptive:
            energy_BT = energy_BT * matching.inverse_size(mixed, terms.target, terms.time_B)
        energies.append(energy_BT)
    return nft_of_mixtures(energies[0], energies[1], terms.weights, beta)


def _nft_mixtures(terms: Terms, settings: ObjectiveConfig) -> Mixtures:
    """``nft_of_mixtures``, which the form that is not adaptive equals."""
    old, shares = terms.old_prediction, (settings.beta, -settings.beta)
    probability_BT = (terms.weights + 1) / 2
    coefficient_KBT = torch.stack([probability_BT, 1 - probability_BT]) / settings.beta
    if settings.adaptive:
        matching, prediction = terms.matching, terms.prediction.detach()
        mixed = [matching.mix(old, prediction, share) for share in shares]
        scales = [matching.inverse_size(mixture, terms.target, terms.time_B) for mixture in mixed]
        coefficient_KBT = coefficient_KBT * torch.stack(scales)
    return Mixtures(shares, coefficient_KBT, old)


def _matched(coefficient_BT: Tensor) -> Mixtures:
    """The prediction's own energy, times a constant."""
    return Mixtures((1.0,), coefficient_BT[None])


NFT = Objective(
    _nft,
    "signed",
    source="DiffusionNFT, arXiv 2509.16117; for codes NFT, arXiv 2505.18116",
    needs_old=True,
    compares_samples=True,
    mixtures=_nft_mixtures,
)
WEIGHTED = Objective(
    lambda terms, _: weighted(terms.energy, terms.weights),
    "positive",
    source="SRUM, arXiv 2510.12784",
    mixtures=lambda terms, _: _matched(terms.weights),
)
SFT = Objective(
    lambda terms, _: terms.energy,
    "none",
    source="flow matching, arXiv 2210.02747; the baseline",
    mixtures=lambda terms, _: _matched(terms.prediction.new_ones(terms.prediction.shape[:2], dtype=torch.float32)),
)
SIGNED = Objective(
    lambda terms, settings: signed(terms.energy, terms.weights, settings.bound or terms.matching.bound),
    "signed",
    source="this project",
)
GROUP = Objective(
    lambda terms, settings: group(terms.energy, terms.old_energy, terms.weights, settings.clip),
    "group",
    source="arXiv 2507.21053, arXiv 2402.03300",
    needs_old=True,
    compares_samples=True,
)
AWM = Objective(
    lambda terms, settings: awm(terms.energy, terms.old_energy, terms.weights, settings.clip),
    "signed",
    source="AWM, arXiv 2509.25050",
    needs_old=True,
    compares_samples=True,
)
DPO = Objective(
    lambda terms, settings: dpo(terms.energy, terms.reference_energy, terms.weights, terms.partners, settings.dpo_beta),
    "pair",
    source="Diffusion-DPO, arXiv 2311.12908",
    needs_reference=True,
    compares_samples=True,
)
