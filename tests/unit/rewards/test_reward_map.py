"""Reward maps: the released arithmetic to the last digit, ours by hand, and what diagnostics say."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.config.schema import RewardConfig
from srum_ds.rewards.painting import PLAIN_BRUSH, Brush, Combine, Resize, cell_coverage, paint, paper_map
from srum_ds.rewards.regions import no_regions
from srum_ds.rewards.token_weights import best_and_worst, brush_of, dense_weights, group_advantages, group_map
from srum_ds.types import Regions, Scores
from tests.support.batches import scores_of
from tests.support.paths import CONFORMANCE as SETS
from tests.support.paths import RECIPE
from tests.support.released import released_regions

CONFORMANCE = SETS / "bagel_a"


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    if not CONFORMANCE.is_dir():
        pytest.skip(f"the conformance set is not at {CONFORMANCE}")
    case = json.loads((CONFORMANCE / "cases.json").read_text())["cases"]["srum"]
    tensors = load_file(CONFORMANCE / "cases.safetensors")
    return {"case": case, **{k.removeprefix("srum/"): v for k, v in tensors.items() if k.startswith("srum/")}}


def test_paper_map_equals_the_release(released: dict[str, Any]) -> None:
    case = released["case"]
    owner, boxes, local = released_regions(case)
    assert len(owner) == 9
    global_score = torch.tensor([case["global_score_0"], case["global_score_1"]])
    pixels, tokens = paper_map(owner, boxes, local, global_score, tuple(case["image_hw"]), (2, 3))
    assert torch.allclose(pixels, released["reward_map"], rtol=0, atol=1e-6)
    assert torch.allclose(tokens.flatten(), released["token_rewards"], rtol=0, atol=1e-6)


def test_paper_map_without_boxes(released: dict[str, Any]) -> None:
    expected = released["case"]["map_value_without_boxes"]
    empty = torch.zeros(0)
    global_score = torch.tensor([expected["global_score"]])
    _, tokens = paper_map(empty.long(), empty.view(0, 4), empty, global_score, (32, 48), (2, 3))
    assert torch.allclose(tokens, torch.full((1, 2, 3), expected["value"]), rtol=0, atol=1e-6)


def test_paper_map_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
    owner = torch.tensor([0, 0, 0])
    local = torch.tensor([0.2, 0.8, -1.0])
    _, tokens = paper_map(owner, boxes, local, torch.tensor([0.0]), (32, 32), (2, 2))
    # the higher score wins, a negative one does nothing, and a global score of 0 halves
    assert torch.allclose(tokens[0], torch.tensor([[0.45, 0.25], [0.45, 0.25]]))


def test_paper_map_gives_no_weight_to_a_picture_without_a_global_score() -> None:
    empty = torch.zeros(0)
    score = torch.tensor([math.nan, 1.0])
    _, tokens = paper_map(empty.long(), empty.view(0, 4), empty, score, (32, 32), (2, 2))
    assert tokens[0].eq(0).all() and tokens[1].eq(0.5).all()


def test_coverage_is_exact_geometry() -> None:
    boxes = torch.tensor(
        [
            [0.125, 0.0, 0.625, 0.5],
            [-0.5, -0.5, 0.25, 2.0],
            [0.5, 0.5, 0.5, 0.9],
            [0.6, 0.6, 0.4, 0.9],
            [math.nan, 0.0, 1.0, 1.0],
            [2.0, 0.0, 3.0, 1.0],
        ]
    )
    coverage = cell_coverage(boxes, (2, 2))
    assert torch.allclose(coverage[0], torch.tensor([[0.75, 0.25], [0.0, 0.0]]))
    assert torch.allclose(coverage[1], torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    assert coverage[2:].eq(0).all()


def test_coverage_adds_up_to_the_area() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, 2, generator=generator).sort(dim=1).values
    boxes = corners.reshape(20, 4)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for grid in ((4, 4), (3, 7), (64, 64)):
        assert torch.allclose(cell_coverage(boxes, grid).mean(dim=(1, 2)), area, atol=1e-6)


def row(owner: list[int], spans: list[tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Owners and full-height boxes over the given horizontal spans."""
    return torch.tensor(owner), torch.tensor([[a, 0.0, b, 1.0] for a, b in spans])


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("strongest", [0.5, -0.8, -0.8, 0.0]),
        ("max", [0.5, 0.5, -0.8, 0.0]),
        ("mean", [0.5, -0.15, -0.8, 0.0]),
        ("smallest", [0.5, 0.5, -0.8, 0.0]),
    ],
)
def test_overlapping_boxes(combine: Combine, expected: list[float]) -> None:
    # the first box covers cells 0 and 1, the second, a little larger, reaches from 1 to 3
    owner, boxes = row([0, 0], [(0.0, 0.5), (0.25, 0.75)])
    boxes[1, 3] = 1.2
    values = torch.tensor([0.5, -0.8])
    assert paint(owner, boxes, values, 1, (1, 4), Brush(combine))[0, 0].tolist() == pytest.approx(expected)


