"""A second judge beside the model's own: a function, or another checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.rewards.judge.external import mix_levels
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.types import Prompt, Scores, Status
from tests.support.judges import one_scene_twice
from tests.support.paths import MODEL, RECIPE

THIS = "tests.unit.rewards.test_external_judge"


def length(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> list[float]:
    """Likes the first picture, loves the second."""
    assert images_NCHW.shape == (2, 3, 64, 64) and [p.id for p in prompts] == ["right", "wrong"]
    return [0.5, 7.0]


def helpless(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return torch.tensor([math.nan, 0.0])


def short(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return torch.zeros(1)


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return load_model(MODEL)


def judged(model: UnifiedModel, *words: str) -> Scores:
    return JudgePipeline(load_config(RECIPE, words)).scores(model, *one_scene_twice())


def test_scores_mix_by_weight_and_fail_together() -> None:
    own, other = torch.tensor([0.5, 0.5, math.nan]), torch.tensor([-0.5, math.nan, 0.2])
    status = torch.tensor([0, 0, 2]), torch.tensor([1, 2, 0])
    score, worse = mix_levels(own, status[0], other, status[1], 0.25)
    assert score[0] == 0.25 and score[1:].isnan().all()
    assert worse.tolist() == [Status.CLAMPED, Status.FAILED, Status.FAILED]
    # not even at no weight is a failure a number
    assert mix_levels(own, status[0], other, status[1], 0.0)[0].isnan().tolist() == [False, True, True]


def test_a_function_speaks_of_whole_pictures(model: UnifiedModel) -> None:
    own = judged(model)
    both = judged(model, f"judge.external={THIS}:length", "judge.external_weight=0.25")
    expected = 0.75 * own.global_N + 0.25 * torch.tensor([0.5, 1.0])
    torch.testing.assert_close(both.global_N, expected)
    assert both.global_status_N.tolist() == [Status.PARSED, Status.CLAMPED]
    assert torch.equal(both.local_R, own.local_R)
    assert own.status_Q is not None and both.status_Q is not None
    assert len(both.status_Q) == len(own.status_Q) + 2
    assert both.raw[0] == own.raw[0] + " | 0.5"


def test_a_function_that_gives_no_number_masks_its_picture(model: UnifiedModel) -> None:
    both = judged(model, f"judge.external={THIS}:helpless")
    assert both.global_N.isnan().tolist() == [True, False]
    assert [(f.picture, f.region, f.template) for f in both.failures] == [(0, -1, f"{THIS}:helpless")]
    with pytest.raises(UserError, match="gave \\(1,\\) for 2 pictures"):
        judged(model, f"judge.external={THIS}:short")


def test_a_checkpoint_is_asked_the_same(model: UnifiedModel) -> None:
    own = judged(model)
    both = judged(model, f"judge.external={MODEL}")
    torch.testing.assert_close(both.global_N, own.global_N)
    torch.testing.assert_close(both.local_R, own.local_R)
    assert own.status_Q is not None and both.status_Q is not None
    assert len(both.status_Q) == 2 * len(own.status_Q)


def test_what_is_no_judge_is_refused_before_anything_runs() -> None:
    for name, message in (
        ("/nowhere", "no checkpoint folder"),
        ("no_such_module:function", "cannot be imported"),
        (f"{THIS}:nothing", "has no 'nothing'"),
        (f"{THIS}:THIS", "expected a function"),
    ):
        with pytest.raises(UserError, match=message):
            JudgePipeline(load_config(RECIPE, [f"judge.external={name}"]))
