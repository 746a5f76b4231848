"""A second judge beside the model's own: a function, or another checkpoint."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.judges.pictures import decode_png
from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring.judge_failures import refuse_broken_judge
from srum_ds.rewards.judge.external import mix_levels
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.templates import load_template
from srum_ds.types import Prompt, Scores, Status
from tests.support.judge_server import JudgeServer, Seen, Trouble
from tests.support.judges import RIGHT, WRONG, ColourJudge, MuteJudge, one_scene_twice
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


def pixels(data: bytes) -> Tensor:
    return torch.tensor(np.array(decode_png(data)), dtype=torch.float32).permute(2, 0, 1)


def judged(model: UnifiedModel, *words: str) -> Scores:
    return JudgePipeline(load_config(RECIPE, words)).scores(model, *one_scene_twice())


def test_scores_mix_by_weight_and_fail_together() -> None:
    own, other = torch.tensor([0.5, 0.5, math.nan]), torch.tensor([-0.5, math.nan, 0.2])
    status = torch.tensor([0, 0, 2]), torch.tensor([1, 2, 0])
    score, worse = mix_levels([own, other], status, [0.25])
    assert score[0] == 0.25 and score[1:].isnan().all()
    assert worse.tolist() == [Status.CLAMPED, Status.FAILED, Status.FAILED]
    # not even at no weight is a failure a number
    assert mix_levels([own, other], status, [0.0])[0].isnan().tolist() == [False, True, True]
    # 0.5 of its own, 0.2 and 0.3 of the others
    third = torch.tensor([1.0, 0.0, 0.0])
    score, worse = mix_levels([own, other, third], [*status, torch.tensor([0, 1, 0])], [0.2, 0.3])
    assert float(score[0]) == pytest.approx(0.5 * 0.5 - 0.2 * 0.5 + 0.3) and score[1:].isnan().all()
    # weights that sum to 1 leave nothing of its own
    assert float(mix_levels([own, other, third], [*status, status[0]], [0.5, 0.5])[0][0]) == 0.25


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
    assert own.by_judge == {} and list(both.by_judge) == ["own", "length"]
    assert torch.equal(both.by_judge["own"], own.global_N) and both.by_judge["length"].tolist() == [0.5, 1.0]


def test_a_function_that_gives_no_number_masks_its_picture(model: UnifiedModel) -> None:
    both = judged(model, f"judge.external={THIS}:helpless")
    assert both.global_N.isnan().tolist() == [True, False]
    assert [(f.picture, f.region, f.template) for f in both.failures] == [(0, -1, f"{THIS}:helpless")]
    with pytest.raises(
        UserError, match=rf"judge.external={THIS}:short returned a tensor \[1\] .* as many as there are"
    ):
        judged(model, f"judge.external={THIS}:short")


def spoiling(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Works in place on all that it is given."""
    images_NCHW.zero_()
    prompts[0].meta["counts"] = [7]  # type: ignore[index]
    if isinstance(prompts, list):
        prompts.clear()
    return torch.zeros(len(images_NCHW), requires_grad=True)


def test_a_function_that_works_in_place_changes_nothing(model: UnifiedModel) -> None:
    samples, regions = one_scene_twice()
    before = samples.images_NCHW.clone()
    JudgePipeline(load_config(RECIPE, [f"judge.external={THIS}:spoiling"])).scores(model, samples, regions)
    assert torch.equal(samples.images_NCHW, before)
    assert [dict(prompt.meta) for prompt in samples.prompts] == [dict(p.meta) for p in one_scene_twice()[0].prompts]


