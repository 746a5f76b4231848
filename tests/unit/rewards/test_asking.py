"""Readouts: on a real model, and at the text boundary where a reply has to be bad on purpose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.models import BagelAdapter, load_model
from srum_ds.rewards.judge.judge import judge_rollout
from srum_ds.rewards.judge.pipeline import FAILURES, FailureLog, Questions, readout_of, refuse_broken_judge
from srum_ds.rewards.judge.readouts import GenerateReadout, LikelihoodReadout, LogprobReadout, Readout, Request, alone
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Judged, Prompt, Regions, Samples, Scores, Status
from srum_ds.worlds.shapes.render import render_scenes
from srum_ds.worlds.shapes.world import SceneObject
from tests.support.paths import ROOT
from tests.support.tiny_models import random_picture, write_tiny_bagel

WHOLE = load_template("sample_level_score")
PART = load_template("local_crop_score")
BOXES = load_template("regional_boxes")


@pytest.fixture(scope="module")
def shapes() -> BagelAdapter:
    return load_model(ROOT / "srum_ds/assets/tiny_bagel")


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> BagelAdapter:
    return load_model(write_tiny_bagel(tmp_path_factory.mktemp("bagel")))


RIGHT = Prompt(id="right", text="a red circle and a blue square", phrases=("a red circle", "a blue square"))
WRONG = Prompt(id="wrong", text="a green triangle and a yellow cross", phrases=("a green triangle", "a yellow cross"))


def shown() -> tuple[Samples, Regions]:
    """One scene twice: drawn for the prompt it shows, and for another."""
    scene = (SceneObject("solid", "red", "circle", 5), SceneObject("solid", "blue", "square", 10))
    picture = render_scenes([scene])[0]
    rollout = Samples(
        prompts=(RIGHT, WRONG),
        group_N=torch.tensor([0, 1]),
        sample_N=torch.tensor([0, 0]),
        images_NCHW=torch.stack([picture, picture]),
        tokens=torch.zeros(2, 16, 64),
        grid=(4, 4),
    )
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.75, 0.75]])
    return rollout, Regions(torch.tensor([0, 0, 1, 1]), torch.cat([boxes, boxes]))


def judged_by(model: BagelAdapter, *words: str) -> Scores:
    cfg = load_config(ROOT / "launch/recipes/tiny.yaml", words)
    return Questions(cfg).about(model, *shown())


def test_the_tiny_model_written_answer_is_the_likelier_word(shapes: BagelAdapter) -> None:
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


def test_a_written_answer_without_score_fails_after_all_tries(shapes: BagelAdapter) -> None:
    # the tiny model repeats its one word, which is no verdict
    scores = judged_by(shapes, "judge.readout=generate", "judge.max_new_tokens=3", "judge.retries=1")
    assert scores.global_N.isnan().all() and scores.local_R.isnan().all()
    assert scores.status_Q is not None and (scores.status_Q == Status.FAILED).all()
    assert len(scores.failures) == 10
    assert scores.failures[0].question == f"does the picture show {RIGHT.text}?"
    assert scores.failures[0].reply.startswith("yes")


def test_expected_rating_reads_the_scale(shapes: BagelAdapter) -> None:
    # a scale of the model's two words is its yes against its no
    scaled = judged_by(shapes, 'judge.scale=["no","yes"]')
    torch.testing.assert_close(scaled.global_N, judged_by(shapes).global_N, atol=1e-6, rtol=0)


def test_likelihood_is_the_models_own_minus_a_blank_pictures(random_model: BagelAdapter) -> None:
    pictures = [random_picture(56, 56, 1), random_picture(56, 56, 2), torch.zeros(3, 56, 56)]
    texts = ["a red cat", "no", "a red cat", "a red cat"]
    requests = [Request(picture, "", text) for picture, text in zip([0, 0, 1, 2], texts, strict=True)]
    for ask in (False, True):
        asked = [Request(r.picture, "what is it?" if ask else "", r.text) for r in requests]
        replies = LikelihoodReadout(0.5, ask).read(random_model, pictures, asked, alone)
        question = ["what is it?"] if ask else None
        for row, request in enumerate(asked):
            seen = random_model.text_logprob([pictures[request.picture]], [request.text], question)
            blank = random_model.text_logprob([pictures[2]], [request.text], question)
            gain = float(seen - blank)
            assert float(replies.score_Q[row]) == pytest.approx(gain / (0.5 + abs(gain)), abs=1e-5)
        assert float(replies.score_Q[0]) != pytest.approx(float(replies.score_Q[2]), abs=1e-4)
        assert float(replies.score_Q[3]) == pytest.approx(0.0, abs=1e-5)
    assert LikelihoodReadout().read(random_model, [], [], alone).score_Q.shape == (0,)


def test_likelihood_by_recipe_judges_pictures_and_crops_in_one_pass_a_batch(shapes: BagelAdapter) -> None:
    class Counting:
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
    cfg = load_config(ROOT / "launch/recipes/tiny.yaml", ["judge.readout=likelihood"])
    scores = Questions(cfg).about(counting, *shown())  # type: ignore[arg-type]
    # 2 prompts and as many on the blank; 4 crops with 2 phrases each, 4 phrases on the blank
    assert counting.texts == [4, 12]
    assert scores.global_N.abs().max() <= 1 and scores.local_R.isfinite().all()
    assert scores.raw[0].startswith("log p=")


class Writer:
    """Replies as it is told: ``say(question, attempt)``; notes what it was asked."""

    def __init__(self, say: Callable[[str, int], str]) -> None:
        self.say = say
        self.calls: list[tuple[list[str], float]] = []
        self.seeds: list[list[int]] = []
        self.attempts: dict[str, int] = {}

    def answer(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        assert image_index is not None and seeds is not None
        assert max(image_index) < len(images) and len(seeds) == len(questions)
        self.calls.append((list(questions), temperature))
        self.seeds.append(list(seeds))
        texts = []
        for question in questions:
            texts.append(self.say(question, self.attempts.get(question, 0)))
            self.attempts[question] = self.attempts.get(question, 0) + 1
        return texts

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        raise AssertionError("answers are written")

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        raise AssertionError("answers are written")


PICTURES = [torch.zeros(3, 8, 8)] * 4
REQUESTS = [Request(n, f"question {n}", "", ("p", n)) for n in range(4)]


def test_failed_replies_are_asked_for_again_with_another_seed_and_temperature() -> None:
    # 0 answers at once, 1 at the second try, 2 never, 3 off the scale
    replies = {0: ["Score: 0.5"] * 3, 1: ["hm", "Score: -0.5"], 2: ["hm", "hm!", "hm?"], 3: ["Score: 9"]}
    writer = Writer(lambda question, attempt: replies[int(question[-1])][attempt])
    read = GenerateReadout(retries=2, retry_temperature=0.9).read(writer, PICTURES, REQUESTS, alone)
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
    whole, part = (Writer(lambda question, attempt: "hm") for _ in range(2))
    GenerateReadout().read(whole, PICTURES, REQUESTS, alone)
    GenerateReadout().read(part, PICTURES, REQUESTS[2:], alone)
    assert [s[-2:] for s in whole.seeds] == part.seeds
    other = Writer(lambda question, attempt: "hm")
    GenerateReadout(seed=1).read(other, PICTURES, REQUESTS, alone)
    assert not set(other.seeds[0]) & set(whole.seeds[0])


def test_in_lockstep_all_ranks_make_the_same_calls() -> None:
    barrier = threading.Barrier(2)
    slots = [0, 0]
    # rank 0 fails once, rank 1 never
    writers = [
        Writer(lambda question, attempt: "hm" if attempt == 0 and question == "question 1" else "Score: 1"),
        Writer(lambda question, attempt: "Score: 0"),
    ]
    results: list[list[float]] = [[], []]

    def rank(number: int) -> None:
        def agree(own: int) -> int:
            slots[number] = own
            barrier.wait(10)
            largest = max(slots)
            barrier.wait(10)
            return largest

        read = GenerateReadout(retries=3).read(writers[number], PICTURES, REQUESTS, agree)
        results[number] = read.score_Q.tolist()

    threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [len(writer.calls) for writer in writers] == [2, 2]
    assert results == [[1.0] * 4, [0.0] * 4]


def boxes_judge(reply: Callable[[int], str]) -> Writer:
    def say(question: str, attempt: int) -> str:
        return reply(attempt) if "Region 1:" in question and RIGHT.text in question else "Score: 0.25"

    return Writer(say)


def judge_boxes(writer: Writer, rollout: Samples, regions: Regions, **settings: object) -> Scores:
    readout = GenerateReadout(retries=1)
    return judge_rollout(writer, rollout, regions, WHOLE, BOXES, readout, regional="boxes", **settings)  # type: ignore[arg-type]


def test_all_boxes_in_one_call_as_released() -> None:
    rollout, regions = shown()
    first = Regions(regions.owner_R[:2], regions.boxes_R4[:2])
    writer = boxes_judge(lambda attempt: "Object: a red circle\nScore: 0.9\n---\nObject: a blob\nScore: -0.75")
    scores = judge_boxes(writer, rollout, first)
    assert scores.local_R.tolist() == pytest.approx([0.9, -0.75])
    assert scores.global_N.tolist() == [0.25, 0.25]
    assert scores.phrase_R.tolist() == [-1, -1] and scores.missing_N is None
    # one call about both pictures, one about the picture that has boxes
    assert [len(questions) for questions, _ in writer.calls] == [2, 1]
    question = writer.calls[1][0][0]
    assert "Region 1: [16, 16, 32, 32]\nRegion 2: [32, 32, 48, 48]\n" in question
    assert "64 pixels wide" in question and "These are 2 regions" in question
    # in lockstep every rank asks about as many pictures
    padded = boxes_judge(lambda attempt: "Region 1: Score: 0.9\nRegion 2: Score: -0.75")
    again = judge_boxes(padded, rollout, first, pad_to=2)
    assert torch.equal(again.local_R, scores.local_R)
    assert [len(questions) for questions, _ in padded.calls] == [2, 2]


def test_a_box_without_score_is_asked_for_again_and_fails_alone() -> None:
    rollout, regions = shown()
    first = Regions(regions.owner_R[:2], regions.boxes_R4[:2])
    healed = boxes_judge(lambda n: "Region 1: Score: 0.5" if n == 0 else "Region 1: Score: 0.1\nRegion 2: Score: 1")
    assert judge_boxes(healed, rollout, first).local_R.tolist() == pytest.approx([0.1, 1.0])
    stays = boxes_judge(lambda n: "Region 1: Score: 0.5" if n == 0 else "nothing")
    scores = judge_boxes(stays, rollout, first)
    assert scores.local_R[0] == 0.5 and scores.local_R[1].isnan()
    assert scores.local_status_R.tolist() == [Status.PARSED, Status.FAILED]
    assert [(f.picture, f.region, f.reply) for f in scores.failures] == [(0, 1, "Region 1: Score: 0.5")]
    assert scores.failures[0].template == BOXES.label


@pytest.mark.parametrize(
    ("readout", "whole", "part", "regional", "message"),
    [
        (LogprobReadout(), PART, PART, "crop", "never mentions {{ prompt }}"),
        (LogprobReadout(), WHOLE, WHOLE, "crop", "never mentions {{ phrase }}"),
        (LogprobReadout(), WHOLE, BOXES, "boxes", "judge.readout=generate"),
        (GenerateReadout(), WHOLE, PART, "boxes", "never mentions {{ boxes }}"),
        (GenerateReadout(think=True), load_template("sample_level"), PART, "crop", "never mentions {{ think }}"),
        (LikelihoodReadout(), WHOLE, PART, "crop", "gives away"),
        (GenerateReadout(), None, PART, "crop", "needs a judge template"),
    ],
)
def test_a_template_that_does_not_fit_its_readout_is_refused(
    readout: Readout, whole: Template | None, part: Template, regional: str, message: str
) -> None:
    rollout, regions = shown()
    writer = Writer(lambda question, attempt: "Score: 0")
    with pytest.raises(UserError) as caught:
        judge_rollout(writer, rollout, regions, whole, part, readout, regional=regional)
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
            load_config(ROOT / "launch/recipes/tiny.yaml", words)
    cfg = load_config(ROOT / "launch/recipes/tiny.yaml", ["judge.readout=generate", "run.seed=3"])
    assert readout_of(cfg) == GenerateReadout(("yes", "no"), 512, False, 0.0, 2, 0.7, 3)


def test_the_released_recipe_asks_in_writing_about_all_boxes_at_once() -> None:
    cfg = load_config(ROOT / "launch/recipes/bagel_paper.yaml", [])
    rollout, regions = shown()
    writer = Writer(lambda question, attempt: "<think>hm</think>Region 1: Score: 1\n---\nRegion 2: Score: -1")
    scores = Questions(cfg).about(writer, rollout, regions)
    assert scores.local_R.tolist() == [1.0, -1.0] * 2
    asked = [question for questions, _ in writer.calls for question in questions]
    assert all("<think> and </think>" in question for question in asked)


def with_failures(shapes: BagelAdapter) -> Judged:
    rollout, regions = shown()
    words = ["judge.readout=generate", "judge.max_new_tokens=3", "judge.retries=0"]
    cfg = load_config(ROOT / "launch/recipes/tiny.yaml", words)
    return Judged(rollout, regions, Questions(cfg).about(shapes, rollout, regions))


def test_failures_are_logged_until_the_file_is_full(shapes: BagelAdapter, tmp_path: Path) -> None:
    judged = with_failures(shapes)
    FailureLog(tmp_path, 0, 1.0).write(7, [judged])
    lines = (tmp_path / FAILURES).read_bytes().splitlines(keepends=True)
    assert len(lines) == 10
    FailureLog(tmp_path, 1, (sum(map(len, lines)) + 2.5 * len(lines[0])) / 1e6).write(8, [judged])
    assert len((tmp_path / FAILURES).read_bytes().splitlines()) == 12
    FailureLog(tmp_path, 0, 0.0).write(9, [judged])
    assert len((tmp_path / FAILURES).read_bytes().splitlines()) == 12


def test_a_broken_judge_stops_the_run_and_shows_what_it_said(shapes: BagelAdapter) -> None:
    judged = with_failures(shapes)
    cfg = load_config(ROOT / "launch/recipes/tiny.yaml", ["judge.readout=generate"])
    refuse_broken_judge(cfg, {"step": 4, "parse_failed_share": 0.5}, [judged])
    with pytest.raises(UserError) as caught:
        refuse_broken_judge(cfg, {"step": 4, "parse_failed_share": 0.51}, [judged])
    message = str(caught.value)
    assert "step 4: 51%" in message and "judge.max_failed_share=50%" in message and FAILURES in message
    reply = judged.scores.failures[0].reply
    assert repr(reply) in message and "is this a " in message