def test_of_equals_the_earlier_region_is_on_top() -> None:
    owner, boxes = row([0, 0], [(0.0, 0.5), (0.0, 0.5)])
    values = torch.tensor([0.5, -0.5])
    combine: Combine
    for combine in ("strongest", "smallest"):
        assert paint(owner, boxes, values, 1, (1, 2), Brush(combine))[0, 0].tolist() == [0.5, 0.0]
        assert paint(owner, boxes, values.flip(0), 1, (1, 2), Brush(combine))[0, 0].tolist() == [-0.5, 0.0]


def test_a_partly_covered_token_gets_its_share() -> None:
    owner, boxes = row([1], [(0.125, 0.5)])
    values = torch.tensor([0.8])
    combine: Combine
    for combine in ("strongest", "max", "mean", "smallest"):
        maps = paint(owner, boxes, values, 2, (1, 4), Brush(combine, background=0.2))
        assert maps[0, 0].tolist() == pytest.approx([0.2] * 4)
        assert maps[1, 0].tolist() == pytest.approx([0.5, 0.8, 0.2, 0.2])


def test_a_finer_canvas_tells_apart_what_lies_side_by_side_in_a_token() -> None:
    owner, boxes = row([0, 0], [(0.0, 0.25), (0.25, 0.5)])
    values = torch.tensor([1.0, -0.5])
    fine = paint(owner, boxes, values, 1, (1, 2), Brush(canvas_hw=(8, 8)))
    assert fine[0, 0].tolist() == pytest.approx([0.25, 0.0])
    # the two middle columns of the token, one of each box
    read_off = paint(owner, boxes, values * 0.6, 1, (1, 2), Brush(canvas_hw=(8, 8), resize="bilinear"))
    assert read_off[0, 0].tolist() == pytest.approx([0.15, 0.0])


def test_area_and_bilinear_differ_away_from_a_tokens_centre() -> None:
    owner, boxes = row([0], [(0.0, 0.125)])
    cases: tuple[tuple[Resize, float], ...] = (("area", 0.25), ("bilinear", 0.0))
    for resize, expected in cases:
        maps = paint(owner, boxes, torch.ones(1), 1, (1, 2), Brush(canvas_hw=(8, 8), resize=resize))
        assert maps[0, 0].tolist() == pytest.approx([expected, 0.0])