def endless(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> list[float]:
    return [0.5, math.inf]


def wavy(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return torch.complex(torch.zeros(2), torch.ones(2))


def leaves(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> list[float]:
    sys.exit(0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("endless", "returned inf for image 1 of 2"),
        ("wavy", r"returned a tensor \[2\] of complex64"),
        ("leaves", r"tried to end the process by sys.exit\(0\) \(test_external_judge.py, line \d+, in leaves\)"),
    ],
)
def test_what_is_no_score_ends_by_the_functions_name(model: UnifiedModel, name: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^judge.external={THIS}:{name} {said}"):
        judged(model, f"judge.external={THIS}:{name}")


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


def test_several_judges_have_a_weight_each(model: UnifiedModel) -> None:
    with JudgeServer(reply=lambda seen: "Score: 0.5") as server:
        http = f"{{kind: http, url: {server.url}, template: global_layout_score, weight: 0.25}}"
        function = f"{{kind: function, function: '{THIS}:length', weight: 0.125, name: long}}"
        own = judged(model)
        all_of = judged(model, f"judge.external=[{http}, {function}, {MODEL}]", "judge.external_weight=0.5")
        assert [seen.body["model"] for seen in server.seen] == ["stand-in"] * 2
        assert sorted(seen.texts[0] for seen in server.seen) == sorted(
            load_template("global_layout_score").render(prompt=prompt.text, think=False) for prompt in (RIGHT, WRONG)
        )
        picture = one_scene_twice()[0].images_NCHW[0]
        assert torch.equal(pixels(server.seen[0].picture), (picture * 255).round())
    # the checkpoint is the same model as its own judge
    expected = (0.125 + 0.5) * own.global_N + 0.25 * 0.5 + 0.125 * torch.tensor([0.5, 1.0])
    torch.testing.assert_close(all_of.global_N, expected)
    torch.testing.assert_close(all_of.local_R, own.local_R)
    assert list(all_of.by_judge) == ["own", "http", "long", "tiny_bagel"]
    assert all_of.by_judge["http"].tolist() == [0.5, 0.5]
    assert own.status_Q is not None and all_of.status_Q is not None
    assert len(all_of.status_Q) == 2 * len(own.status_Q) + 2 + 2
    assert "Score: 0.5 | 0.5 | " in all_of.raw[0] and len(all_of.raw) == len(own.raw)


def test_what_a_server_does_not_answer_masks_its_picture(model: UnifiedModel) -> None:
    """Prose is no score, a bare word of judge.answers is one, and what never comes is a failure with its reason."""

    def reply(seen: Seen) -> str:
        return "No." if WRONG.text in seen.texts[0] else "A lovely picture, I must say."

    with JudgeServer(reply=reply) as server:
        both = judged(model, f"judge.external=[{{kind: http, url: {server.url}, name: it, weight: 0.5}}]")
        assert both.by_judge["it"].isnan().tolist() == [True, False] and float(both.by_judge["it"][1]) == -1
        assert both.global_N.isnan().tolist() == [True, False]
        assert [(f.picture, f.region, f.reply) for f in both.failures] == [(0, -1, "A lovely picture, I must say.")]
        assert "shapes_global" in both.failures[0].template and both.failures[0].template.endswith("(it)")
    with JudgeServer(trouble=lambda seen, before: Trouble("status", 400, "too large")) as server:
        both = judged(model, f"judge.external=[{{kind: http, url: {server.url}, weight: 0.1}}]")
        assert both.global_N.isnan().all() and [f.reply for f in both.failures] == ["HTTP 400: too large"] * 2


def test_a_server_that_goes_away_fails_images_and_one_that_never_was_ends_the_run(model: UnifiedModel) -> None:
    with JudgeServer(reply=lambda seen: "Score: 1") as server:
        words = [f"judge.external=[{{kind: http, url: {server.url}, weight: 0.5, retries: 0}}]"]
        pipeline = JudgePipeline(load_config(RECIPE, words))
        assert not pipeline.scores(model, *one_scene_twice()).global_N.isnan().any()
    gone = pipeline.scores(model, *one_scene_twice())
    assert gone.global_N.isnan().all() and "no connection" in gone.failures[0].reply
    with pytest.raises(UserError, match=r"judge.external \(http\): .*no connection"):
        judged(model, *words)


def test_a_judge_that_fails_alone_ends_the_run() -> None:
    record = {"step": 3, "parse_failed_share": 0.1, "judge_own_failed_share": 0.0, "judge_http_failed_share": 0.6}
    with pytest.raises(UserError, match="step 3: the judge 'http' gave no score for 60% of the images"):
        refuse_broken_judge(0.5, "", record, [])
    refuse_broken_judge(0.5, "", record | {"judge_http_failed_share": math.nan}, [])


# ---- judges that have all of every score


def redness(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Of a whole image or a crop: how red it is where its text says red, how little where it does not."""
    red_N = images_NCHW[:, 0].mean(dim=(1, 2)) - images_NCHW[:, 2].mean(dim=(1, 2))
    sign_N = torch.tensor([1.0 if "red" in prompt.text else -1.0 for prompt in prompts])
    return (sign_N * red_N).clamp(-1, 1)


ALL = "judge.external=[{{kind: function, function: '{0}:redness', weight: 1{1}}}]"


def test_the_own_judge_is_not_asked_where_others_have_all_of_the_score() -> None:
    """Neither about the whole images nor about regions, which nobody looks for then; also a pool is theirs."""
    judge = ColourJudge()
    samples, _ = one_scene_twice()
    half = JudgePipeline(load_config(RECIPE, [f"judge.external={THIS}:redness", "judge.external_weight=0.5"]))
    half.judged(judge, samples)
    assert len(judge.questions) > len(samples.group_N)
    pipeline = JudgePipeline(load_config(RECIPE, [ALL.format(THIS, "")]))
    said = pipeline.judged(MuteJudge(), samples)
    expected_N = redness(samples.images_NCHW, samples.prompt_of_each())
    torch.testing.assert_close(said.scores.global_N, expected_N)
    torch.testing.assert_close(pipeline.first_look(MuteJudge(), samples), expected_N)
    assert len(said.regions) == 0 and said.scores.missing_N is None
    assert pipeline.externals.names == ("redness",) and list(said.scores.by_judge) == ["redness"]
    assert said.scores.status_Q is not None and len(said.scores.status_Q) == len(samples.group_N)


def test_a_function_judges_crops_against_phrases() -> None:
    """Each crop with each phrase; the red circle goes to its own region, and what is not asked for is surplus."""
    samples, regions = one_scene_twice()
    pipeline = JudgePipeline(load_config(RECIPE, [ALL.format(THIS, f", crops: '{THIS}:redness'")]))
    said = pipeline.scores(MuteJudge(), samples, regions)
    red = [region for region in range(len(regions)) if int(said.phrase_R[region]) == 0 and regions.owner_R[region] == 0]
    assert len(red) == 1 and float(said.local_R[red[0]]) > 0.1
    assert said.missing_N is not None and said.missing_N.shape == (2,)
    assert said.status_Q is not None and len(said.status_Q) == 2 + 2 * len(regions)
    found = pipeline.judged(MuteJudge(), samples)
    assert len(found.regions) > 0 and found.scores.local_R.shape == (len(found.regions),)
    # Half of the regions' scores, where the own judge has the other half.
    words = [ALL.format(THIS, f", crops: '{THIS}:redness'").replace("weight: 1", "weight: 0.5")]
    mixed = JudgePipeline(load_config(RECIPE, words)).scores(ColourJudge(), samples, regions)
    own = JudgePipeline(load_config(RECIPE)).scores(ColourJudge(), samples, regions)
    assert torch.equal(mixed.phrase_R, own.phrase_R)
    torch.testing.assert_close(mixed.local_R, 0.5 * own.local_R + 0.5 * said.local_R)


def test_a_prompt_without_phrases_is_split_where_nobody_is_to_be_asked() -> None:
    samples, _ = one_scene_twice()
    bare = replace(samples, prompts=tuple(replace(prompt, phrases=()) for prompt in samples.prompts))
    pipeline = JudgePipeline(load_config(RECIPE, [ALL.format(THIS, f", crops: '{THIS}:redness'")]))
    assert pipeline.judged(MuteJudge(), bare).samples.prompts[0].phrases == ("a red circle", "a blue square")


def test_who_judges_no_boxes_fades_none() -> None:
    with pytest.raises(UserError, match=r"reward\.global_factor=multiplicative .* judge no boxes"):
        load_config(RECIPE, [ALL.format(THIS, ""), "reward.global_factor=multiplicative"])
    with pytest.raises(UserError, match="does not read crops"):
        load_config(RECIPE, ["judge.external=[{kind: http, url: 'http://x/v1', crops: 'a.py:b'}]"])
