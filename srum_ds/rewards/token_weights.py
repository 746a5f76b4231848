"""What it is worth: from boxes and scores to one weight for every latent token.

Two maps. ``paper_map`` is the released arithmetic, non-negative. ``dense_weights`` is this project's
own: signed, centred within the pictures of one prompt, bounded by [-1, 1]. Everything here is a pure
function of tensors; a failed score is NaN and never becomes a number.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Combine = Literal["strongest", "max", "mean", "smallest"]
COMBINE: tuple[str, ...] = get_args(Combine)
GLOBAL_FACTORS = ("additive", "multiplicative")


def cell_coverage(boxes_R4: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Share of each grid cell that each box covers, by exact geometry.

    Args:
        boxes_R4: x0, y0, x1, y1 in normalised coordinates; parts outside the picture cover nothing,
            and a box with x0 >= x1 or y0 >= y1, or an edge that is not finite, covers nothing anywhere.
        grid_hw: rows and columns of the grid.

    Returns:
        [R, h, w] float32 in [0, 1].
    """
    broken_R1 = ~torch.isfinite(boxes_R4).all(dim=1, keepdim=True)
    boxes_R4 = boxes_R4.double().masked_fill(broken_R1, 0.0)
    height, width = grid_hw
    columns_Rw = _overlap(boxes_R4[:, 0], boxes_R4[:, 2], width)
    rows_Rh = _overlap(boxes_R4[:, 1], boxes_R4[:, 3], height)
    return (rows_Rh[:, :, None] * columns_Rw[:, None, :]).float()


def _overlap(low_R: Tensor, high_R: Tensor, cells: int) -> Tensor:
    """Share [R, cells] of each of ``cells`` equal parts of [0, 1] inside [low, high]."""
    start = torch.arange(cells, dtype=torch.float64, device=low_R.device)
    low_R1 = (low_R * cells)[:, None]
    high_R1 = (high_R * cells)[:, None]
    return (torch.minimum(high_R1, start + 1) - torch.maximum(low_R1, start)).clamp(0.0, 1.0)


def paint(
    owner_R: Tensor,
    boxes_R4: Tensor,
    values_R: Tensor,
    n: int,
    grid_hw: tuple[int, int],
    *,
    combine: str = "strongest",
    background: float = 0.0,
    resolution: tuple[int, int] | None = None,
    resize: str = "area",
) -> Tensor:
    """Paints each region's value into its picture and reads the result off at the token grid.

    Regions are painted one over the other. Painting is by area: a box that covers the share c of a
    cell leaves (1 - c) * old + c * value there, which is exact where cells lie wholly in or out of the
    boxes. Where boxes meet, ``combine`` decides:

    * ``strongest``: the value farthest from the background, whichever its sign, ends on top.
    * ``max``: the largest value ends on top (as released).
    * ``smallest``: the smallest box ends on top.
    * ``mean``: values are averaged by coverage; what no box covers counts as background.

    Of equals the earlier region ends on top. A region whose value is NaN is left out.

    Args:
        owner_R: picture of each region, int64 in [0, n).
        boxes_R4: normalised boxes; degenerate and outside parts: see ``cell_coverage``.
        values_R: float values.
        n: pictures.
        grid_hw: rows and columns of the token grid.
        combine: see above.
        background: value outside all boxes.
        resolution: rows and columns of a finer canvas to paint on, brought down to the grid by
            ``resize``. None paints on the grid itself. It matters where boxes meet inside a token.
        resize: ``area`` averages a token's part of the canvas; ``bilinear`` (align_corners false, no
            antialias, as released) reads it off around the token's centre.

    Returns:
        [n, h, w] float32.

    Raises:
        ValueError: unknown ``combine`` or ``resize``.
    """
    if combine not in COMBINE:
        raise ValueError(f"combine is {combine!r}, expected one of {', '.join(COMBINE)}")
    if resize not in ("area", "bilinear"):
        raise ValueError(f"resize is {resize!r}, expected area or bilinear")
    canvas_hw = resolution or grid_hw
    maps = torch.full((n, *canvas_hw), background, dtype=torch.float32, device=values_R.device)
    values_R = values_R.float() - background
    kept_R = torch.isfinite(values_R)
    owner_R, boxes_R4, values_R = owner_R[kept_R], boxes_R4[kept_R], values_R[kept_R]
    for owner in torch.unique(owner_R).tolist():
        inside = owner_R == owner
        boxes = boxes_R4[inside]
        coverage_Rhw = cell_coverage(boxes, canvas_hw)
        maps[owner] += _combine(coverage_Rhw, values_R[inside], boxes, combine)
    if canvas_hw == grid_hw:
        return maps
    corners = None if resize == "area" else False
    return F.interpolate(maps[:, None], size=grid_hw, mode=resize, align_corners=corners)[:, 0]


