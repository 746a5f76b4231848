"""Region proposals and crops, on pictures whose objects are known."""

from __future__ import annotations

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.rewards.regions import crop, crop_pictures, pairwise_iou, select, suppress
from srum_ds.rewards.regions.components import Grid
from srum_ds.rewards.regions.pipeline import RegionPipeline
from srum_ds.types import Regions
from tests.support.judges import RIGHT, MuteJudge, proposed, samples_showing
from tests.support.paths import RECIPE

RED = torch.tensor([0.9, 0.1, 0.1])
BLUE = torch.tensor([0.1, 0.2, 0.9])


def blank(n: int = 1, ground: float = 0.0) -> torch.Tensor:
    return torch.full((n, 3, 64, 64), ground)


def put(images: torch.Tensor, n: int, x: int, y: int, w: int, h: int, colour: torch.Tensor = RED) -> None:
    images[n, :, y : y + h, x : x + w] = colour[:, None, None]


def test_each_object_gets_a_box_with_its_margin() -> None:
    images = blank(2)
    put(images, 0, 18, 34, 12, 12)
    put(images, 1, 2, 2, 12, 12)
    put(images, 1, 40, 20, 10, 12, BLUE)
    regions = proposed(images)
    assert regions.owner_R.tolist() == [0, 1, 1]
    # 12 px objects get boxes of 16 px: about 2 px on each side.
    pixels = regions.boxes_R4 * 64
    assert torch.allclose(pixels[0], torch.tensor([16.08, 32.08, 31.92, 47.92]), atol=1e-4)
    # the larger of two objects comes first, and boxes are clipped to the picture
    assert torch.allclose(pixels[1], torch.tensor([0.08, 0.08, 15.92, 15.92]), atol=1e-4)
    assert torch.allclose(pixels[2], torch.tensor([38.08, 18.08, 51.92, 33.92]), atol=1e-4)
    assert [tuple(c.shape) for c in crop(images, regions, None)] == [(3, 16, 16), (3, 16, 16), (3, 16, 14)]


def test_boxes_are_clipped_to_the_picture() -> None:
    images = blank()
    put(images, 0, 0, 52, 12, 12)
    box = proposed(images, pad=0.1).boxes_R4[0]
    assert box.tolist() == pytest.approx([0.0, 52 / 64 - 0.1, 12 / 64 + 0.1, 1.0])


def test_contrast_is_against_the_background_not_against_black() -> None:
    images = blank(ground=0.9)
    put(images, 0, 20, 20, 12, 12, torch.zeros(3))
    regions = proposed(images, pad=0.0)
    assert (regions.boxes_R4 * 64).tolist() == [[20.0, 20.0, 32.0, 32.0]]


def test_dim_stripes_stay_one_object() -> None:
    images = blank()
    put(images, 0, 20, 20, 12, 12)
    images[0, :, 22:32:4, 20:32] *= 0.35
    assert len(proposed(images)) == 1


def test_blank_noisy_and_broken_pictures_have_no_regions() -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = 0.05 * torch.rand(3, 64, 64, generator=generator)
    broken = torch.full((3, 64, 64), torch.nan)
    images = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64), noisy, broken])
    regions = proposed(images)
    assert len(regions) == 0
    assert regions.boxes_R4.shape == (0, 4)
    assert crop(images, regions) == []


def test_small_specks_are_dropped_and_the_largest_kept() -> None:
    images = blank()
    for k in range(5):
        put(images, 0, 2 + 12 * k, 10, 4 + k, 5)
    put(images, 0, 40, 40, 2, 2)
    assert len(proposed(images, min_area=0.0)) == 6
    assert len(proposed(images)) == 5
    regions = proposed(images, max_count=2, pad=0.0)
    assert (regions.boxes_R4 * 64).tolist() == [[50.0, 10.0, 58.0, 15.0], [38.0, 10.0, 45.0, 15.0]]


def test_order_of_equal_objects_is_top_to_bottom_then_left_to_right() -> None:
    images = blank()
    for x, y in ((40, 40), (4, 40), (24, 4)):
        put(images, 0, x, y, 8, 8)
    regions = proposed(images, pad=0.0)
    corners = [(int(b[0]), int(b[1])) for b in (regions.boxes_R4 * 64).tolist()]
    assert corners == [(24, 4), (4, 40), (40, 40)]


