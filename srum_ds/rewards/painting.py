"""Regions painted onto the token grid: from boxes and values to one value per token. Pure functions of tensors.

``token_weights`` makes the reward's weights of them; ``paper_map`` is the released arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Combine = Literal["max", "strongest", "mean", "smallest"]
Resize = Literal["area", "bilinear"]


@dataclass(frozen=True)
class Brush:
    """How regions are painted.

    combine: which value ends on top where boxes meet. background: the value outside all boxes.

    * ``strongest``: the value farthest from the background, whichever its sign.
    * ``max``: the largest value (as released).
    * ``smallest``: that of the smallest box.
    * ``mean``: values are averaged by coverage; what no box covers counts as background.

    canvas_hw: rows and columns of a finer canvas to paint on, brought down to the grid by ``resize``; None paints on
    the grid itself. It matters where boxes meet inside a token. resize: ``area`` averages a token's part of the canvas;
    ``bilinear`` (align_corners false, no antialias, as released) reads it off around the token's centre.
    """

    combine: Combine = "strongest"
    background: float = 0.0
    canvas_hw: tuple[int, int] | None = None
    resize: Resize = "area"


PLAIN_BRUSH = Brush()
"""The strongest value on top, 0 outside all boxes, painted on the grid itself."""


def cell_coverage(boxes_R4: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Share of each grid cell that each box covers, by exact geometry.

    Args:
        boxes_R4: x0, y0, x1, y1 in normalised coordinates; parts outside the image cover nothing,
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
    brush: Brush = PLAIN_BRUSH,
) -> Tensor:
    """Paints each region's value into its image and reads the result off at the token grid.

    Regions are painted one over the other. Painting is by area: a box that covers the share c of a
    cell leaves (1 - c) * old + c * value there, which is exact where cells lie wholly in or out of the
    boxes. Where boxes meet, ``brush.combine`` decides; of equals the earlier region ends on top. A region whose value
    is NaN is left out.

    Args:
        owner_R: image of each region, int64 in [0, n).
        boxes_R4: normalised boxes; degenerate and outside parts: see ``cell_coverage``.
        values_R: float values.
        n: images.
        grid_hw: rows and columns of the token grid.
        brush: how; where a region has none, its ``background`` stands.

    Returns:
        [n, h, w] float32.
    """
    canvas_hw = brush.canvas_hw or grid_hw
    maps = torch.full((n, *canvas_hw), brush.background, dtype=torch.float32, device=values_R.device)
    values_R = values_R.float() - brush.background
    kept_R = torch.isfinite(values_R)
    owner_R, boxes_R4, values_R = owner_R[kept_R], boxes_R4[kept_R], values_R[kept_R]
    for owner in torch.unique(owner_R).tolist():
        inside = owner_R == owner
        boxes = boxes_R4[inside]
        coverage_Rhw = cell_coverage(boxes, canvas_hw)
        maps[owner] += _combine(coverage_Rhw, values_R[inside], boxes, brush.combine)
    if canvas_hw == grid_hw:
        return maps
    corners = None if brush.resize == "area" else False
    return F.interpolate(maps[:, None], size=grid_hw, mode=brush.resize, align_corners=corners)[:, 0]


def _combine(coverage_Rhw: Tensor, values_R: Tensor, boxes_R4: Tensor, combine: str) -> Tensor:
    """One image's map [h, w] relative to the background."""
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
    (global + 1) / 2. Box edges are truncated to whole pixels towards 0 and clipped to the image, upper
    edges exclusive; an empty box, or one with an edge that is not finite, paints nothing. Bilinear resize
    (align_corners false, no antialias) gives the tokens. Scores below 0 therefore have no effect: this map is kept for
    comparison.

    One departure: the release halves the map when the global score is missing. Here such an image
    gets weight 0, for the caller to mask. A failed (NaN) local score leaves the floor, as released.

    Args:
        owner_R: image of each region.
        boxes_R4: normalised boxes, which may reach outside [0, 1]. An edge within a thousandth of a
            pixel of a whole one counts as that: 43/48 * 48 must not become 42.
        local_R: scores in [-1, 1].
        global_N: scores in [-1, 1].
        image_hw: pixels of the image.
        grid_hw: rows and columns of the latent tokens.

    Returns:
        (pixels [N, H, W], tokens [N, h, w]), float32 in [0, 1].
    """
    height, width = image_hw
    pixels_NHW = torch.full((global_N.numel(), height, width), 0.5, device=global_N.device)
    sides_4 = torch.tensor([width, height, width, height], dtype=torch.float64, device=boxes_R4.device)
    broken_R1 = ~torch.isfinite(boxes_R4).all(dim=1, keepdim=True)
    edges_R4 = boxes_R4.double().masked_fill(broken_R1, 0.0) * sides_4
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