def _combine(coverage_Rhw: Tensor, values_R: Tensor, boxes_R4: Tensor, combine: str) -> Tensor:
    """One picture's map [h, w] relative to the background."""
    offers_Rhw = coverage_Rhw * values_R[:, None, None]
    if combine == "mean":
        return offers_Rhw.sum(dim=0) / coverage_Rhw.sum(dim=0).clamp(min=1.0)
    if combine == "smallest":
        rank_R = -(boxes_R4[:, 2:] - boxes_R4[:, :2]).clamp(min=0).prod(dim=1)
    else:
        rank_R = values_R.abs() if combine == "strongest" else values_R
    # Lowest rank first; of equals the later first, so that the earlier ends on top.
    last = len(rank_R) - 1
    order = last - torch.argsort(rank_R.flip(0), stable=True)
    canvas_hw = torch.zeros_like(offers_Rhw[0])
    for region in order.tolist():
        canvas_hw = canvas_hw * (1 - coverage_Rhw[region]) + offers_Rhw[region]
    return canvas_hw


def signed_map(
    owner_R: Tensor,
    boxes_R4: Tensor,
    values_R: Tensor,
    n: int,
    grid_hw: tuple[int, int],
    *,
    combine: str = "strongest",
    background: float = 0.0,
    resolution: tuple[int, int] | None = None,
    resize: str = "area",
) -> Tensor:
    """Signed local values on the token grid, ``background`` outside all regions and for failed (NaN) ones.

    Shapes and settings as in ``paint``. Returns [n, h, w] float32.
    """
    return paint(
        owner_R,
        boxes_R4,
        values_R,
        n,
        grid_hw,
        combine=combine,
        background=background,
        resolution=resolution,
        resize=resize,
    )


