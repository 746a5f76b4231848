"""Proposals by Segment Anything: automatic masks of SAM (arXiv 2304.02643) and SAM 2 (arXiv 2408.00714).

The models are transformers' own. Its mask-generation pipeline needs torchvision, which nothing else here
does, so the few steps around the model stand in this file: a grid of points, one forward for each batch
of them, the quality and stability thresholds, and non-maximum suppression. Sizes are the model's own; the
thresholds' defaults are those of the released automatic mask generator, without crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.finite import refuse_module
from srum_ds.config import Config
from srum_ds.models.protocol import Judge
from srum_ds.rewards.regions.boxes import Candidates, candidates_of, non_maximum
from srum_ds.types import Prompt

KINDS = ("sam", "sam2", "sam2_video")
# Of ImageNet, as every release of SAM and SAM 2 is normalised.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class SegmentAnything:
    """Automatic masks of a whole image, in its own copy on every rank: nothing communicates.

    A mask is kept when the model's own estimate of its quality exceeds ``min_quality`` and its area
    changes little (``min_stability``) as the cut moves by 1 to either side of 0. Of two masks whose boxes
    overlap by more than ``overlap`` the one of lower quality goes.

    Args:
        model: a transformers ``SamModel`` or ``Sam2Model``.
        points_per_side: points along each side of the grid that the model is asked about.
        points_per_batch: points in one forward; bounds memory, and changes nothing else.
        min_quality, min_stability, overlap: in [0, 1].
    """

    asks = False
    finds_objects = True

    def __init__(
        self,
        model: Any,
        *,
        points_per_side: int = 32,
        points_per_batch: int = 64,
        min_quality: float = 0.88,
        min_stability: float = 0.95,
        overlap: float = 0.7,
    ) -> None:
        if model.config.model_type not in KINDS:
            raise UserError(
                f"regions.sam_model is a {model.config.model_type!r} checkpoint, expected one of SAM or SAM 2 "
                f"({', '.join(KINDS)} in its config.json)"
            )
        self.model = model.eval().requires_grad_(False)
        self.points_per_side = points_per_side
        self.points_per_batch = points_per_batch
        self.min_quality = min_quality
        self.min_stability = min_stability
        self.overlap = overlap

    def __call__(self, images_NCHW: Tensor, prompts: Sequence[Prompt], judge: Judge) -> list[Candidates]:
        """See ``Proposer``: boxes around the masks, ranked by the masks' areas; prompts and judge are not needed."""
        self.model.to(images_NCHW.device)
        return [self.masks_of(image_CHW) for image_CHW in images_NCHW]

    @torch.no_grad()
    def masks_of(self, image_CHW: Tensor) -> Candidates:
        """Boxes and areas of the masks of one image [3, H, W] in [0, 1], best quality first."""
        height, width = image_CHW.shape[-2:]
        pixels_1CSS, used_hw = self.prepare(image_CHW)
        embeddings = self.model.get_image_embeddings(pixels_1CSS.to(self.model.dtype))
        points_P2 = grid_points(self.points_per_side) * torch.tensor([used_hw[1], used_hw[0]])
        boxes, areas, qualities = [], [], []
        for points_B2 in points_P2.split(self.points_per_batch):
            said = self.model(
                image_embeddings=embeddings,
                input_points=points_B2[None, :, None].to(pixels_1CSS.device, self.model.dtype),
                input_labels=torch.ones(1, len(points_B2), 1, dtype=torch.int64, device=pixels_1CSS.device),
                multimask_output=True,
            )
            logits_MHW = self.enlarge(said.pred_masks.flatten(0, 2).float(), used_hw, (height, width))
            quality_M = said.iou_scores.flatten().float()
            kept_M = (quality_M > self.min_quality) & (stability(logits_MHW) > self.min_stability)
            masks_KHW = logits_MHW[kept_M] > 0
            boxes.append(mask_boxes(masks_KHW).cpu())
            areas.append(masks_KHW.sum(dim=(1, 2)).cpu())
            qualities.append(quality_M[kept_M].cpu())
        boxes_K4, area_K, quality_K = torch.cat(boxes), torch.cat(areas), torch.cat(qualities)
        best = torch.argsort(quality_K, descending=True, stable=True)
        best = best[area_K[best] > 0]
        best = best[non_maximum(boxes_K4[best].double(), self.overlap)]
        # Edges of the last pixel inside, as suppression is defined on: the box ends one further.
        boxes_K4 = boxes_K4[best].double() + torch.tensor([0.0, 0.0, 1.0, 1.0])
        boxes_K4 = boxes_K4 / torch.tensor([width, height, width, height])
        return candidates_of(boxes_K4.tolist(), (area_K[best].double() / (height * width)).tolist())

    def prepare(self, image_CHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The model's input [1, 3, S, S], and how much of it (rows, columns) the image fills.

        SAM keeps the image's proportions and pads below or to the right, after normalising; SAM 2 stretches it.
        """
        side = self.model.config.prompt_encoder_config.image_size
        height, width = image_CHW.shape[-2:]
        used_hw = (side, side)
        if self.model.config.model_type == "sam":
            scale = side / max(height, width)
            used_hw = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        resized_1CHW = F.interpolate(
            image_CHW[None].float(), size=used_hw, mode="bilinear", align_corners=False, antialias=True
        )
        mean_C11 = torch.tensor(MEAN, device=image_CHW.device)[:, None, None]
        std_C11 = torch.tensor(STD, device=image_CHW.device)[:, None, None]
        pixels_1CHW = (resized_1CHW.clamp(0.0, 1.0) - mean_C11) / std_C11
        return F.pad(pixels_1CHW, (0, side - used_hw[1], 0, side - used_hw[0])), used_hw

    def enlarge(self, logits_Mhw: Tensor, used_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
        """Mask logits at the image's size [M, H, W], its padding cut off."""
        logits_M1hw = logits_Mhw[:, None]
        if self.model.config.model_type == "sam":
            side = self.model.config.prompt_encoder_config.image_size
            logits_M1hw = F.interpolate(logits_M1hw, (side, side), mode="bilinear", align_corners=False)
            logits_M1hw = logits_M1hw[..., : used_hw[0], : used_hw[1]]
        return F.interpolate(logits_M1hw, size_hw, mode="bilinear", align_corners=False)[:, 0]


def grid_points(side: int) -> Tensor:
    """Centres (x, y) [side * side, 2] of the cells of a grid over the unit square, row by row, float32."""
    centres = (torch.arange(side) + 0.5) / side
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=1)


