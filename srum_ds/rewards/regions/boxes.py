"""Boxes: what a proposer gives, overlap, and the selection that every proposal goes through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.models.protocol import Judge
from srum_ds.types import Prompt, Regions


@dataclass(frozen=True)
class Candidates:
    """What a proposer found in one image, before the selection.

    boxes_R4: float64 x0, y0, x1, y1 as shares of the image's sides; anything else (outside the
    image, empty, not finite) is clipped or dropped by ``select``. area_R: float64, share of the
    image that the object itself covers, by which proposals are ranked. ``failed``: the judge was asked
    for the boxes and its reply could not be used.
    """

    boxes_R4: Tensor
    area_R: Tensor
    failed: bool = False


class Proposer(Protocol):
    """Finds boxes, one call per micro-batch, or, where it asks the judge, per step.

    Registered by a factory from the configuration (config/choices.py).
    """

    asks: bool
    """Whether it asks the judge, once per image."""
    finds_objects: bool
    """Whether its boxes are objects, so that one that no phrase claims is one too many."""

    def __call__(self, images_NCHW: Tensor, prompts: Sequence[Prompt], judge: Judge) -> list[Candidates]:
        """Candidates of each of the N images [N, 3, H, W] in [0, 1], ``prompts[n]`` being image n's."""
        ...


def candidates_of(boxes: Sequence[Sequence[float]], areas: Sequence[float], failed: bool = False) -> Candidates:
    """``Candidates`` from plain numbers; either list may be empty."""
    return Candidates(
        boxes_R4=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        area_R=torch.tensor(areas, dtype=torch.float64),
        failed=failed,
    )


class NoProposer:
    """Proposes nothing: the global reward alone."""

    asks = False
    finds_objects = False

    def __call__(self, images_NCHW: Tensor, prompts: Sequence[Prompt], judge: Judge) -> list[Candidates]:
        """See ``Proposer``."""
        return [candidates_of([], [])] * len(images_NCHW)


def no_proposer(cfg: Config) -> NoProposer:
    """``regions.kind=none``."""
    del cfg
    return NoProposer()


def no_regions() -> Regions:
    """An empty set of regions."""
    return Regions(
        owner_R=torch.zeros(0, dtype=torch.int64),
        boxes_R4=torch.zeros(0, 4, dtype=torch.float32),
    )


def pairwise_iou(boxes_A4: Tensor, boxes_B4: Tensor) -> Tensor:
    """Intersection over union [A, B] of boxes given as x0, y0, x1, y1; 0 where the union is empty."""
    low_AB2 = torch.maximum(boxes_A4[:, None, :2], boxes_B4[None, :, :2])
    high_AB2 = torch.minimum(boxes_A4[:, None, 2:], boxes_B4[None, :, 2:])
    shared_AB = (high_AB2 - low_AB2).clamp(min=0).prod(dim=-1)
    area_A = (boxes_A4[:, 2:] - boxes_A4[:, :2]).clamp(min=0).prod(dim=-1)
    area_B = (boxes_B4[:, 2:] - boxes_B4[:, :2]).clamp(min=0).prod(dim=-1)
    union_AB = area_A[:, None] + area_B[None, :] - shared_AB
    return torch.where(union_AB > 0, shared_AB / union_AB.clamp(min=1e-12), torch.zeros_like(union_AB))


def non_maximum(boxes_R4: Tensor, iou: float) -> Tensor:
    """Greedy non-maximum suppression of boxes that come best first: the kept indices, int64, ascending.

    A box goes when it overlaps an earlier kept one by more than ``iou``.
    """
    overlap_RR = pairwise_iou(boxes_R4, boxes_R4).cpu()
    alive_R = torch.ones(len(boxes_R4), dtype=torch.bool)
    for position in range(len(boxes_R4)):
        if alive_R[position]:
            alive_R[position + 1 :] &= overlap_RR[position, position + 1 :] <= iou
    return torch.nonzero(alive_R).flatten()


def suppress(regions: Regions, iou: float) -> Regions:
    """Drops each region that overlaps an earlier kept region of its image by more than ``iou``.

    Proposals come largest first, so the larger of two overlapping boxes stays. ``iou`` in [0, 1];
    1 keeps everything.

    Raises:
        UserError: ``iou`` out of range.
    """
    _check_overlap(iou)
    kept = [torch.zeros(0, dtype=torch.int64)]
    for owner in torch.unique(regions.owner_R).tolist():
        members = torch.nonzero(regions.owner_R == owner).flatten()
        kept.append(members[non_maximum(regions.boxes_R4[members], iou)])
    return take(regions, torch.cat(kept))