def paper_map(
    owner_R: Tensor,
    boxes_R4: Tensor,
    local_R: Tensor,
    global_N: Tensor,
    image_hw: tuple[int, int],
    grid_hw: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """The reward map of the SRUM release (arXiv 2510.12784, code a53ba18), to the last digit.

    Per pixel: start at 0.5; inside each box max(old, (score + 1) / 2); then everything times
    (global + 1) / 2. Box edges are truncated to whole pixels towards 0 and clipped to the picture, upper
    edges exclusive; an empty box paints nothing. Bilinear resize (align_corners false, no antialias)
    gives the tokens. Scores below 0 therefore have no effect: this map is kept for comparison.

    One departure: the release halves the map when the global score is missing. Here such a picture
    gets weight 0, for the caller to mask. A failed (NaN) local score leaves the floor, as released.

    Args:
        owner_R: picture of each region.
        boxes_R4: normalised boxes, which may reach outside [0, 1]. An edge within a thousandth of a
            pixel of a whole one counts as that: 43/48 * 48 must not become 42.
        local_R: scores in [-1, 1].
        global_N: scores in [-1, 1].
        image_hw: pixels of the picture.
        grid_hw: rows and columns of the latent tokens.

    Returns:
        (pixels [N, H, W], tokens [N, h, w]), float32 in [0, 1].
    """
    height, width = image_hw
    pixels_NHW = torch.full((global_N.numel(), height, width), 0.5, device=global_N.device)
    sides_4 = torch.tensor([width, height, width, height], dtype=torch.float64, device=boxes_R4.device)
    edges_R4 = boxes_R4.double() * sides_4
    whole_R4 = edges_R4.round()
    edges_R4 = torch.where((edges_R4 - whole_R4).abs() < 1e-3, whole_R4, edges_R4.trunc())
    edges_R4 = edges_R4.clamp(min=torch.zeros_like(sides_4), max=sides_4)
    weight_R = (local_R.float() + 1) / 2
    for owner, (x0, y0, x1, y1), weight in zip(
        owner_R.tolist(), edges_R4.long().tolist(), weight_R.tolist(), strict=True
    ):
        if x0 < x1 and y0 < y1 and weight > 0.5:
            pixels_NHW[owner, y0:y1, x0:x1].clamp_(min=weight)
    factor_N = torch.nan_to_num((global_N.float() + 1) / 2, nan=0.0)
    pixels_NHW = pixels_NHW * factor_N[:, None, None]
    tokens_Nhw = F.interpolate(pixels_NHW[:, None], size=grid_hw, mode="bilinear", align_corners=False)[:, 0]
    return pixels_NHW, tokens_Nhw


def centre_in_groups(values_M: Tensor, group_M: Tensor, groups: int, eps: float = 0.1) -> Tensor:
    """(value - mean) / (spread + eps) within each group, over its finite values.

    The spread is the population standard deviation. ``eps`` keeps a group whose values hardly
    differ from being blown up to noise of size 1.

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
    """How much better each picture is than the others of its prompt: (r - mean) / (spread + eps).

    The group-relative advantage of GRPO (arXiv 2402.03300) with a larger eps, since scores live in
    [-1, 1].

    Args:
        global_N: rewards.
        group_N: prompt of each picture, int64 from 0.
        valid_N: bool, which rewards count; None: the finite ones.
        eps: see ``centre_in_groups``.

    Returns:
        [N] float32; 0 for a picture that does not count, and for one that is alone in its group.
    """
    if valid_N is not None:
        global_N = torch.where(valid_N, global_N, torch.nan)
    return torch.nan_to_num(centre_in_groups(global_N, group_N, _group_count(group_N), eps), nan=0.0)


def dense_weights(
    global_N: Tensor,
    local_R: Tensor,
    owner_R: Tensor,
    boxes_R4: Tensor,
    group_N: Tensor,
    grid_hw: tuple[int, int],
    *,
    missing_N: Tensor | None = None,
    global_weight: float = 1.0,
    local_weight: float = 0.5,
    missing_penalty: float = 0.0,
    eps: float = 0.1,
    combine: str = "strongest",
    background: float = 0.0,
    global_factor: str = "additive",
    resolution: tuple[int, int] | None = None,
    resize: str = "area",
) -> Tensor:
    """Signed token weights: clamp((w_g * A + w_l * L) / 2, -1, 1).

    With ``global_factor`` multiplicative: clamp(w_l * L * f / 2, -1, 1), f = (global + 1) / 2 in [0, 1] as in
    the released map: the whole picture's score fades its regions' instead of standing beside them.

    A is the group-centred advantage of the picture's reward, global - missing_penalty * missing,
    the same for all its tokens: an object that is not there has no place on the map, so its cost
    lies on the whole picture. L is the signed map of the local scores, each centred over all regions
    of the prompt's pictures. Halving leaves one spread above the mean at weight 1/2, as in
    DiffusionNFT (arXiv 2509.16117), where (weight + 1) / 2 is the probability of being good.

    A picture whose global score failed has weight 0 everywhere (unless ``global_weight`` is 0, when
    nobody needs that score). Weight 0 is not yet "left out" for every objective: mask such pictures
    in the loss as well. A region whose local score failed is neutral.

    Args:
        global_N: scores in [-1, 1], NaN where failed.
        local_R, owner_R, boxes_R4: scores, pictures and boxes of the regions.
        group_N: prompt of each picture, int64 from 0.
        grid_hw: rows and columns of the latent tokens.
        missing_N: share of the prompt's objects that the picture lacks, in [0, 1].
        global_weight, local_weight, missing_penalty: >= 0.
        eps: see ``centre_in_groups``.
        combine, resolution, resize: see ``paint``.
        background: what L is outside all regions, in spreads above the mean.
        global_factor: ``additive`` or ``multiplicative``.

    Returns:
        [N, h, w] float32 in [-1, 1].

    Raises:
        ValueError: unknown ``global_factor``, ``combine`` or ``resize``.
    """
    if global_factor not in GLOBAL_FACTORS:
        raise ValueError(f"global_factor is {global_factor!r}, expected one of {', '.join(GLOBAL_FACTORS)}")
    reward_N = global_N.float()
    if missing_N is not None:
        reward_N = reward_N - missing_penalty * missing_N.to(reward_N)
    advantage_N = group_advantages(reward_N, group_N, eps=eps)
    centred_R = centre_in_groups(local_R, group_N[owner_R], _group_count(group_N), eps)
    local_Nhw = signed_map(
        owner_R,
        boxes_R4,
        centred_R,
        global_N.numel(),
        grid_hw,
        combine=combine,
        background=background,
        resolution=resolution,
        resize=resize,
    )
    if global_factor == "additive":
        weights_Nhw = (global_weight * advantage_N[:, None, None] + local_weight * local_Nhw) / 2
    else:
        factor_N = torch.nan_to_num((reward_N.clamp(-1.0, 1.0) + 1) / 2, nan=0.0)
        weights_Nhw = local_weight * local_Nhw * factor_N[:, None, None] / 2
    weights_Nhw = weights_Nhw.clamp(-1.0, 1.0)
    if global_weight > 0:
        weights_Nhw = weights_Nhw * torch.isfinite(global_N)[:, None, None]
    return weights_Nhw


def group_map(maps_Nhw: Tensor, group_N: Tensor, valid_N: Tensor | None = None, eps: float = 0.1) -> Tensor:
    """Dense group advantages: each token's map value centred over the same token of its group.

    (map - mean map) / (spread map + eps) over the valid pictures of a prompt, halved and clipped.

    Args:
        maps_Nhw: any reward map.
        group_N: prompt of each picture, int64 from 0.
        valid_N: bool, which pictures count; None: all.
        eps: see ``centre_in_groups``.

    Returns:
        [N, h, w] float32 in [-1, 1], 0 for pictures that do not count.
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
    """The pair of each prompt: its best picture against its worst.

    Args:
        reward_N: NaN where unknown: such pictures are in no pair.
        group_N: prompt of each picture, int64 from 0.

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