def stability(logits_MHW: Tensor, offset: float = 1.0) -> Tensor:
    """How little a mask's area depends on its cut: area above ``offset`` / area above -``offset``, [M].

    NaN, which passes no threshold, for a mask that is nowhere.
    """
    inner_M = (logits_MHW > offset).sum(dim=(1, 2))
    outer_M = (logits_MHW > -offset).sum(dim=(1, 2))
    return inner_M / outer_M


def mask_boxes(masks_MHW: Tensor) -> Tensor:
    """First and last column and row of each mask: x0, y0, x1, y1 in pixels, int64 [M, 4]; 0 for an empty mask."""
    edges = []
    for along in (masks_MHW.any(dim=1), masks_MHW.any(dim=2)):
        on = along.long()
        first = on.argmax(dim=1)
        last = on.shape[1] - 1 - on.flip(1).argmax(dim=1)
        edges.append((first, torch.where(on.any(dim=1), last, 0)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=1)


def load_segment_anything(path: str, points_per_side: int = 32) -> SegmentAnything:
    """Loads a SAM or SAM 2 checkpoint from a folder, or by its id from the local Hugging Face cache.

    Nothing is downloaded: many ranks would, each for itself, and compute nodes often cannot.

    Raises:
        UserError: no such weights here, or of another kind of model.
    """
    from transformers import AutoConfig, AutoModelForMaskGeneration

    try:
        kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        model = AutoModelForMaskGeneration.from_pretrained(path, local_files_only=True) if kind in KINDS else None
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"regions.kind=sam needs the weights of regions.sam_model={path}, which is neither a folder with a SAM "
            f"or SAM 2 checkpoint nor a model id in the local Hugging Face cache ({first_line}). Fetch them with "
            f"`hf download facebook/sam-vit-huge` (SAM ViT-H, as released) or `hf download "
            f"facebook/sam2.1-hiera-large`, or set regions.sam_model to their folder, or another regions.kind."
        ) from error
    if model is None:
        raise UserError(
            f"regions.sam_model={path} holds a {kind!r} model; expected SAM or SAM 2 ({', '.join(KINDS)}), such as "
            f"facebook/sam-vit-huge"
        )
    refuse_module(model, path)
    return SegmentAnything(model, points_per_side=points_per_side)


def sam_proposer(cfg: Config) -> SegmentAnything:
    """``regions.kind=sam``. UserError where the weights are not here."""
    return load_segment_anything(cfg.regions.sam_model, cfg.regions.sam_points)