def test_grid_covers_every_picture_row_by_row() -> None:
    regions = select(Grid(2)(blank(2), (), MuteJudge()), max_count=10)
    assert regions.owner_R.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert regions.boxes_R4[:3].tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1]]


def test_none_proposes_nothing() -> None:
    images = blank()
    put(images, 0, 18, 34, 12, 12)
    samples = samples_showing((RIGHT,), (tuple(images),))
    for kind, count in (("none", 0), ("components", 1)):
        cfg = load_config(RECIPE, [f"regions.kind={kind}", "reward.local_weight=0"])
        assert len(RegionPipeline(cfg).regions(MuteJudge(), samples)) == count


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["regions.kind=componets"], "expected one of components, sam, ground, grid, none"),
        (["regions.max_count=0"], "regions.max_count"),
        (["regions.min_area=1.5"], "regions.min_area"),
        (["regions.pad=-0.1"], "regions.pad"),
        (["regions.threshold=0.0"], "regions.threshold"),
        (["regions.kind=grid", "regions.grid_side=4"], "regions.max_count=6: raise"),
    ],
)
def test_bad_settings_are_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(RECIPE, words)


def regions_of(owners: list[int], boxes: list[list[float]]) -> Regions:
    return Regions(owner_R=torch.tensor(owners), boxes_R4=torch.tensor(boxes))


def test_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.5, 0.5]])
    b = torch.tensor([[0.2, 0.0, 0.6, 0.4], [0.7, 0.7, 0.8, 0.8]])
    assert torch.allclose(pairwise_iou(a, b), torch.tensor([[1 / 3, 0.0], [0.0, 0.0]]))


def test_suppress_keeps_the_earlier_of_two_overlapping_boxes_of_one_picture() -> None:
    box = [0.0, 0.0, 0.4, 0.4]
    shifted = [0.2, 0.0, 0.6, 0.4]
    regions = regions_of([0, 0, 0, 1], [box, shifted, [0.5, 0.5, 1.0, 1.0], box])
    kept = suppress(regions, 0.3)
    assert kept.owner_R.tolist() == [0, 0, 1]
    assert torch.equal(kept.boxes_R4, regions.boxes_R4[[0, 2, 3]])
    assert len(suppress(regions, 0.34)) == 4
    with pytest.raises(UserError, match="intersection over union"):
        suppress(regions, 1.5)


def test_crops_show_what_is_in_the_box() -> None:
    images = blank()
    put(images, 0, 16, 32, 16, 8)
    put(images, 0, 16, 40, 16, 8, BLUE)
    regions = regions_of([0], [[0.25, 0.5, 0.5, 0.75]])
    native = crop(images, regions, None)[0]
    assert torch.equal(native, images[0, :, 32:48, 16:32])
    resized = crop(images, regions)[0]
    assert resized.shape == (3, 64, 64)
    # the upper half is red and the lower half blue, away from the seam
    assert torch.allclose(resized[:, :28], RED[:, None, None].expand(3, 28, 64), atol=1e-5)
    assert torch.allclose(resized[:, 36:], BLUE[:, None, None].expand(3, 28, 64), atol=1e-5)


def test_a_sliver_of_a_box_still_gives_a_pixel() -> None:
    images = blank()
    regions = regions_of([0, 0], [[0.999, 0.999, 1.0, 1.0], [0.5, 0.5, 0.501, 0.501]])
    assert [tuple(c.shape) for c in crop(images, regions, None)] == [(3, 1, 1), (3, 1, 1)]
    assert [tuple(c.shape) for c in crop(images, regions, (8, 8))] == [(3, 8, 8), (3, 8, 8)]


def test_one_crop_a_picture_is_cut_as_regions_are() -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.5], [-0.1, 0.9, 0.2, 1.1], [0.0, 0.0, 1.0, 1.0]])
    together = crop_pictures(images, boxes, 48)
    assert together.shape == (3, 3, 48, 48)
    clipped = regions_of([0, 1, 2], boxes.clamp(0, 1).tolist())
    for one, other in zip(together, crop(images, clipped, (48, 48)), strict=True):
        assert torch.equal(one, other)
