"""Where to look: region proposals in normalised coordinates, overlap suppression, pixel crops."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from srum_ds.errors import UserError
from srum_ds.models.base import Regions

RegionKind = Literal["components", "grid", "none"]
REGION_KINDS: tuple[str, ...] = get_args(RegionKind)


def no_regions() -> Regions:
    """Returns an empty set of regions."""
    return Regions(
        owner_R=torch.zeros(0, dtype=torch.int64),
        boxes_R4=torch.zeros(0, 4, dtype=torch.float32),
    )


def propose(
    images_NCHW: Tensor,
    kind: str = "components",
    *,
    max_count: int = 10,
    min_area: float = 0.004,
    pad: float = 0.03,
    threshold: float = 0.2,
    grid_side: int = 2,
) -> Regions:
    """Proposes boxes for a batch of pictures, without any model.

    ``components`` takes connected foreground segments: pixels whose strongest channel differs by
    more than ``threshold`` from the picture's background, which is the median colour of its border.
    A blank picture has none. The ``max_count`` largest segments of each picture are kept, largest
    first (ties: upper, then left). ``grid`` lays ``grid_side`` x ``grid_side`` equal boxes over every
    picture, row by row. ``none`` proposes nothing, which leaves the global reward alone.

    Args:
        images_NCHW: pictures [N, 3, H, W] in [0, 1]. A picture with a non-finite border is blank.
        kind: one of ``REGION_KINDS``.
        max_count: most regions a picture may have, >= 1.
        min_area: smallest segment kept, as a share of the picture's area in [0, 1].
        pad: margin added on each side, as a share of the picture's side, >= 0. The default suits
            the shapes world: 12 px objects in a 64 px picture get 16 px boxes.
        threshold: foreground contrast in (0, 1).
        grid_side: boxes along each side of ``grid``, >= 1.

    Returns:
        Regions on the CPU: owners ascending, boxes [R, 4] float32 clipped to [0, 1].

    Raises:
        UserError: unknown ``kind``, a setting out of range, or a grid that breaks ``max_count``.
    """
    _check_settings(kind, max_count, min_area, pad, threshold, grid_side)
    if kind == "none":
        return no_regions()
    height, width = images_NCHW.shape[-2:]
    owners: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    if kind == "grid":
        found = [_grid_boxes(grid_side)] * images_NCHW.shape[0]
    else:
        pictures = images_NCHW.detach().float().cpu().numpy()
        found = [_component_boxes(x, threshold, min_area)[:max_count] for x in pictures]
    for owner, picture_boxes in enumerate(found):
        owners.extend([owner] * len(picture_boxes))
        boxes.extend(picture_boxes)
    if not owners:
        return no_regions()
    boxes_R4 = torch.tensor(boxes, dtype=torch.float64)
    margin_4 = torch.tensor([-pad, -pad, pad, pad], dtype=torch.float64)
    if kind == "components":
        boxes_R4 = boxes_R4 / torch.tensor([width, height, width, height], dtype=torch.float64)
    boxes_R4 = (boxes_R4 + margin_4).clamp(0.0, 1.0)
    return Regions(owner_R=torch.tensor(owners, dtype=torch.int64), boxes_R4=boxes_R4.float())


def _check_settings(kind: str, max_count: int, min_area: float, pad: float, threshold: float, grid_side: int) -> None:
    if kind not in REGION_KINDS:
        near = difflib.get_close_matches(kind, REGION_KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"region kind {kind!r} is not known: use one of {', '.join(REGION_KINDS)}{hint}")
    if max_count < 1:
        raise UserError(f"regions: max_count is {max_count}, expected at least 1 (use kind 'none' for none)")
    if not 0.0 <= min_area <= 1.0:
        raise UserError(f"regions: min_area is {min_area}, expected a share of the picture in [0, 1]")
    if not 0.0 <= pad < math.inf:
        raise UserError(f"regions: pad is {pad}, expected a share of the picture's side, 0 or more")
    if not 0.0 < threshold < 1.0:
        raise UserError(f"regions: threshold is {threshold}, expected a contrast in (0, 1)")
    if grid_side < 1:
        raise UserError(f"regions: grid_side is {grid_side}, expected at least 1")
    if kind == "grid" and grid_side * grid_side > max_count:
        raise UserError(
            f"regions: a {grid_side} x {grid_side} grid has {grid_side * grid_side} boxes, more than "
            f"max_count {max_count}: raise max_count or lower grid_side"
        )


def _component_boxes(
    picture_CHW: np.ndarray, threshold: float, min_area: float
) -> list[tuple[float, float, float, float]]:
    """Pixel boxes (x0, y0, x1, y1), upper bounds exclusive, of the foreground segments, largest first."""
    _, height, width = picture_CHW.shape
    border = np.concatenate(
        [picture_CHW[:, 0], picture_CHW[:, -1], picture_CHW[:, :, 0], picture_CHW[:, :, -1]], axis=1
    )
    background = np.median(border, axis=1)
    # NaN compares false, so a broken picture has no foreground rather than a broken label image.
    foreground = np.abs(picture_CHW - background[:, None, None]).max(axis=0) > threshold
    labels, count = ndimage.label(foreground)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    ranked: list[tuple[int, int, int, tuple[float, float, float, float]]] = []
    for index, slices in enumerate(ndimage.find_objects(labels)):
        area = int(areas[index + 1])
        if area < min_area * height * width:
            continue
        rows, columns = slices
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        ranked.append((-area, rows.start, columns.start, box))
    return [entry[3] for entry in sorted(ranked)]


def _grid_boxes(side: int) -> list[tuple[float, float, float, float]]:
    """Equal boxes over the unit square, row by row."""
    edges = [k / side for k in range(side + 1)]
    return [
        (edges[column], edges[row], edges[column + 1], edges[row + 1]) for row in range(side) for column in range(side)
    ]


def pairwise_iou(boxes_A4: Tensor, boxes_B4: Tensor) -> Tensor:
    """Intersection over union [A, B] of boxes given as x0, y0, x1, y1; 0 where the union is empty."""
    low_AB2 = torch.maximum(boxes_A4[:, None, :2], boxes_B4[None, :, :2])
    high_AB2 = torch.minimum(boxes_A4[:, None, 2:], boxes_B4[None, :, 2:])
    shared_AB = (high_AB2 - low_AB2).clamp(min=0).prod(dim=-1)
    area_A = (boxes_A4[:, 2:] - boxes_A4[:, :2]).clamp(min=0).prod(dim=-1)
    area_B = (boxes_B4[:, 2:] - boxes_B4[:, :2]).clamp(min=0).prod(dim=-1)
    union_AB = area_A[:, None] + area_B[None, :] - shared_AB
    return torch.where(union_AB > 0, shared_AB / union_AB.clamp(min=1e-12), torch.zeros_like(union_AB))


def suppress(regions: Regions, iou: float) -> Regions:
    """Drops each region that overlaps an earlier kept region of its picture by more than ``iou``.

    Proposals come largest first, so the larger of two overlapping boxes stays. ``iou`` in [0, 1];
    1 keeps everything.

    Raises:
        UserError: ``iou`` out of range.
    """
    if not 0.0 <= iou <= 1.0:
        raise UserError(f"regions: overlap limit is {iou}, expected an intersection over union in [0, 1]")
    kept: list[int] = []
    for owner in torch.unique(regions.owner_R).tolist():
        members = torch.nonzero(regions.owner_R == owner).flatten().tolist()
        boxes_R4 = regions.boxes_R4[members]
        overlap_RR = pairwise_iou(boxes_R4, boxes_R4)
        chosen: list[int] = []
        for position in range(len(members)):
            if all(float(overlap_RR[position, earlier]) <= iou for earlier in chosen):
                chosen.append(position)
        kept.extend(members[position] for position in chosen)
    index = torch.tensor(sorted(kept), dtype=torch.int64)
    return Regions(owner_R=regions.owner_R[index], boxes_R4=regions.boxes_R4[index])


def crop(images_NCHW: Tensor, regions: Regions, size_hw: tuple[int, int] | None = (64, 64)) -> list[Tensor]:
    """Cuts every region out of its picture.

    Box edges are rounded to whole pixels and clipped to the picture (at least one pixel stays). With
    ``size_hw`` each cut is resampled to that one size (bilinear, antialiased where it shrinks), so that
    crops batch and their shape does not depend on what was found; None gives the cut as it is.

    Args:
        images_NCHW: pictures [N, 3, H, W] in [0, 1].
        regions: R boxes over these pictures.
        size_hw: height and width of the crops in pixels, or None.

    Returns:
        R tensors [3, h, w], float32 in [0, 1], on the pictures' device, in the regions' order.
    """
    return [
        _cut(images_NCHW[owner], box, size_hw)
        for owner, box in zip(regions.owner_R.tolist(), regions.boxes_R4.tolist(), strict=True)
    ]


def crop_pictures(images_NCHW: Tensor, boxes_N4: Tensor, size: int) -> Tensor:
    """One crop of each picture, cut and resampled exactly as ``crop`` does: [N, 3, size, size] float32.

    Args:
        images_NCHW: pictures [N, 3, H, W] in [0, 1].
        boxes_N4: one normalised box for each of them.
        size: side of the crops in pixels.
    """
    pairs = zip(images_NCHW, boxes_N4.tolist(), strict=True)
    return torch.stack([_cut(image_CHW, box, (size, size)) for image_CHW, box in pairs])


def _cut(image_CHW: Tensor, box: Sequence[float], size_hw: tuple[int, int] | None) -> Tensor:
    """One box (x0, y0, x1, y1, normalised) of one picture."""
    height, width = image_CHW.shape[-2:]
    left, right = _pixel_range(box[0], box[2], width)
    top, bottom = _pixel_range(box[1], box[3], height)
    cut_CHW = image_CHW[:, top:bottom, left:right].float()
    if size_hw is None:
        return cut_CHW
    resampled_1CHW = F.interpolate(cut_CHW[None], size=size_hw, mode="bilinear", align_corners=False, antialias=True)
    return resampled_1CHW[0].clamp(0.0, 1.0)


def _pixel_range(low: float, high: float, side: int) -> tuple[int, int]:
    """Whole-pixel range [start, stop) nearest to the share [low, high] of a side, never empty."""
    start = min(max(math.floor(low * side + 0.5), 0), side - 1)
    stop = min(max(math.floor(high * side + 0.5), start + 1), side)
    return start, stop
