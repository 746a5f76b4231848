"""Readouts: on a real model, and at the text boundary where a reply has to be bad on purpose."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.models.protocol import Judge, UnifiedModel
from srum_ds.monitoring.judge_failures import FAILURES, FailureLog, refuse_broken_judge
from srum_ds.rewards.judge.judge import Asking, judge_samples, judge_together
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.judge.readouts import (
    GenerateReadout,
    LikelihoodReadout,
    LogprobReadout,
    Readout,
    Request,
    readout_of,
)
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Judged, Regions, Samples, Scores, Status
from tests.support.judges import RIGHT, MuteJudge, WritingJudge, one_scene_twice
from tests.support.paths import MODEL, RECIPE, RECIPES
from tests.support.tiny_models import random_picture, write_tiny_bagel

WHOLE = load_template("sample_level_score")
PART = load_template("local_crop_score")
BOXES = load_template("regional_boxes")


@pytest.fixture(scope="module")
def shapes() -> UnifiedModel:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> UnifiedModel:
    return load_model(write_tiny_bagel(tmp_path_factory.mktemp("bagel")))


def judged_by(model: UnifiedModel, *words: str) -> Scores:
    return JudgePipeline(load_config(RECIPE, words)).scores(model, *one_scene_twice())


def test_the_tiny_model_written_answer_is_the_likelier_word(shapes: UnifiedModel) -> None:
    read = judged_by(shapes)
    written = judged_by(shapes, "judge.readout=generate", "judge.max_new_tokens=1", "judge.retries=0")
    assert read.global_N[0] > 0.5 > -0.5 > read.global_N[1]
    assert written.global_N.tolist() == [1.0, -1.0]
    assert written.raw[:2] == ("yes", "no")
    assert torch.equal(written.local_R[:2], torch.ones(2))
    assert written.failures == () and written.status_Q is not None
    # two pictures, and four crops about two phrases each
    assert written.status_Q.tolist() == [Status.PARSED] * 10
    assert read.raw[0].startswith("yes=0.") and len(read.raw) == 6


def test_a_written_answer_without_score_fails_after_all_tries(shapes: UnifiedModel) -> None:
    # the tiny model repeats its one word, which is no verdict
    scores = judged_by(shapes, "judge.readout=generate", "judge.max_new_tokens=3", "judge.retries=1")
    assert scores.global_N.isnan().all() and scores.local_R.isnan().all()
    assert scores.status_Q is not None and (scores.status_Q == Status.FAILED).all()
    assert len(scores.failures) == 10
    assert scores.failures[0].question == f"does the picture show {RIGHT.text}?"
    assert scores.failures[0].reply.startswith("yes")


def test_expected_rating_reads_the_scale(shapes: UnifiedModel) -> None:
    # a scale of the model's two words is its yes against its no
    scaled = judged_by(shapes, 'judge.scale=["no","yes"]')
    torch.testing.assert_close(scaled.global_N, judged_by(shapes).global_N, atol=1e-6, rtol=0)


def test_likelihood_is_the_models_own_minus_a_blank_pictures(random_model: UnifiedModel) -> None:
    pictures = [random_picture(56, 56, 1), random_picture(56, 56, 2), torch.zeros(3, 56, 56)]
    texts = ["a red cat", "no", "a red cat", "a red cat"]
    requests = [Request(picture, "", text) for picture, text in zip([0, 0, 1, 2], texts, strict=True)]
    for ask in (False, True):
        asked = [Request(r.picture, "what is it?" if ask else "", r.text) for r in requests]
        replies = LikelihoodReadout(0.5, ask).read(random_model, pictures, asked)
        question = ["what is it?"] if ask else None
        for row, request in enumerate(asked):
            seen = random_model.text_logprob([pictures[request.picture]], [request.text], question)
            blank = random_model.text_logprob([pictures[2]], [request.text], question)
            gain = float(seen - blank)
            assert float(replies.score_Q[row]) == pytest.approx(gain / (0.5 + abs(gain)), abs=1e-5)
        assert float(replies.score_Q[0]) != pytest.approx(float(replies.score_Q[2]), abs=1e-4)
        assert float(replies.score_Q[3]) == pytest.approx(0.0, abs=1e-5)
    assert LikelihoodReadout().read(random_model, [], []).score_Q.shape == (0,)


def test_likelihood_by_recipe_judges_pictures_and_crops_in_one_pass_a_batch(shapes: UnifiedModel) -> None:
    class Counting(MuteJudge):
        def __init__(self) -> None:
            self.texts: list[int] = []

        def text_logprob(
            self,
            images: Sequence[Tensor],
            texts: Sequence[str],
            questions: Sequence[str] | None = None,
            image_index: Sequence[int] | None = None,
        ) -> Tensor:
            self.texts.append(len(texts))
            return shapes.text_logprob(images, texts, questions, image_index)

    counting = Counting()
    cfg = load_config(RECIPE, ["judge.readout=likelihood"])
    scores = JudgePipeline(cfg).scores(counting, *one_scene_twice())
    # 2 prompts and as many on the blank; 4 crops with 2 phrases each, 4 phrases on the blank
    assert counting.texts == [4, 12]
    assert scores.global_N.abs().max() <= 1 and scores.local_R.isfinite().all()
    assert scores.raw[0].startswith("log p=")


PICTURES = [torch.zeros(3, 8, 8)] * 4
REQUESTS = [Request(n, f"question {n}", "", ("p", n)) for n in range(4)]


def test_failed_replies_are_asked_for_again_with_another_seed_and_temperature() -> None:
    # 0 answers at once, 1 at the second try, 2 never, 3 off the scale
    replies = {0: ["Score: 0.5"] * 3, 1: ["hm", "Score: -0.5"], 2: ["hm", "hm!", "hm?"], 3: ["Score: 9"]}
    writer = WritingJudge(lambda question, attempt: replies[int(question[-1])][attempt])
    read = GenerateReadout(retries=2, retry_temperature=0.9).read(writer, PICTURES, REQUESTS)
    assert writer.calls == [
        ([r.question for r in REQUESTS], 0.0),
        (["question 1", "question 2"], 0.9),
        (["question 2"], 0.9),
    ]
    seeds = [writer.seeds[0][2], writer.seeds[1][1], writer.seeds[2][0]]
    assert len(set(seeds)) == 3
    assert read.status_Q.tolist() == [Status.PARSED, Status.PARSED, Status.FAILED, Status.CLAMPED]
    assert read.score_Q.tolist()[:2] == [0.5, -0.5] and read.score_Q[3] == 1.0
    assert read.score_Q[2].isnan()
    # the reply that stays on record is the first one: no later one was better
    assert read.raw[2] == "hm"


def test_seeds_are_by_identity_and_not_by_batch() -> None:
    whole, part = (WritingJudge(lambda question, attempt: "hm") for _ in range(2))
    GenerateReadout().read(whole, PICTURES, REQUESTS)
    GenerateReadout().read(part, PICTURES, REQUESTS[2:])
    assert [s[-2:] for s in whole.seeds] == part.seeds
    other = WritingJudge(lambda question, attempt: "hm")
    GenerateReadout(seed=1).read(other, PICTURES, REQUESTS)
    assert not set(other.seeds[0]) & set(whole.seeds[0])


def boxes_judge(reply: Callable[[int], str]) -> WritingJudge:
    def say(question: str, attempt: int) -> str:
        return reply(attempt) if "Region 1:" in question and RIGHT.text in question else "Score: 0.25"

    return WritingJudge(say)


def judge_boxes(judge: Judge, samples: Samples, regions: Regions) -> Scores:
    return judge_samples(judge, samples, regions, Asking(WHOLE, BOXES, GenerateReadout(retries=1), "boxes"))


def test_all_boxes_in_one_call_as_released() -> None:
    samples, regions = one_scene_twice()
    first = Regions(regions.owner_R[:2], regions.boxes_R4[:2])
    writer = boxes_judge(lambda attempt: "Object: a red circle\nScore: 0.9\n---\nObject: a blob\nScore: -0.75")
    scores = judge_boxes(writer, samples, first)
    assert scores.local_R.tolist() == pytest.approx([0.9, -0.75])
    assert scores.global_N.tolist() == [0.25, 0.25]
    assert scores.phrase_R.tolist() == [-1, -1] and scores.missing_N is None
    # one call: about both pictures, and about the boxes of the one that has some
    assert [len(questions) for questions, _ in writer.calls] == [3]
    assert [len(seeds) for seeds in writer.seeds] == [3]
    question = writer.calls[0][0][2]
    assert "Region 1: [16, 16, 32, 32]\nRegion 2: [32, 32, 48, 48]\n" in question
    assert "64 pixels wide" in question and "These are 2 regions" in question


def test_a_box_without_score_is_asked_for_again_and_fails_alone() -> None:
    samples, regions = one_scene_twice()
    first = Regions(regions.owner_R[:2], regions.boxes_R4[:2])
    healed = boxes_judge(lambda n: "Region 1: Score: 0.5" if n == 0 else "Region 1: Score: 0.1\nRegion 2: Score: 1")
    assert judge_boxes(healed, samples, first).local_R.tolist() == pytest.approx([0.1, 1.0])
    stays = boxes_judge(lambda n: "Region 1: Score: 0.5" if n == 0 else "nothing")
    scores = judge_boxes(stays, samples, first)
    assert scores.local_R[0] == 0.5 and scores.local_R[1].isnan()
    assert scores.local_status_R.tolist() == [Status.PARSED, Status.FAILED]
    assert [(f.picture, f.region, f.reply) for f in scores.failures] == [(0, 1, "Region 1: Score: 0.5")]
    assert scores.failures[0].template == BOXES.label


@pytest.mark.parametrize("regional", ["boxes", "crop"])
def test_what_is_written_about_several_micro_batches_is_written_in_one_call(regional: str) -> None:
    """Failures and retries included; the scores are those of each micro-batch judged alone."""

    def say(question: str, attempt: int) -> str:
        # Lists of regions are understood at the second try, verdicts about crops of the other prompt never.
        verdict = zlib.crc32(question.encode()) % 200 / 100 - 1
        if "Region 1:" in question:
            return f"Region 1: Score: {verdict}\nRegion 2: Score: 0.5" if attempt else "hm"
        return "hm" if "cross" in question else f"Score: {verdict}"

    samples, regions = one_scene_twice()
    other = replace(samples, sample_N=torch.tensor([7, 8]), images_NCHW=samples.images_NCHW.flip(3))
    few = Regions(regions.owner_R[:2], regions.boxes_R4[:2])
    batches = [(samples, regions), (other, few)]
    asking = Asking(WHOLE, BOXES if regional == "boxes" else PART, GenerateReadout(retries=1), regional)
    writer = WritingJudge(say)
    together = judge_together(writer, batches, asking)
    assert len(writer.calls) == 2
    # A picture is read once, whatever it is asked; crops are pictures of their own.
    assert len(writer.images[0]) == (4 if regional == "boxes" else 4 + 6)
    assert sum(len(said.failures) for said in together) > 0
    alone = [judge_samples(WritingJudge(say), *batch, asking) for batch in batches]
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(mine.global_N, theirs.global_N, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(mine.local_R, theirs.local_R, rtol=0, atol=0, equal_nan=True)
        assert (mine.raw, mine.failures) == (theirs.raw, theirs.failures)
        assert mine.status_Q is not None and theirs.status_Q is not None
        assert torch.equal(mine.status_Q, theirs.status_Q)


def test_replies_are_written_so_many_at_once() -> None:
    whole, parts = (WritingJudge(lambda question, attempt: f"Score: 0.{question[-1]}") for _ in range(2))
    expected = GenerateReadout().read(whole, PICTURES, REQUESTS)
    found = GenerateReadout(batch=3).read(parts, PICTURES, REQUESTS)
    assert whole.sizes == [(4, 4)] and parts.sizes == [(3, 3), (1, 1)]
    assert torch.equal(found.score_Q, expected.score_Q)
    assert [s for of_call in parts.seeds for s in of_call] == whole.seeds[0]
    assert readout_of(load_config(RECIPE, ["judge.readout=generate", "judge.batch=3"])).batch == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("readout", "whole", "part", "regional", "message"),
    [
        (LogprobReadout(), PART, PART, "crop", "never mentions {{ prompt }}"),
        (LogprobReadout(), WHOLE, WHOLE, "crop", "never mentions {{ phrase }}"),
        (GenerateReadout(), WHOLE, PART, "boxes", "never mentions {{ boxes }}"),
        (GenerateReadout(think=True), load_template("sample_level"), PART, "crop", "never mentions {{ think }}"),
        (LikelihoodReadout(), WHOLE, PART, "crop", "gives away"),
        (GenerateReadout(), None, PART, "crop", "needs a judge template"),
    ],
)
def test_a_template_that_does_not_fit_its_readout_is_refused(
    readout: Readout, whole: Template | None, part: Template, regional: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        Asking(whole, part, readout, regional)
    assert message in str(caught.value)


def test_bad_settings_are_refused_where_they_are_given() -> None:
    for words, message in (
        (["judge.regional=boxes"], "judge.readout=generate"),
        (['judge.scale=["1"]'], "judge.scale"),
        (['judge.scale=["1","1"]'], "different ratings"),
        (["judge.retry_temperature=0"], "judge.retry_temperature"),
        (["judge.readout=logprobs"], "judge.readout"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(RECIPE, words)
    cfg = load_config(RECIPE, ["judge.readout=generate", "run.seed=3"])
    assert readout_of(cfg) == GenerateReadout(("yes", "no"), 512, False, 0.0, 2, 0.7, 3)


def test_the_released_recipe_asks_in_writing_about_all_boxes_at_once() -> None:
    cfg = load_config(RECIPES / "bagel_paper.yaml")
    samples, regions = one_scene_twice()
    writer = WritingJudge(lambda question, attempt: "<think>hm</think>Region 1: Score: 1\n---\nRegion 2: Score: -1")
    scores = JudgePipeline(cfg).scores(writer, samples, regions)
    assert scores.local_R.tolist() == [1.0, -1.0] * 2
    asked = [question for questions, _ in writer.calls for question in questions]
    assert all("<think> and </think>" in question for question in asked)


def with_failures(shapes: UnifiedModel) -> Judged:
    samples, regions = one_scene_twice()
    words = ["judge.readout=generate", "judge.max_new_tokens=3", "judge.retries=0"]
    return Judged(samples, regions, JudgePipeline(load_config(RECIPE, words)).scores(shapes, samples, regions))


def test_failures_are_logged_until_the_file_is_full(shapes: UnifiedModel, tmp_path: Path) -> None:
    judged = with_failures(shapes)
    FailureLog(tmp_path, 0, 1.0).write(7, [judged])
    lines = (tmp_path / FAILURES).read_bytes().splitlines(keepends=True)
    assert len(lines) == 10
    FailureLog(tmp_path, 1, (sum(map(len, lines)) + 2.5 * len(lines[0])) / 1e6).write(8, [judged])
    assert len((tmp_path / FAILURES).read_bytes().splitlines()) == 12
    FailureLog(tmp_path, 0, 0.0).write(9, [judged])
    assert len((tmp_path / FAILURES).read_bytes().splitlines()) == 12


def test_a_broken_judge_stops_the_run_and_shows_what_it_said(shapes: UnifiedModel) -> None:
    judged = with_failures(shapes)
    cure = readout_of(load_config(RECIPE, ["judge.readout=generate"])).cure
    refuse_broken_judge(0.5, cure, {"step": 4, "parse_failed_share": 0.5}, [judged])
    with pytest.raises(UserError) as caught:
        refuse_broken_judge(0.5, cure, {"step": 4, "parse_failed_share": 0.51}, [judged])
    message = str(caught.value)
    assert "step 4: 51%" in message and "judge.max_failed_share=50%" in message and FAILURES in message
    reply = judged.scores.failures[0].reply
    assert repr(reply) in message and "is this a " in message


def test_scores_off_the_scale_count_as_answers_that_could_not_be_used() -> None:
    record = {"step": 4, "parse_failed_share": 0.25, "judged": 8, "parse_clamped": 2}
    refuse_broken_judge(0.5, "", record, [])
    with pytest.raises(UserError, match="62% of the judge's answers could not be used or lay off the scale"):
        refuse_broken_judge(0.5, "", record | {"parse_clamped": 3}, [])


def test_scores_of_a_function_alone_are_not_to_be_asked_about() -> None:
    record = {"step": 1, "parse_failed_share": 0.0, "judged": 4, "parse_clamped": 4}
    with pytest.raises(UserError, match=r"See judge\.external: its scores lie in \[-1, 1\]") as caught:
        refuse_broken_judge(0.5, "", record, [])
    assert "srum-ds ask" not in str(caught.value)