def test_failed_regions_leave_no_trace() -> None:
    owner, boxes = row([0, 0], [(0.0, 0.5), (0.0, 1.0)])
    maps = paint(owner, boxes, torch.tensor([math.nan, -0.5]), 1, (1, 2))
    assert maps[0, 0].tolist() == [-0.5, -0.5]
    assert paint(owner[:1], boxes[:1], torch.tensor([math.nan]), 1, (1, 2)).eq(0).all()


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("reward.combine=median", "max, strongest, mean, smallest"),
        ("reward.resize=nearest", "area, bilinear"),
        ("reward.global_factor=both", "additive, multiplicative"),
    ],
)
def test_unknown_ways_of_painting(word: str, known: str) -> None:
    with pytest.raises(UserError, match=f"{word}.*expected one of {known}"):
        load_config(RECIPE, [word])


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([0.8, 0.2, 0.5, 0.5, math.nan, 0.9, -1.0])
    group = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    valid = torch.tensor([True, True, True, True, True, True, False])
    advantages = group_advantages(rewards, group, valid)
    # mean 0.5, spread 0.3: 0.3 / 0.4; no spread; failed; alone; not valid
    assert advantages.tolist() == pytest.approx([0.75, -0.75, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert group_advantages(rewards[:2], group[:2], eps=0.7).tolist() == pytest.approx([0.3, -0.3])


def test_failed_rewards_do_not_shift_the_group() -> None:
    group = torch.zeros(3, dtype=torch.int64)
    with_failure = group_advantages(torch.tensor([0.8, math.nan, 0.2]), group)
    without = group_advantages(torch.tensor([0.8, 0.2]), group[:2])
    assert with_failure[[0, 2]].tolist() == pytest.approx(without.tolist())


def weigh(
    scores: Scores,
    regions: Regions,
    grid: tuple[int, int] = (1, 2),
    brush: Brush = PLAIN_BRUSH,
    eps: float = 0.1,
    **reward: Any,
) -> torch.Tensor:
    """Weights of images of one prompt; by itself the local weight is 0.5 and nothing missing costs."""
    settings = RewardConfig(**({"local_weight": 0.5, "missing_penalty": 0.0} | reward))
    group = torch.zeros_like(scores.global_N, dtype=torch.int64)
    return dense_weights(scores, regions, group, grid, settings, brush, eps)


def test_dense_weights_by_hand() -> None:
    # two pictures of one prompt; the second has a region on its left half, the first on its right
    weights = weigh(scores_of([0.8, 0.2], [-0.5, 0.5]), Regions(*row([0, 1], [(0.5, 1.0), (0.0, 0.5)])))
    # A = +-0.75, local +-0.5 / (0.5 + 0.1) = +-0.8333
    expected = [[0.375, 0.375 - 0.25 * 0.8333], [-0.375 + 0.25 * 0.8333, -0.375]]
    assert weights[:, 0].tolist() == [pytest.approx(e, abs=1e-4) for e in expected]


def test_dense_weights_are_signed_and_bounded() -> None:
    regions = Regions(*row([0, 1, 1], [(0.0, 0.5), (0.0, 0.5), (0.5, 1.0)]))
    weights = weigh(scores_of([1.0] + 7 * [-1.0], [1.0, -1.0, -1.0]), regions, local_weight=2.0)
    assert weights.min() < 0 < weights.max()
    assert weights[0, 0, 0] == 1.0
    assert weights.abs().max() <= 1.0


def test_a_failed_global_score_takes_the_picture_out() -> None:
    regions = Regions(*row([0, 1], [(0.0, 0.5), (0.0, 0.5)]))
    scores = scores_of([math.nan, 0.4], [0.9, -0.9])
    weights = weigh(scores, regions)
    assert weights[0].eq(0).all()
    assert weights[1, 0, 0] < 0
    assert torch.isfinite(weights).all()
    # when only the local scores are used, nobody needs the global one
    assert weigh(scores, regions, global_weight=0.0)[0, 0, 0] > 0


def test_a_missing_object_costs_its_picture() -> None:
    scores = scores_of([0.5, 0.5], [], missing_N=torch.tensor([0.0, 0.5]))
    assert weigh(scores, no_regions(), (2, 2)).eq(0).all()
    weights = weigh(scores, no_regions(), (2, 2), missing_penalty=0.8)
    # rewards 0.5 and 0.1: mean 0.3, spread 0.2, so +-0.2 / 0.3 / 2
    assert weights[0].flatten().tolist() == pytest.approx([1 / 3] * 4)
    assert weights[1].flatten().tolist() == pytest.approx([-1 / 3] * 4)


def one_box(brush: Brush = PLAIN_BRUSH, **reward: Any) -> list[list[float]]:
    """Weights of two pictures of one prompt on a 1 x 2 grid: good with a good left half, and bad with a bad one."""
    regions = Regions(*row([0, 1], [(0.0, 0.5), (0.0, 0.5)]))
    return weigh(scores_of([0.5, -0.5], [0.25, -0.25]), regions, brush=brush, eps=0.0, **reward)[:, 0].tolist()


def test_background_value_by_hand() -> None:
    # Whole pictures are 1 and -1 spreads from their mean, boxes too; half of the sum, local weight 0.5.
    assert one_box() == [pytest.approx([0.75, 0.5]), pytest.approx([-0.75, -0.5])]
    assert one_box(Brush(background=-1.0)) == [pytest.approx([0.75, 0.25]), pytest.approx([-0.75, -0.75])]


def test_multiplicative_global_factor_by_hand() -> None:
    # The box's +-1 times 0.5, times (0.5 + 1) / 2 or (-0.5 + 1) / 2, halved.
    found = one_box(global_factor="multiplicative")
    assert found == [pytest.approx([0.1875, 0.0]), pytest.approx([-0.0625, 0.0])]


def test_resize_reaches_the_weights() -> None:
    # A box over the left 5/8 covers a quarter of the right token, but not the pixels around its centre.
    regions = Regions(*row([0, 1], [(0.0, 0.625), (0.0, 0.5)]))

    def local(brush: Brush) -> float:
        scores = scores_of([0.0, 0.0], [1.0, -1.0])
        return float(weigh(scores, regions, brush=brush, eps=0.0, global_weight=0.0, local_weight=1.0)[0, 0, 1])

    assert local(PLAIN_BRUSH) == pytest.approx(0.25 / 2)
    assert local(Brush(canvas_hw=(8, 8), resize="bilinear")) == pytest.approx(0.0)
    # A recipe paints on the token grid, or as released on the pixels.
    assert brush_of(RewardConfig(), (64, 48)) == PLAIN_BRUSH
    assert brush_of(RewardConfig(resize="bilinear"), (64, 48)) == Brush(canvas_hw=(64, 48), resize="bilinear")


def test_best_and_worst_by_hand() -> None:
    reward = torch.tensor([0.1, 0.9, -0.3, math.nan, 0.5, 0.5, 0.2, math.nan])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    sign, partner = best_and_worst(reward, group)
    # Group 1 has no spread, group 2 one known reward: no pair.
    assert sign.tolist() == [0, 1, -1, 0, 0, 0, 0, 0]
    assert partner.tolist() == [0, 2, 1, 3, 4, 5, 6, 7]


def test_group_map_compares_each_token_with_its_group() -> None:
    maps = torch.tensor([[[0.8, 0.1]], [[0.2, 0.1]], [[9.0, 9.0]], [[0.4, 0.3]]])
    group = torch.tensor([0, 0, 0, 1])
    dense = group_map(maps, group, valid_N=torch.tensor([True, True, False, True]))
    assert dense[:, 0, 0].tolist() == pytest.approx([0.375, -0.375, 0.0, 0.0])
    assert dense[:, 0, 1].tolist() == pytest.approx([0.0] * 4)
