"""What the reward says about every token: from a micro-batch's scores to its ``TokenWeights``.

The training loop calls ``token_weights`` once per micro-batch. The kinds of weights are those that objectives ask for:
``signed`` is this project's own map, centred within the images of one prompt and bounded by [-1, 1]; ``positive`` is
the released arithmetic (``painting.paper_map``). Everything is a pure function of tensors; a failed score is NaN and
never becomes a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srum_ds.config.schema import RewardConfig
from srum_ds.rewards.painting import PLAIN_BRUSH, Brush, paint, paper_map
from srum_ds.types import Judged, Regions, Scores, TokenWeights


def token_weights(kind: str, judged: Judged, reward: RewardConfig) -> TokenWeights:
    """The weights of a micro-batch, of the kind that an objective asks for (``Objective.weights``), on the CPU.

    An image whose whole-image score failed, or that is not finite, does not count; nor, for ``pair``, one in no pair.

    Args:
        kind: "signed", "group", "positive", "pair" or "none".
        judged: N images with their regions and scores.
        reward: ``reward.*`` of the recipe; "positive" has the released arithmetic instead.
    """
    scores, regions, samples = judged.scores, judged.regions, judged.samples
    counts_N = torch.isfinite(scores.global_N) & samples.finite_N
    image_hw = (int(samples.images_NCHW.shape[-2]), int(samples.images_NCHW.shape[-1]))
    if kind == "none":
        return TokenWeights(None, counts_N)
    if kind == "positive":
        _, map_Nhw = paper_map(
            regions.owner_R, regions.boxes_R4, scores.local_R, scores.global_N, image_hw, samples.grid
        )
        return TokenWeights(map_Nhw, counts_N)
    brush = brush_of(reward, image_hw)
    if kind == "group":
        map_Nhw = group_map(raw_map(scores, regions, samples.grid, reward, brush), samples.group_N, counts_N)
        return TokenWeights(map_Nhw, counts_N)
    map_Nhw = dense_weights(scores, regions, samples.group_N, samples.grid, reward, brush)
    if kind == "signed":
        return TokenWeights(map_Nhw, counts_N)
    if kind != "pair":
        raise ValueError(f"weights of the kind {kind!r} are not known")
    reward_N = torch.where(counts_N, map_Nhw.mean(dim=(1, 2)), torch.nan)
    sign_N, partner_N = best_and_worst(reward_N, samples.group_N)
    return TokenWeights(sign_N[:, None, None].expand_as(map_Nhw), counts_N & (sign_N != 0), partner_N)


def brush_of(reward: RewardConfig, image_hw: tuple[int, int]) -> Brush:
    """How a recipe paints: on the token grid by area, or on the image's pixels and bilinearly, as released."""
    canvas_hw = None if reward.resize == "area" else image_hw
    return Brush(reward.combine, reward.background, canvas_hw, reward.resize)


def centre_in_groups(values_M: Tensor, group_M: Tensor, groups: int, eps: float = 0.1) -> Tensor:
    """(value - mean) / (spread + eps) within each group, over its finite values.

    The spread is the population standard deviation. ``eps`` keeps a group whose values hardly
    differ from being blown up to random differences of size 1.

    Args:
        values_M: float values, NaN where unknown.
        group_M: group of each value, int64 in [0, groups).
        groups: how many groups.
        eps: >= 0; with 0, a group without spread gives NaN.

    Returns:
        [M] float32, NaN where the input is not finite.
    """
    values_M = values_M.double()
    finite_M = torch.isfinite(values_M)
    known_M = torch.where(finite_M, values_M, 0.0)
    zeros_G = torch.zeros(groups, dtype=torch.float64, device=values_M.device)
    count_G = zeros_G.index_add(0, group_M, finite_M.double()).clamp(min=1)
    mean_G = zeros_G.index_add(0, group_M, known_M) / count_G
    offset_M = torch.where(finite_M, values_M - mean_G[group_M], 0.0)
    spread_G = (zeros_G.index_add(0, group_M, offset_M.square()) / count_G).sqrt()
    centred_M = offset_M / (spread_G[group_M] + eps)
    return torch.where(finite_M, centred_M, torch.nan).float()


def _group_count(group_N: Tensor) -> int:
    return int(group_N.max()) + 1 if group_N.numel() else 0


def group_advantages(global_N: Tensor, group_N: Tensor, valid_N: Tensor | None = None, eps: float = 0.1) -> Tensor:
    """How much better each image is than the others of its prompt: (r - mean) / (spread + eps).

    The group-relative advantage of GRPO (arXiv 2402.03300) with a larger eps, since scores live in
    [-1, 1].

    Args:
        global_N: rewards.
        group_N: prompt of each image, int64 from 0.
        valid_N: bool, which rewards count; None: the finite ones.
        eps: see ``centre_in_groups``.

    Returns:
        [N] float32; 0 for an image that does not count, and for one that is alone in its group.
    """
    if valid_N is not None:
        global_N = torch.where(valid_N, global_N, torch.nan)
    return torch.nan_to_num(centre_in_groups(global_N, group_N, _group_count(group_N), eps), nan=0.0)


def image_rewards(scores: Scores, reward: RewardConfig) -> Tensor:
    """What the images are worth as wholes: global - missing_penalty * missing, [N] float32, NaN where global failed."""
    reward_N = scores.global_N.float()
    if scores.missing_N is None:
        return reward_N
    return reward_N - reward.missing_penalty * scores.missing_N.to(reward_N)


