"""A micro-batch's ``TokenWeights`` by kind: which map, which images count, and who is compared with whom."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from srum_ds.config.schema import RewardConfig
from srum_ds.rewards.painting import paper_map
from srum_ds.rewards.token_weights import brush_of, dense_weights, group_map, raw_map, token_weights
from srum_ds.types import Judged, Regions
from tests.support.batches import samples_of, scores_of

GROUPS = [0, 0, 0, 1, 1]
REWARD = RewardConfig(global_weight=0.5, resize="bilinear", missing_penalty=0.25)
SIDE = 48


def judged() -> Judged:
    """Two prompts; the second image of the first failed, and the images of the second are all alike."""
    owner = torch.arange(5)
    boxes = torch.tensor(
        [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.1, 0.2, 0.7, 0.9]] + 2 * [[0.0, 0.0, 0.5, 0.5]]
    )
    missing = torch.tensor([0.0, 0.5, 1.0, 0.0, 0.0])
    scores = scores_of([0.8, math.nan, -0.4, 0.3, 0.3], [0.9, 0.2, -0.6, 0.1, 0.1], missing)
    return Judged(samples_of(torch.zeros(5, 4, 3), (2, 2), GROUPS, SIDE), Regions(owner, boxes), scores)


@pytest.mark.parametrize("kind", ["none", "positive", "signed", "group"])
def test_an_image_counts_unless_its_score_failed(kind: str) -> None:
    weights = token_weights(kind, judged(), REWARD)
    assert weights.counts_N.tolist() == [True, False, True, True, True]
    assert weights.partner_N is None
    if kind == "none":
        assert weights.map_Nhw is None
    else:
        assert weights.map_Nhw is not None and weights.map_Nhw.shape == (5, 2, 2)
        assert weights.map_Nhw[1].eq(0).all()
        assert torch.isfinite(weights.map_Nhw).all()


def test_every_kind_is_made_by_its_own_arithmetic() -> None:
    batch = judged()
    samples, regions, scores = batch.samples, batch.regions, batch.scores
    brush = brush_of(REWARD, (SIDE, SIDE))
    expected = {
        "signed": dense_weights(scores, regions, samples.group_N, (2, 2), REWARD, brush),
        "group": group_map(
            raw_map(scores, regions, (2, 2), REWARD, brush), samples.group_N, torch.isfinite(scores.global_N)
        ),
        # The released arithmetic, whatever the recipe says of ours.
        "positive": paper_map(regions.owner_R, regions.boxes_R4, scores.local_R, scores.global_N, (SIDE, SIDE), (2, 2))[
            1
        ],
    }
    for kind, map_Nhw in expected.items():
        found = token_weights(kind, batch, REWARD).map_Nhw
        assert found is not None and torch.equal(found, map_Nhw), kind
    other = token_weights("positive", batch, replace(REWARD, global_weight=3.0, combine="mean")).map_Nhw
    assert other is not None and torch.equal(other, expected["positive"])


def test_raw_map_by_hand() -> None:
    found = raw_map(judged().scores, judged().regions, (2, 2), RewardConfig(global_weight=0.5, missing_penalty=0.25))
    # Half of 0.8 everywhere, and the region's 0.9 on the left.
    assert found[0].tolist() == [pytest.approx([1.3, 0.4])] * 2
    assert found[1].isnan().all()
    # Half of -0.4 - 0.25 * 1 where no region reaches; nothing is centred or bounded.
    assert found[2].max() < -0.325 + 1e-6
    assert found[3].flatten().tolist() == pytest.approx([0.25, 0.15, 0.15, 0.15])


def test_a_pair_is_whole_images_and_only_what_is_compared_counts() -> None:
    weights = token_weights("pair", judged(), REWARD)
    assert weights.map_Nhw is not None and weights.partner_N is not None
    assert weights.map_Nhw.flatten(1).tolist() == [[1.0] * 4, [0.0] * 4, [-1.0] * 4, [0.0] * 4, [0.0] * 4]
    assert weights.counts_N.tolist() == [True, False, True, False, False]
    assert weights.partner_N.tolist() == [2, 1, 0, 3, 4]


def test_a_failed_image_is_in_no_pair_however_good_its_regions_are() -> None:
    batch = judged()
    regions = Regions(batch.regions.owner_R, torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 5))
    best = scores_of([0.8, math.nan, -0.4, 0.3, 0.3], [0.2, 0.9, -0.6, 0.1, 0.1])
    local_only = RewardConfig(global_weight=0.0)
    signed = token_weights("signed", replace(batch, regions=regions, scores=best), local_only).map_Nhw
    assert signed is not None and int(signed[:3].mean(dim=(1, 2)).argmax()) == 1
    weights = token_weights("pair", replace(batch, regions=regions, scores=best), local_only)
    assert weights.counts_N.tolist() == [True, False, True, False, False]
    assert weights.partner_N is not None and weights.partner_N.tolist() == [2, 1, 0, 3, 4]


def test_a_kind_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="'squared' are not known"):
        token_weights("squared", judged(), REWARD)
