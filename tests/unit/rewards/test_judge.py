"""Judging a rollout, with a judge that reads the colours in the picture and so is always right."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.protocol import Judge
from srum_ds.prompts.shards import write_shards
from srum_ds.rewards.judge.judge import assign_phrases, judge_rollout, phrase_counts
from srum_ds.rewards.judge.readouts import LogprobReadout
from srum_ds.rewards.regions import no_regions, propose
from srum_ds.rewards.templates import load_template
from srum_ds.types import Prompt, Regions, Samples, Scores, Status
from srum_ds.worlds.shapes.world import enumerate_prompts
from tests.support.paths import ROOT

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.9, 0.1), "blue": (0.1, 0.1, 0.9)}
GLOBAL = load_template("shapes_global")
LOCAL = load_template("shapes_local")
ANSWERS = ("yes", "no")
READOUT = LogprobReadout(ANSWERS)


class ColourJudge:
    """Says yes when the picture's mean colour leans to a colour the question names."""

    def __init__(self, spoil: Callable[[str, Tensor], bool] = lambda question, picture: False) -> None:
        self.calls: list[tuple[int, int]] = []
        self.questions: list[str] = []
        self.spoil = spoil

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        assert tuple(answers) == ANSWERS
        index = list(image_index) if image_index is not None else list(range(len(questions)))
        self.calls.append((len(images), len(questions)))
        self.questions.extend(questions)
        rows = []
        for picture, question in zip(index, questions, strict=True):
            mean = images[picture].mean(dim=(1, 2))
            if self.spoil(question, images[picture]):
                rows.append([math.nan, math.nan])
                continue
            named = [name for name in COLOURS if name in question]
            shown = sum(float(mean[list(COLOURS).index(name)]) for name in named)
            share = shown / max(float(mean.sum()), 1e-6)
            yes = 0.02 + 0.9 * min(share, 1.0)
            rows.append([math.log(yes), math.log(0.96 - yes)])
        return torch.tensor(rows)

    def answer(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        raise AssertionError("the probabilities are read, nothing is generated")

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        raise AssertionError("the answers' probabilities are read, not the text's")


def picture(*objects: tuple[str, int, int]) -> Tensor:
    image = torch.zeros(3, 64, 64)
    for colour, column, row in objects:
        x, y = 16 * column + 2, 16 * row + 2
        image[:, y : y + 12, x : x + 12] = torch.tensor(COLOURS[colour])[:, None, None]
    return image


TWO = Prompt(id="p0", text="a red circle and a blue square", phrases=("a red circle", "a blue square"))
THREE = Prompt(id="p1", text="three green circles", phrases=("a green circle",), meta={"counts": [3]})


def rollout_of(prompts: Sequence[Prompt], pictures: Sequence[Sequence[Tensor]]) -> Samples:
    flat = [image for group in pictures for image in group]
    group = [g for g, images in enumerate(pictures) for _ in images]
    return Samples(
        prompts=tuple(prompts),
        group_N=torch.tensor(group),
        sample_N=torch.tensor([s for images in pictures for s in range(len(images))]),
        images_NCHW=torch.stack(flat),
        tokens=torch.zeros(len(flat), 16, 64),
        grid=(4, 4),
    )


def example() -> tuple[Samples, Regions]:
    rollout = rollout_of(
        (TWO, THREE),
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
    return rollout, propose(rollout.images_NCHW)


def judged(judge: Judge, rollout: Samples, regions: Regions, **settings: object) -> Scores:
    return judge_rollout(judge, rollout, regions, GLOBAL, LOCAL, READOUT, **settings)  # type: ignore[arg-type]


def of_picture(scores: Scores, regions: Regions, owner: int) -> tuple[list[int], list[float]]:
    mine = regions.owner_R == owner
    return scores.phrase_R[mine].tolist(), scores.local_R[mine].tolist()


def test_regions_are_matched_to_the_phrases_they_show() -> None:
    rollout, regions = example()
    scores = judged(ColourJudge(), rollout, regions)
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
    rollout, regions = example()
    scores = judged(ColourJudge(), rollout, regions)
    assert scores.missing_N is not None
    assert of_picture(scores, regions, 4)[0] == [0, 0, 0]
    assert of_picture(scores, regions, 5)[0] == [0, 0]
    assert sorted(of_picture(scores, regions, 6)[0]) == [-1, 0, 0, 0]
    phrases, local = of_picture(scores, regions, 7)
    assert phrases == [0, 0, 0] and local[2] < -0.5
    assert scores.missing_N[4:].tolist() == pytest.approx([0, 1 / 3, 0, 1 / 3])


def test_global_scores_ask_the_prompt_about_the_whole_picture() -> None:
    rollout, regions = example()
    judge = ColourJudge()
    scores = judged(judge, rollout, regions)
    assert judge.questions[0] == "does the picture show a red circle and a blue square?"
    assert "is this a green circle?" in judge.questions
    assert scores.global_N.shape == (8,)
    # red and blue fill the first picture, the third has green as well, the fourth is empty
    assert scores.global_N[0] > scores.global_N[2] > scores.global_N[3]
    assert (scores.global_status_N == Status.PARSED).all()


def test_surplus_penalty_is_the_surplus_regions_score() -> None:
    rollout, regions = example()
    scores = judged(ColourJudge(), rollout, regions, surplus_penalty=0.25)
    surplus = scores.phrase_R == -1
    assert int(surplus.sum()) == 2
    assert scores.local_R[surplus].tolist() == [-0.25, -0.25]


@pytest.mark.parametrize(("batch", "pad_to"), [(1, None), (3, None), (3, 30), (64, 40), (7, 19)])
def test_result_does_not_depend_on_batch_or_padding(batch: int, pad_to: int | None) -> None:
    rollout, regions = example()
    whole = judged(ColourJudge(), rollout, regions)
    parts = judged(ColourJudge(), rollout, regions, batch=batch, pad_to=pad_to)
    for name in ("global_N", "local_R", "phrase_R", "local_status_R", "missing_N"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_every_rank_makes_the_same_calls_however_many_regions_it_has() -> None:
    rollout, regions = example()
    assert len(regions) == 19
    ranks = []
    for own in (regions, Regions(regions.owner_R[:5], regions.boxes_R4[:5]), no_regions()):
        judge = ColourJudge()
        judged(judge, rollout, own, batch=8, pad_to=19)
        ranks.append([pictures for pictures, _ in judge.calls])
    # one call for the 8 pictures, three for 19 crops
    assert ranks == [[8, 8, 8, 3]] * 3
    with pytest.raises(ValueError, match="pad_to"):
        judged(ColourJudge(), rollout, regions, pad_to=18)


def test_the_questions_about_a_crop_share_its_picture() -> None:
    rollout = rollout_of((TWO,), ((picture(("blue", 0, 0), ("red", 2, 1)),),))
    judge = ColourJudge()
    judged(judge, rollout, propose(rollout.images_NCHW))
    assert judge.calls == [(1, 1), (2, 4)]


def test_failed_answers_are_masked_and_never_a_number() -> None:
    rollout, regions = example()

    def spoil(question: str, image: Tensor) -> bool:
        return question in ("is this a blue square?", "does the picture show three green circles?")

    scores = judged(ColourJudge(spoil), rollout, regions)
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
    assert phrase_counts(TWO) == (1, 1)
    assert phrase_counts(THREE) == (3,)
    for bad in ([1], [0, 1], [1, 2.0], "12", 3, [True, 1]):
        prompt = Prompt(id="odd", text=TWO.text, phrases=TWO.phrases, meta={"counts": bad})
        with pytest.raises(UserError, match="odd.*counts"):
            phrase_counts(prompt)


def test_bad_input_says_what_to_do() -> None:
    rollout, regions = example()
    bare = Prompt(id="bare", text="something")
    unlabelled = rollout_of((bare,), ((picture(("red", 0, 0)),),))
    with pytest.raises(UserError, match="'bare' has no object phrases"):
        judged(ColourJudge(), unlabelled, propose(unlabelled.images_NCHW))
    # without regions nobody needs phrases
    alone = judged(ColourJudge(), unlabelled, no_regions(), pad_to=2)
    assert alone.missing_N is not None and alone.missing_N.tolist() == [0.0]
    with pytest.raises(UserError, match="shapes_local never mentions"):
        judge_rollout(ColourJudge(), rollout, regions, LOCAL, LOCAL, READOUT)
    with pytest.raises(UserError, match="shapes_global never mentions"):
        judge_rollout(ColourJudge(), rollout, regions, GLOBAL, GLOBAL, READOUT)
    with pytest.raises(UserError, match="answers"):
        LogprobReadout(("yes",))
    with pytest.raises(UserError, match="surplus_penalty"):
        judged(ColourJudge(), rollout, regions, surplus_penalty=2.0)
    with pytest.raises(UserError, match="batch"):
        judged(ColourJudge(), rollout, regions, batch=0)


def test_a_judge_that_breaks_its_protocol_is_noticed() -> None:
    class Short(ColourJudge):
        def answer_logprobs(self, images, questions, answers, image_index=None):  # type: ignore[no-untyped-def]
            return super().answer_logprobs(images, questions, answers, image_index)[:-1]

    rollout, regions = example()
    with pytest.raises(ValueError, match="the judge returned"):
        judged(Short(), rollout, regions)


@pytest.fixture(scope="module")
def garbage_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of two steps on two ranks, whose judge answers garbage for 30 % of requests."""
    folder = tmp_path_factory.mktemp("garbage")
    prompts = list(enumerate_prompts("color", "train"))[:8]
    write_shards(folder / "shards", "train", [p.to_prompt(f"train-{i}") for i, p in enumerate(prompts)])
    words = [
        str(ROOT / "launch/recipes/tiny.yaml"),
        f"data.shards={folder / 'shards'}",
        "train.steps=2",
        "train.timesteps_per_image=2",
        "rollout.prompts_per_step=4",
        "rollout.micro_batch_prompts=2",
        "rollout.images_per_prompt=4",
        "rollout.num_timesteps=3",
        "log.tensorboard=false",
    ]
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2"]
    command += ["--master_port", str(21000 + os.getpid() % 20000)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    done = subprocess.run(
        [*command, str(ROOT / "tests/integration/judge_worker.py"), *words, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_garbage_judge(garbage_runs: Path) -> None:
    """The run goes on, masks exactly the spoiled requests, reports exactly their share, learns nothing of them."""
    metrics = lines_of(garbage_runs / "plain/metrics.jsonl")
    ranks = [lines_of(garbage_runs / f"plain_rank{rank}.jsonl") for rank in (0, 1)]
    assert [line["step"] for line in metrics] == [0, 1]
    for step, line in enumerate(metrics):
        # a step asks about whole pictures, then about crops
        calls = [call for rank in ranks for call in rank[2 * step : 2 * step + 2]]
        assert [call["whole"] for call in calls] == [True, False] * 2
        asked, spoiled = (sum(n) for n in zip(*((c["asked"], len(c["spoiled"])) for c in calls), strict=True))
        assert (line["judged"], line["parse_failures"]) == (asked, spoiled)
        assert line["parse_failed_share"] == pytest.approx(spoiled / asked, abs=1e-12)
        assert line["parse_failed_share"] == pytest.approx(0.3, abs=2.0 / asked)
        assert line["masked"] == sum(len(call["spoiled"]) for call in calls if call["whole"]) > 0
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in metrics)

    # every failure is on record, with what was asked and answered
    failures = lines_of(garbage_runs / "plain/judge_failures.jsonl")
    assert len(failures) == sum(line["parse_failures"] for line in metrics)
    assert sum(failure["region"] is None for failure in failures) == sum(line["masked"] for line in metrics)
    assert {failure["rank"] for failure in failures} == {0, 1}
    whole = next(failure for failure in failures if failure["region"] is None)
    assert whole["question"] == f"does the picture show {whole['prompt']}?"
    assert whole["reply"] == "yes=2.06e-09 no=2.06e-09"
    assert whole["template"] == GLOBAL.label

    # junk in place of every masked picture changes not one bit; in place of one other picture it does
    weights = {run: load_file(garbage_runs / run / "export/ema.safetensors") for run in ("plain", "masked", "one")}
    same = {run: [torch.equal(w[name], weights["plain"][name]) for name in w] for run, w in weights.items()}
    assert all(same["masked"])
    assert not all(same["one"])