def take(regions: Regions, index_K: Tensor) -> Regions:
    """Some of the regions, in their order; ``asked`` and ``failed`` stay as they are."""
    index_K = index_K.sort().values
    return Regions(
        owner_R=regions.owner_R[index_K],
        boxes_R4=regions.boxes_R4[index_K],
        asked=regions.asked,
        failed=regions.failed,
    )


def first_of_each(regions: Regions, count: int) -> Regions:
    """The first ``count`` regions of every image."""
    kept = [torch.zeros(0, dtype=torch.int64)]
    for owner in torch.unique(regions.owner_R).tolist():
        kept.append(torch.nonzero(regions.owner_R == owner).flatten()[:count])
    return take(regions, torch.cat(kept))


def select(
    found: Sequence[Candidates],
    *,
    max_count: int,
    min_area: float = 0.0,
    overlap: float = 1.0,
    pad: float = 0.0,
) -> Regions:
    """From what a proposer found to the regions of N images.

    In this order: boxes are clipped to the image; those that are empty then, or have an edge that is
    not finite, are dropped (swapped corners are empty: a proposer that wants them mends them); objects
    below ``min_area`` are dropped; the rest is ranked by area, largest first, ties in the proposer's
    order; of two boxes that overlap by more than ``overlap`` (intersection over union) the later is
    dropped; the first ``max_count`` stay, are widened by ``pad`` on each side and clipped again.

    Args:
        found: one entry per image.
        max_count: most regions of an image, >= 1.
        min_area: share of the image in [0, 1].
        overlap: in [0, 1]; 1 keeps everything.
        pad: share of the image's side, >= 0.

    Returns:
        Regions on the CPU, owners ascending; ``asked`` counts nothing yet, ``failed`` the failed images.

    Raises:
        UserError: a setting out of range.
    """
    if max_count < 1:
        raise UserError(f"regions: max_count is {max_count}, expected at least 1 (use kind 'none' for none)")
    if not 0.0 <= min_area <= 1.0:
        raise UserError(f"regions: min_area is {min_area}, expected a share of the picture in [0, 1]")
    if not 0.0 <= pad < math.inf:
        raise UserError(f"regions: pad is {pad}, expected a share of the picture's side, 0 or more")
    _check_overlap(overlap)
    margin_4 = torch.tensor([-pad, -pad, pad, pad], dtype=torch.float64)
    owners = [torch.zeros(0, dtype=torch.int64)]
    boxes = [torch.zeros(0, 4)]
    for owner, of_one in enumerate(found):
        boxes_R4 = _select_one(of_one, max_count, min_area, overlap)
        owners.append(torch.full((len(boxes_R4),), owner, dtype=torch.int64))
        boxes.append((boxes_R4 + margin_4).clamp(0.0, 1.0).float())
    failed = sum(of_one.failed for of_one in found)
    return Regions(owner_R=torch.cat(owners), boxes_R4=torch.cat(boxes), failed=failed)


def _select_one(of_one: Candidates, max_count: int, min_area: float, overlap: float) -> Tensor:
    """The selected boxes [K, 4] of one image, not widened yet."""
    finite_R = torch.isfinite(of_one.boxes_R4).all(dim=1) & torch.isfinite(of_one.area_R)
    boxes_R4 = of_one.boxes_R4[finite_R].clamp(0.0, 1.0)
    area_R = of_one.area_R[finite_R]
    solid_R = (boxes_R4[:, 2:] > boxes_R4[:, :2]).all(dim=1) & (area_R >= min_area)
    boxes_R4, area_R = boxes_R4[solid_R], area_R[solid_R]
    boxes_R4 = boxes_R4[torch.argsort(area_R, descending=True, stable=True)]
    if overlap < 1.0:
        boxes_R4 = boxes_R4[non_maximum(boxes_R4, overlap)]
    return boxes_R4[:max_count]


def _check_overlap(iou: float) -> None:
    if not 0.0 <= iou <= 1.0:
        raise UserError(f"regions: overlap limit is {iou}, expected an intersection over union in [0, 1]")
