"""Pictures that are not finite: nobody judges them as numbers, nothing is learnt from them, and too many end a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring.judge_failures import refuse_broken_judge
from srum_ds.monitoring.metrics import measure
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.token_weights import token_weights
from srum_ds.rollouts.draw import roll_out
from srum_ds.types import Judged, Prompt, Samples, Status
from tests.support.batches import samples_of, scores_of
from tests.support.judges import one_scene_twice
from tests.support.paths import MODEL, RECIPE

THIS = "tests.unit.loop.test_not_finite"
CURE = "look at the question"


def sees_numbers(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> list[float]:
    """A judge outside that would give a picture of NaN a score, if it met one."""
    assert images_NCHW.isfinite().all()
    return [0.5] * len(prompts)


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return load_model(MODEL)


class OneRank:
    """What ``measure`` asks of an engine, for a single rank."""

    device = torch.device("cpu")

    def all_reduce(self, tensor: Tensor, op: str = "sum") -> Tensor:
        return tensor


class Spoilt:
    """Draws four pictures: the second has a token, the third a pixel that is not finite."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return 2, 2

    def generate(self, prompts: Sequence[Prompt], *others: Any) -> tuple[Tensor, Tensor]:
        tokens, images_NCHW = torch.zeros(len(prompts), 4, 3), torch.zeros(len(prompts), 3, 8, 8)
        tokens[1, 2, 0] = torch.inf
        images_NCHW[2, 0, 5, 5] = torch.nan
        return tokens, images_NCHW


def test_half_a_picture_is_none() -> None:
    samples = roll_out(Spoilt(), [Prompt("a", "a"), Prompt("b", "b")], 2, (8, 8), None, 0, 0)  # type: ignore[arg-type]
    assert samples.finite_N.tolist() == [True, False, False, True]
    assert samples.images_NCHW.isnan().flatten(1).all(dim=1).tolist() == [False, True, True, False]
    shown = samples.finite()
    assert shown.finite_N.all() and shown.finite() is shown
    assert torch.equal(shown.tokens[[0, 3]], samples.tokens[[0, 3]])


@pytest.mark.parametrize("more", [[], [f"judge.external={THIS}:sees_numbers", "judge.external_weight=0.5"]])
def test_it_is_failed_and_counted_and_the_others_are_judged_as_ever(model: UnifiedModel, more: list[str]) -> None:
    judging = JudgePipeline(load_config(RECIPE, more))
    samples, regions = one_scene_twice()
    whole = judging.scores(model, samples, regions)
    images_NCHW = samples.images_NCHW.clone()
    images_NCHW[1] = torch.nan
    spoilt = replace(samples, images_NCHW=images_NCHW)
    scores = judging.scores(model, spoilt, regions)
    assert scores.global_status_N.tolist()[1] == Status.FAILED and scores.global_N.isnan().tolist() == [False, True]
    torch.testing.assert_close(scores.global_N[0], whole.global_N[0])
    own_R = regions.owner_R == 1
    assert scores.local_R[own_R].isnan().all() and (scores.local_status_R[own_R] == Status.FAILED).all()
    assert any("not finite" in failure.reply for failure in scores.failures if failure.picture == 1)
    for said_N in scores.by_judge.values():
        assert said_N.isnan().tolist() == [False, True]
    judged = Judged(spoilt, regions, scores)
    assert token_weights("signed", judged, load_config(RECIPE).reward).counts_N.tolist() == [True, False]
    record = measured(model, judged)
    assert (record["pictures"], record["pictures_not_finite"], record["masked"]) == (2, 1, 1)
    assert record["parse_failures"] > 0


def measured(model: UnifiedModel, judged: Judged, count: float = 4.0) -> dict[str, Any]:
    engine: Any = OneRank()
    return measure(engine, model.token_spec, [judged], torch.zeros(()), count, Clock(), False)[0] | {"step": 3}


def of_four(model: UnifiedModel, lost: int, failed: int) -> tuple[dict[str, Any], list[Judged]]:
    """Figures of four pictures, some with tokens that are not finite and some, the last, without a score."""
    regions = one_scene_twice()[1]
    none = replace(regions, owner_R=regions.owner_R[:0], boxes_R4=regions.boxes_R4[:0])
    samples: Samples = samples_of(torch.randn(4, 16, model.token_spec.size), (4, 4), [0, 0, 1, 1])
    samples.tokens[:lost] = torch.nan
    scores = scores_of([float("nan") if 4 - n <= failed else 0.1 for n in range(4)], [])
    # A judge was asked much else, which it answered: its failures are few.
    judged = Judged(samples, none, replace(scores, status_Q=torch.zeros(99, dtype=torch.int64)))
    return measured(model, judged, 0.0 if failed == 4 else 4.0), [judged]


def test_figures_are_those_of_finite_pictures(model: UnifiedModel) -> None:
    record, _ = of_four(model, lost=1, failed=0)
    assert record["pictures_not_finite"] == 1 and 0.5 < record["latent_std"] < 1.5 and record["group_diversity"] > 0
    record, _ = of_four(model, lost=4, failed=4)
    assert record["latent_std"] != record["latent_std"] and record["latent_mean"] != record["latent_mean"]
    assert record["tokens"] == 0


def test_too_many_of_them_end_the_run(model: UnifiedModel) -> None:
    record, batches = of_four(model, lost=2, failed=2)
    refuse_broken_judge(0.5, CURE, record, batches)
    record, batches = of_four(model, lost=3, failed=3)
    with pytest.raises(UserError, match="step 3: 3 of 4 pictures are not finite.*judge.max_failed_share=50%"):
        refuse_broken_judge(0.5, CURE, record, batches)


def test_too_many_pictures_without_a_score_end_the_run_however_few_answers_failed(model: UnifiedModel) -> None:
    record, batches = of_four(model, lost=0, failed=2)
    refuse_broken_judge(0.5, CURE, record, batches)
    record, batches = of_four(model, lost=0, failed=3)
    assert record["parse_failed_share"] == 0
    with pytest.raises(UserError, match="step 3: 3 of 4 pictures have no score.*judge.max_failed_share=50%"):
        refuse_broken_judge(0.5, CURE, record, batches)
    refuse_broken_judge(1.0, CURE, record, batches)
