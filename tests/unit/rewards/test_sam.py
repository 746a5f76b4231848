"""Segment Anything's automatic masks on tiny random models, against transformers' own steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, CLIPConfig, Sam2Config, Sam2Model, SamConfig, SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.rewards.regions.pipeline import RegionPipeline
from srum_ds.rewards.regions.sam import SegmentAnything, grid_points, load_segment_anything, mask_boxes, stability
from tests.support.judges import RIGHT, MuteJudge, samples_showing
from tests.support.paths import RECIPE

DECODER = {
    "hidden_size": 16,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
}


def liven(model: Any) -> Any:
    """Random weights under which masks depend on the points; as initialised, all are the same."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            continue
        parameter.data.normal_(std=0.3)
        if "token" in name or "point_embed" in name:
            parameter.data *= 0.1
        if "transformer" in name and ("q_proj" in name or "k_proj" in name):
            parameter.data *= 2
        if "vision" in name:
            parameter.data *= 0.3
        if "shared_" in name:
            parameter.data *= 4
        if "hypernetworks" in name:
            parameter.data *= 3
    return model.eval()


@pytest.fixture(scope="module")
def sam() -> Any:
    vision = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [0],
        "num_pos_feats": 8,
    }
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=DECODER)
    return liven(SamModel(config))


@pytest.fixture(scope="module")
def sam2() -> Any:
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "image_size": [64, 64],
        "hidden_size": 8,
        "num_attention_heads": 1,
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [2, 2],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 16,
    }
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=DECODER)
    return liven(Sam2Model(config))


def image(height: int, width: int) -> Tensor:
    """Whole 8-bit values, so that a processor that rounds to them changes nothing."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, height, width), generator=generator).float() / 255


@torch.no_grad()
def library_masks(model: Any, image_CHW: Tensor, side: int, min_quality: float, min_stability: float) -> Any:
    """Boxes, areas and qualities before suppression, by the steps of transformers' mask-generation pipeline."""
    processor = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16}
    )
    pixels = (image_CHW.permute(1, 2, 0) * 255).round().byte().numpy()
    crop_boxes, points, cropped, labels = processor.generate_crop_boxes(pixels, 64, points_per_crop=side)
    inputs = processor(images=cropped, return_tensors="pt")
    embeddings = model.get_image_embeddings(inputs["pixel_values"])
    said = model(image_embeddings=embeddings, input_points=points.float(), input_labels=labels)
    masks = processor.post_process_masks(
        said.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
    )
    rle, scores, boxes = processor.filter_masks(
        masks[0], said.iou_scores[0], image_CHW.shape[-2:], crop_boxes[0], min_quality, min_stability
    )
    areas = [sum(entry["counts"][1::2]) for entry in rle]
    return boxes, torch.tensor(areas), scores


@pytest.mark.parametrize("size", [(48, 64), (64, 40), (64, 64)])
def test_masks_are_those_of_the_librarys_pipeline(sam: Any, size: tuple[int, int]) -> None:
    picture = image(*size)
    boxes, areas, scores = library_masks(sam, picture, 6, 0.1, 0.3)
    order = torch.argsort(scores, descending=True, stable=True)
    expected = boxes[order] + torch.tensor([0, 0, 1, 1])
    assert 20 < len(boxes) < 108 and len(set(areas.tolist())) > 10
    found = SegmentAnything(sam, points_per_side=6, min_quality=0.1, min_stability=0.3, overlap=1.0)(
        picture[None], (), MuteJudge()
    )[0]
    pixels = found.boxes_R4 * torch.tensor([size[1], size[0], size[1], size[0]])
    assert len(pixels) == len(expected)
    assert torch.equal(pixels.round().long(), expected.long())
    assert torch.equal((found.area_R * size[0] * size[1]).round().long(), areas[order])


def test_a_picture_of_another_size_is_brought_to_the_models(sam: Any) -> None:
    """Resampled here in floats and there in 8 bits: nearly, not exactly, the same masks."""
    picture = image(96, 128)
    boxes, areas, scores = library_masks(sam, picture, 6, 0.1, 0.3)
    wide = SegmentAnything(sam, points_per_side=6, min_quality=0.1, min_stability=0.3, overlap=1.0).masks_of(picture)
    assert len(wide.area_R) == pytest.approx(len(areas), abs=5)
    assert float(wide.area_R.mean()) == pytest.approx(float(areas.double().mean()) / (96 * 128), abs=0.02)


