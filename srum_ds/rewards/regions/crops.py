"""Cutting regions out of their images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.types import Regions


def crop(images_NCHW: Tensor, regions: Regions, size_hw: tuple[int, int] | None = (64, 64)) -> list[Tensor]:
    """Cuts every region out of its image.

    Box edges are rounded to whole pixels and clipped to the image (at least one pixel stays). With
    ``size_hw`` each cut is resampled to that one size (bilinear, antialiased where it shrinks), so that
    crops batch and their shape does not depend on what was found; None gives the cut as it is.

    Args:
        images_NCHW: images [N, 3, H, W] in [0, 1].
        regions: R boxes over these images.
        size_hw: height and width of the crops in pixels, or None.

    Returns:
        R tensors [3, h, w], float32 in [0, 1], on the images' device, in the regions' order.
    """
    cuts = [
        _cut(images_NCHW[owner], box)
        for owner, box in zip(regions.owner_R.tolist(), regions.boxes_R4.tolist(), strict=True)
    ]
    return cuts if size_hw is None else _resampled(cuts, size_hw)


def crop_pictures(images_NCHW: Tensor, boxes_N4: Tensor, size: int) -> Tensor:
    """One crop of each image, cut and resampled exactly as ``crop`` does: [N, 3, size, size] float32.

    Args:
        images_NCHW: images [N, 3, H, W] in [0, 1].
        boxes_N4: one normalised box for each of them.
        size: side of the crops in pixels.
    """
    pairs = zip(images_NCHW, boxes_N4.tolist(), strict=True)
    return torch.stack(_resampled([_cut(image_CHW, box) for image_CHW, box in pairs], (size, size)))


def _cut(image_CHW: Tensor, box: Sequence[float]) -> Tensor:
    """One box (x0, y0, x1, y1, normalised) of one image."""
    height, width = image_CHW.shape[-2:]
    left, right = pixel_range(box[0], box[2], width)
    top, bottom = pixel_range(box[1], box[3], height)
    return image_CHW[:, top:bottom, left:right].float()


def _resampled(cuts: Sequence[Tensor], size_hw: tuple[int, int]) -> list[Tensor]:
    """Cuts [3, h, w] of any sizes at one size, in order; those of equal size in one call."""
    alike: dict[torch.Size, list[int]] = {}
    for number, cut_CHW in enumerate(cuts):
        alike.setdefault(cut_CHW.shape, []).append(number)
    found: dict[int, Tensor] = {}
    for numbers in alike.values():
        cuts_NCHW = torch.stack([cuts[number] for number in numbers])
        resampled = F.interpolate(cuts_NCHW, size=size_hw, mode="bilinear", align_corners=False, antialias=True)
        found.update(zip(numbers, resampled.clamp(0.0, 1.0), strict=True))
    return [found[number] for number in range(len(cuts))]


def pixel_range(low: float, high: float, side: int) -> tuple[int, int]:
    """Whole-pixel range [start, stop) nearest to the share [low, high] of a side, never empty."""
    start = min(max(math.floor(low * side + 0.5), 0), side - 1)
    stop = min(max(math.floor(high * side + 0.5), start + 1), side)
    return start, stop
