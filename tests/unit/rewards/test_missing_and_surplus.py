"""The worked example of docs/rewards.md, from the judge's answers to the weights of the tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srum_ds.config.schema import RewardConfig
from srum_ds.rewards.judge.judge import Asking, judge_samples
from srum_ds.rewards.judge.readouts import LogprobReadout
from srum_ds.rewards.painting import Brush
from srum_ds.rewards.templates import load_template
from srum_ds.rewards.token_weights import dense_weights
from srum_ds.types import Regions, Samples, Scores
from tests.support.judges import RIGHT, ScoringJudge, samples_showing
from tests.support.paths import ROOT

CELLS = [(0, 0, 0), (0, 2, 2), (1, 0, 0), (1, 1, 1), (1, 3, 3)]
"""(picture, column, row) of the regions: A's two objects, B's red, green and red circle."""
LOCAL = {0: (0.9, -0.9), 1: (-0.9, 0.8), 2: (0.9, -0.9), 3: (-0.8, -0.7), 4: (0.85, -0.9)}
GLOBAL = (0.8, -0.6)


def said(question: str, image: Tensor) -> tuple[float, float]:
    """The example's scores as probabilities of yes and no: images and crops are told apart by their brightness."""
    if question.startswith("does the picture"):
        score = GLOBAL[round(float(image[0, 0, -1]) * 10) - 6]
    else:
        score = LOCAL[round(float(image.mean()) * 10)]["blue square" in question]
    return (1 + score) / 2, (1 - score) / 2


def example() -> tuple[Samples, Regions, Scores]:
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, 0, -1], images[1, :, 0, -1] = 0.6, 0.7
    for number, (owner, x, y) in enumerate(CELLS):
        images[owner, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = number / 10
    samples = samples_showing((RIGHT,), (tuple(images),))
    boxes = torch.tensor([[x / 4, y / 4, (x + 1) / 4, (y + 1) / 4] for _, x, y in CELLS])
    regions = Regions(owner_R=torch.tensor([owner for owner, _, _ in CELLS]), boxes_R4=boxes)
    readout = LogprobReadout()
    penalty = RewardConfig().surplus_penalty
    asking = Asking(load_template("shapes_global"), load_template("shapes_local"), readout, surplus_penalty=penalty)
    return samples, regions, judge_samples(ScoringJudge(said), samples, regions, asking)


def weights(missing_penalty: float) -> Tensor:
    samples, regions, scores = example()
    reward = RewardConfig(missing_penalty=missing_penalty)
    return dense_weights(scores, regions, samples.group_N, samples.grid, reward, Brush(reward.combine))


def test_who_is_missing_and_who_is_one_too_many() -> None:
    _, _, scores = example()
    assert scores.global_N.tolist() == pytest.approx([0.8, -0.6])
    assert scores.phrase_R.tolist() == [0, 1, 0, 1, -1]
    assert scores.local_R.tolist() == pytest.approx([0.9, 0.8, 0.9, -0.7, -1.0])
    assert scores.missing_N is not None and scores.missing_N.tolist() == [0.0, 0.5]


def test_what_they_cost_in_the_default_recipe() -> None:
    map_A, map_B = weights(RewardConfig().missing_penalty)
    found = [map_A[0, 3], map_A[0, 0], map_A[2, 2], map_B[0, 3], map_B[0, 0], map_B[1, 1], map_B[3, 3]]
    expected = [0.446, 0.826, 0.773, -0.446, -0.066, -0.910, -1.0]
    assert [float(w) for w in found] == pytest.approx(expected, abs=6e-4)


def test_the_missing_penalty_lies_on_the_whole_picture() -> None:
    with_A, with_B = weights(0.5)
    without_A, without_B = weights(0.0)
    assert (float(without_A[0, 3]), float(without_B[0, 3])) == pytest.approx((0.438, -0.438), abs=6e-4)
    assert torch.allclose(with_A - without_A, torch.tensor(0.0084).expand(4, 4), atol=1e-4)
    # All of B's tokens alike, but for those at the limit of -1.
    inside = with_B > -1
    assert int(inside.sum()) == 15
    assert torch.allclose((with_B - without_B)[inside], torch.tensor(-0.0084).expand(15), atol=1e-4)


def test_the_page_shows_these_numbers() -> None:
    page = (ROOT / "docs/rewards.md").read_text()
    for number in ("0.826", "0.773", "-0.066", "-0.910", "-1.000", "0.446", "0.438"):
        assert number in page