def test_of_overlapping_masks_the_better_one_stays(sam: Any) -> None:
    picture = image(64, 64)
    every = SegmentAnything(sam, points_per_side=6, min_quality=0.1, min_stability=0.3, overlap=1.0).masks_of(picture)
    few = SegmentAnything(sam, points_per_side=6, min_quality=0.1, min_stability=0.3).masks_of(picture)
    assert 1 <= len(few.area_R) < len(every.area_R)
    assert torch.equal(few.boxes_R4[0], every.boxes_R4[0])


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_memory_bounds_change_nothing(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    settings: dict[str, Any] = {"points_per_side": 5, "min_quality": -1.0, "min_stability": 0.1, "overlap": 0.99}
    picture = image(48, 64)
    whole = SegmentAnything(model, points_per_batch=25, **settings).masks_of(picture)
    parts = SegmentAnything(model, points_per_batch=4, **settings).masks_of(picture)
    assert len(whole.area_R) >= 1
    assert torch.equal(whole.boxes_R4, parts.boxes_R4)
    assert torch.equal(whole.area_R, parts.area_R)


@torch.no_grad()
def test_sam2_masks_by_its_own_forward(sam2: Any) -> None:
    """From pixels in one call, stretched to a square, as SAM 2 is used; its processor needs torchvision."""
    picture = image(64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    points = grid_points(5) * 64
    said = sam2(
        pixel_values=(picture - mean[:, None, None])[None] / std[:, None, None],
        input_points=points[None, :, None],
        input_labels=torch.ones(1, 25, 1, dtype=torch.int64),
    )
    logits = torch.nn.functional.interpolate(said.pred_masks[0], (64, 64), mode="bilinear").flatten(0, 1)
    kept = stability(logits) > 0.1
    expected = sorted((logits[kept] > 0).sum(dim=(1, 2)).tolist())
    found = SegmentAnything(sam2, points_per_side=5, min_quality=-1.0, min_stability=0.1, overlap=1.0).masks_of(picture)
    assert len(expected) > 10
    assert sorted((found.area_R * 64 * 64).round().long().tolist()) == expected


def test_the_small_steps_by_hand() -> None:
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    masks[1, 3, 0] = masks[1, 0, 5] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 4, 2], [0, 0, 5, 3], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)
    logits = torch.tensor([[[2.0, 0.5, -0.5, -2.0]], [[-3.0, -3.0, -3.0, -3.0]]])
    assert stability(logits).tolist()[0] == pytest.approx(1 / 3)
    assert np.isnan(stability(logits).tolist()[1])
    assert grid_points(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_a_checkpoint_folder_from_the_recipe(sam: Any, tmp_path: Path) -> None:
    sam.save_pretrained(tmp_path)
    cfg = load_config(RECIPE, ["regions.kind=sam", f"regions.sam_model={tmp_path}", "regions.sam_points=4"])
    pipeline = RegionPipeline(cfg)
    assert pipeline.find is not None and isinstance(pipeline.find.proposer, SegmentAnything)
    # The released thresholds are for the released weights.
    pipeline.find.proposer.min_quality, pipeline.find.proposer.min_stability = 0.1, 0.3
    samples = samples_showing((RIGHT,), ((image(64, 64), image(64, 64).flip(2)),))
    regions = pipeline.regions(MuteJudge(), samples)
    assert set(regions.owner_R.tolist()) == {0, 1}
    assert bool((regions.boxes_R4[:, 2:] > regions.boxes_R4[:, :2]).all())
    assert (regions.asked, regions.failed) == (0, 0)


def test_missing_weights_and_other_models_are_said_at_the_start(tmp_path: Path) -> None:
    cfg = load_config(RECIPE, ["regions.kind=sam", "regions.sam_model=nobody/sam-vit-none"])
    with pytest.raises(UserError, match=r"regions.sam_model=nobody/sam-vit-none.*hf download facebook/sam-vit-huge"):
        RegionPipeline(cfg)
    (tmp_path / "clip").mkdir()
    CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="holds a 'clip' model"):
        load_segment_anything(str(tmp_path / "clip"))
    (tmp_path / "bare").mkdir()
    SamConfig().save_pretrained(tmp_path / "bare")
    assert AutoConfig.from_pretrained(tmp_path / "bare").model_type == "sam"
    with pytest.raises(UserError, match="regions.sam_model"):
        load_segment_anything(str(tmp_path / "bare"))