def dense_weights(
    scores: Scores,
    regions: Regions,
    group_N: Tensor,
    grid_hw: tuple[int, int],
    reward: RewardConfig,
    brush: Brush = PLAIN_BRUSH,
    eps: float = 0.1,
) -> Tensor:
    """Signed token weights: clamp((w_g * A + w_l * L) / 2, -1, 1).

    With ``reward.global_factor`` multiplicative: clamp(w_l * L * f / 2, -1, 1), f = (global + 1) / 2 in [0, 1] as in
    the released map: the whole image's score fades its regions' instead of standing beside them.

    A is the group-centred advantage of the image's reward, global - missing_penalty * missing,
    the same for all its tokens: an object that is not there has no place on the map, so its cost
    lies on the whole image. L is the signed map of the local scores, each centred over all regions
    of the prompt's images. Halving leaves one spread above the mean at weight 1/2, as in
    DiffusionNFT (arXiv 2509.16117), where (weight + 1) / 2 is the probability of being good.

    An image whose global score failed has weight 0 everywhere (unless ``reward.global_weight`` is 0, when
    nobody needs that score). Weight 0 is not yet "left out" for every objective: mask such images
    in the loss as well. A region whose local score failed is neutral.

    Args:
        scores: of N images and R regions, in [-1, 1], NaN where failed; ``missing_N`` in [0, 1] or None.
        regions: the R boxes.
        group_N: prompt of each image, int64 from 0.
        grid_hw: rows and columns of the tokens.
        reward: weights, penalty and the way of joining them.
        brush: how regions are painted; its background is in spreads above the mean.
        eps: see ``centre_in_groups``.

    Returns:
        [N, h, w] float32 in [-1, 1].
    """
    global_N = scores.global_N
    reward_N = image_rewards(scores, reward)
    advantage_N = group_advantages(reward_N, group_N, eps=eps)
    centred_R = centre_in_groups(scores.local_R, group_N[regions.owner_R], _group_count(group_N), eps)
    local_Nhw = paint(regions.owner_R, regions.boxes_R4, centred_R, global_N.numel(), grid_hw, brush)
    if reward.global_factor == "additive":
        weights_Nhw = (reward.global_weight * advantage_N[:, None, None] + reward.local_weight * local_Nhw) / 2
    else:
        factor_N = torch.nan_to_num((reward_N.clamp(-1.0, 1.0) + 1) / 2, nan=0.0)
        weights_Nhw = reward.local_weight * local_Nhw * factor_N[:, None, None] / 2
    weights_Nhw = weights_Nhw.clamp(-1.0, 1.0)
    if reward.global_weight > 0:
        weights_Nhw = weights_Nhw * torch.isfinite(global_N)[:, None, None]
    return weights_Nhw


def raw_map(
    scores: Scores, regions: Regions, grid_hw: tuple[int, int], reward: RewardConfig, brush: Brush = PLAIN_BRUSH
) -> Tensor:
    """w_g (global - missing_penalty * missing) + w_l * (painted local scores), not centred: [N, h, w] float32.

    NaN over the whole of an image whose global score failed. What ``group_map`` compares.
    """
    local_Nhw = paint(regions.owner_R, regions.boxes_R4, scores.local_R, scores.global_N.numel(), grid_hw, brush)
    return reward.global_weight * image_rewards(scores, reward)[:, None, None] + reward.local_weight * local_Nhw


def group_map(maps_Nhw: Tensor, group_N: Tensor, valid_N: Tensor | None = None, eps: float = 0.1) -> Tensor:
    """Dense group advantages: each token's map value centred over the same token of its group.

    (map - mean map) / (spread map + eps) over the valid images of a prompt, halved and clipped.

    Args:
        maps_Nhw: any reward map.
        group_N: prompt of each image, int64 from 0.
        valid_N: bool, which images count; None: all.
        eps: see ``centre_in_groups``.

    Returns:
        [N, h, w] float32 in [-1, 1], 0 for images that do not count.
    """
    count, height, width = maps_Nhw.shape
    cells = height * width
    values_NT = maps_Nhw.reshape(count, cells)
    if valid_N is not None:
        values_NT = torch.where(valid_N[:, None], values_NT, torch.nan)
    # One group for every pair of prompt and token.
    group_NT = group_N[:, None] * cells + torch.arange(cells, device=group_N.device)
    centred_M = centre_in_groups(values_NT.flatten(), group_NT.flatten(), _group_count(group_N) * cells, eps)
    return (torch.nan_to_num(centred_M, nan=0.0) / 2).clamp(-1.0, 1.0).reshape(count, height, width)


def best_and_worst(reward_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """The pair of each prompt: its best image against its worst.

    Args:
        reward_N: NaN where unknown: such images are in no pair.
        group_N: prompt of each image, int64 from 0.

    Returns:
        (sign_N float32: 1 best, -1 worst, 0 neither; partner_N int64: the other of the pair, else itself).
        Of equals the first is taken; a prompt whose known rewards are all equal has no pair.
    """
    sign_N = torch.zeros(reward_N.numel(), dtype=torch.float32, device=reward_N.device)
    partner_N = torch.arange(reward_N.numel(), device=reward_N.device)
    for group in torch.unique(group_N).tolist():
        members = torch.nonzero((group_N == group) & torch.isfinite(reward_N)).flatten()
        if members.numel() < 2:
            continue
        best, worst = (int(members[int(pick)]) for pick in (reward_N[members].argmax(), reward_N[members].argmin()))
        if float(reward_N[best]) > float(reward_N[worst]):
            sign_N[best], sign_N[worst] = 1.0, -1.0
            partner_N[best], partner_N[worst] = worst, best
    return sign_N, partner_N
