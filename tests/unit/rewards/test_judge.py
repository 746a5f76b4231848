"""Judging samples, with a judge that reads the colours in the picture and so is always right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.judge import Asking, assign_phrases, judge_samples, phrase_counts
from srum_ds.rewards.judge.readouts import LogprobReadout
from srum_ds.rewards.regions import no_regions
from srum_ds.rewards.templates import load_template
from srum_ds.types import Prompt, Regions, Samples, Scores, Status
from tests.support.judges import ANSWERS, RIGHT, THREE, ColourJudge, picture, proposed, samples_showing
from tests.support.paths import RECIPE

GLOBAL = load_template("shapes_global")
LOCAL = load_template("shapes_local")
ASKING = Asking(GLOBAL, LOCAL, LogprobReadout(ANSWERS))


def example() -> tuple[Samples, Regions]:
    samples = samples_showing(
        (RIGHT, THREE),
        (
            (
                picture(("blue", 0, 0), ("red", 2, 1)),
                picture(("red", 0, 0), ("red", 2, 1)),
                picture(("red", 0, 0), ("blue", 2, 1), ("green", 3, 3)),
                picture(),
            ),
            (
                picture(("green", 0, 0), ("green", 1, 1), ("green", 2, 2)),
                picture(("green", 0, 0), ("green", 1, 1)),
                picture(*(("green", k, 0) for k in range(4))),
                picture(("green", 0, 0), ("green", 1, 1), ("red", 3, 3)),
            ),
        ),
    )
    return samples, proposed(samples.images_NCHW)


def judged(judge: Judge, samples: Samples, regions: Regions, asking: Asking = ASKING) -> Scores:
    return judge_samples(judge, samples, regions, asking)


def of_picture(scores: Scores, regions: Regions, owner: int) -> tuple[list[int], list[float]]:
    mine = regions.owner_R == owner
    return scores.phrase_R[mine].tolist(), scores.local_R[mine].tolist()


def test_regions_are_matched_to_the_phrases_they_show() -> None:
    samples, regions = example()
    scores = judged(ColourJudge(), samples, regions)
    assert scores.missing_N is not None

    phrases, local = of_picture(scores, regions, 0)
    assert phrases == [1, 0] and min(local) > 0.5
    assert scores.missing_N[0] == 0

    # two red objects: one phrase cannot bless both, so the other stands in for the missing square
    phrases, local = of_picture(scores, regions, 1)
    assert sorted(phrases) == [0, 1]
    assert local[phrases.index(0)] > 0.5 and local[phrases.index(1)] < -0.5
    assert scores.missing_N[1] == 0.5

    # a surplus object costs, although nobody asked about green
    phrases, local = of_picture(scores, regions, 2)
    assert phrases == [0, 1, -1]
    assert local[2] == -1.0 and min(local[:2]) > 0.5
    assert scores.missing_N[2] == 0

    # an empty picture has no regions, and lacks everything
    assert of_picture(scores, regions, 3) == ([], [])
    assert scores.missing_N[3] == 1
    assert (scores.local_status_R == Status.PARSED).all()


def test_a_phrase_claims_as_many_regions_as_it_asks_for() -> None:
    samples, regions = example()
    scores = judged(ColourJudge(), samples, regions)
    assert scores.missing_N is not None
    assert of_picture(scores, regions, 4)[0] == [0, 0, 0]
    assert of_picture(scores, regions, 5)[0] == [0, 0]
    assert sorted(of_picture(scores, regions, 6)[0]) == [-1, 0, 0, 0]
    phrases, local = of_picture(scores, regions, 7)
    assert phrases == [0, 0, 0] and local[2] < -0.5
    assert scores.missing_N[4:].tolist() == pytest.approx([0, 1 / 3, 0, 1 / 3])


def test_global_scores_ask_the_prompt_about_the_whole_picture() -> None:
    samples, regions = example()
    judge = ColourJudge()
    scores = judged(judge, samples, regions)
    assert judge.questions[0] == "does the picture show a red circle and a blue square?"
    assert "is this a green circle?" in judge.questions
    assert scores.global_N.shape == (8,)
    # red and blue fill the first picture, the third has green as well, the fourth is empty
    assert scores.global_N[0] > scores.global_N[2] > scores.global_N[3]
    assert (scores.global_status_N == Status.PARSED).all()


def test_surplus_penalty_is_the_surplus_regions_score() -> None:
    samples, regions = example()
    scores = judged(ColourJudge(), samples, regions, replace(ASKING, surplus_penalty=0.25))
    surplus = scores.phrase_R == -1
    assert int(surplus.sum()) == 2
    assert scores.local_R[surplus].tolist() == [-0.25, -0.25]


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_result_does_not_depend_on_the_batch(batch: int) -> None:
    samples, regions = example()
    assert len(regions) == 19
    whole = judged(ColourJudge(), samples, regions)
    judge = ColourJudge()
    parts = judged(judge, samples, regions, replace(ASKING, batch=batch))
    for name in ("global_N", "local_R", "phrase_R", "local_status_R", "missing_N"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name
    assert max(images for images, _ in judge.calls) <= batch
    assert len(judge.calls) == math.ceil(8 / batch) + math.ceil(19 / batch)


def test_the_questions_about_a_crop_share_its_picture() -> None:
    samples = samples_showing((RIGHT,), ((picture(("blue", 0, 0), ("red", 2, 1)),),))
    judge = ColourJudge()
    judged(judge, samples, proposed(samples.images_NCHW))
    assert judge.calls == [(1, 1), (2, 4)]


def test_failed_answers_are_masked_and_never_a_number() -> None:
    samples, regions = example()

    def spoil(question: str, image: Tensor) -> bool:
        return question in ("is this a blue square?", "does the picture show three green circles?")

    scores = judged(ColourJudge(spoil), samples, regions)
    assert scores.missing_N is not None
    assert scores.global_status_N.tolist() == [Status.PARSED] * 4 + [Status.FAILED] * 4
    assert scores.global_N.isnan().tolist() == [False] * 4 + [True] * 4
    failed = scores.local_status_R == Status.FAILED
    assert torch.equal(failed, scores.local_R.isnan())
    # the region left for the square is unknown, and so is a region nothing claims
    assert of_picture(scores, regions, 0)[0] == [1, 0]
    assert failed[regions.owner_R == 0].tolist() == [True, False]
    assert int(failed[regions.owner_R == 2].sum()) == 2
    # the square may well be there: it is missing only in the picture without any region
    assert scores.missing_N[:4].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_assignment_by_hand() -> None:
    scores = np.array([[0.9, 0.8], [0.7, -0.5], [-0.9, -0.9]])
    # 0.7 + 0.8 beats 0.9 - 0.5
    assert assign_phrases(scores, (1, 1)).phrase == (1, 0, -1)
    # 0.9 + 0.7 - 0.9 beats 0.8 + 0.7 - 0.9
    assert assign_phrases(scores, (2, 1)).phrase == (0, 0, 1)
    assert assign_phrases(scores, (2, 1)).missing == pytest.approx(1 / 3)
    assert assign_phrases(scores[:1], (1, 3)).missing == pytest.approx(3 / 4)
    assert assign_phrases(np.zeros((0, 2)), (1, 1)).missing == 1.0
    assert assign_phrases(np.zeros((2, 0)), ()).phrase == (-1, -1)


def test_counts_default_to_one_each_and_are_checked() -> None:
    assert phrase_counts(RIGHT) == (1, 1)
    assert phrase_counts(THREE) == (3,)
    for bad in ([1], [0, 1], [1, 2.0], "12", 3, [True, 1]):
        prompt = Prompt(id="odd", text=RIGHT.text, phrases=RIGHT.phrases, meta={"counts": bad})
        with pytest.raises(UserError, match="odd.*counts"):
            phrase_counts(prompt)


def test_bad_input_says_what_to_do() -> None:
    bare = Prompt(id="bare", text="something")
    unlabelled = samples_showing((bare,), ((picture(("red", 0, 0)),),))
    with pytest.raises(UserError, match="'bare' has no object phrases"):
        judged(ColourJudge(), unlabelled, proposed(unlabelled.images_NCHW))
    # without regions nobody needs phrases
    alone = judged(ColourJudge(), unlabelled, no_regions())
    assert alone.missing_N is not None and alone.missing_N.tolist() == [0.0]
    with pytest.raises(UserError, match="shapes_local never mentions"):
        Asking(LOCAL, LOCAL, ASKING.readout)
    with pytest.raises(UserError, match="shapes_global never mentions"):
        Asking(GLOBAL, GLOBAL, ASKING.readout)
    for word in ('judge.answers=["yes"]', "reward.surplus_penalty=2.0", "judge.batch=0"):
        with pytest.raises(UserError, match=word.partition("=")[0]):
            load_config(RECIPE, [word])


def test_a_judge_that_breaks_its_protocol_is_noticed() -> None:
    class Short(ColourJudge):
        def answer_logprobs(
            self,
            images: Sequence[Tensor],
            questions: Sequence[str],
            answers: Sequence[str],
            image_index: Sequence[int] | None = None,
        ) -> Tensor:
            return super().answer_logprobs(images, questions, answers, image_index)[:-1]

    samples, regions = example()
    with pytest.raises(ValueError, match="the judge returned"):
        judged(Short(), samples, regions)
