"""Whether scores say where a picture is damaged: damages and figures by hand, scripted judges, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.evaluation.localise import (
    background,
    blurred,
    effect,
    fall_auc,
    grey,
    least_alike,
    painted,
    replaced,
)
from srum_ds.evaluation.localise_run import Scene, damaged_picture, listed_template, localise, measured, ways_of
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.templates import Template
from srum_ds.types import Prompt
from tests.support.paths import RECIPE

LEFT = (0.0, 0.0, 0.5, 0.5)
RIGHT = (0.5, 0.5, 1.0, 1.0)


def test_damages_change_their_box_alone() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1] = 0.2, 0.2, 0.2, 0.2
    patch = torch.full((3, 2, 2), 0.9)
    for changed in (blurred(image, LEFT), painted(image, LEFT), replaced(image, LEFT, patch)):
        assert not torch.equal(changed[:, :4, :4], image[:, :4, :4])
        outside = changed.clone()
        outside[:, :4, :4] = image[:, :4, :4]
        assert torch.equal(outside, image)
    assert background(image).tolist() == pytest.approx([0.2] * 3)
    assert bool((painted(image, LEFT)[:, :4, :4] == background(image)[0]).all())
    assert torch.allclose(replaced(image, LEFT, patch)[:, :4, :4], torch.tensor(0.9))
    assert grey(image).unique().tolist() == [0.5]


def test_a_blur_keeps_the_light_and_loses_the_edges() -> None:
    image = torch.zeros(3, 8, 8)
    image[:, 1:3, 1:3] = 1.0
    soft = blurred(image, (0.0, 0.0, 0.5, 0.5))[:, :4, :4]
    assert float(soft.max()) < 0.6
    assert float(soft.mean()) == pytest.approx(0.25, abs=1e-4)


def test_what_is_least_alike_shares_the_fewest_words_and_is_never_the_same() -> None:
    assert least_alike("a red circle", ["a red circle", "a blue circle", "a blue square", "The red circle"]) == [2]
    assert least_alike("a red circle", ["a red circle"]) == []


def test_figures_by_hand() -> None:
    # Falls: picture 0: 1.0 against 0 and -0.1; picture 1: 0 against 0.
    found = effect(
        [0.8, 0.6, 0.4, 0.5, 0.9], [-0.2, 0.6, 0.5, 0.5, 0.9], [0, 0, 0, 1, 1], [True, False, False, False, True]
    )
    assert (found["n"], found["left_out"], found["others"], found["failed"]) == (2, 0, 3, 0.0)
    # 1.0 beats every other; 0 ties with the 0 of each picture and beats -0.1, which is half of picture 0:
    # (1 + 1 + (0.25 + 0.5) + 0.5) / 4
    assert found["auc"] == pytest.approx(3.25 / 4)
    assert found["same_picture"] == pytest.approx(0.75)
    assert found["ties"] == pytest.approx(0.5)
    assert found["fell"] == pytest.approx(0.5) and found["fell_stderr"] == pytest.approx(0.5)
    assert found["moved"] == pytest.approx(0.025)
    assert (found["before"], found["after"]) == (pytest.approx(0.85), pytest.approx(0.35))


def test_a_score_of_the_whole_says_exactly_nothing_about_where() -> None:
    falls = [0.5, 0.0, 0.3]
    assert fall_auc(falls, [np.full(n, fall) for n, fall in zip((1, 2, 5), falls, strict=True)]) == pytest.approx(0.5)


def test_failures_are_left_out_and_counted() -> None:
    nan = math.nan
    before = [0.5, 0.5, nan, 0.5, 0.5, 0.5]
    after = [0.0, 0.5, 0.5, nan, -0.5, nan]
    found = effect(before, after, [0, 0, 1, 1, 2, 2], [True, False, True, False, True, False])
    # Picture 1 has no damaged score, picture 2 nothing to compare with.
    assert (found["n"], found["left_out"], found["others"]) == (1, 2, 1)
    assert found["failed"] == pytest.approx(3 / 6)
    assert found["auc"] == 1.0 and math.isnan(found["auc_stderr"])
    nothing = effect([nan, nan], [nan, nan], [0, 0], [True, False])
    assert nothing["n"] == 0 and math.isnan(nothing["auc"]) and nothing["failed"] == 1.0
    with pytest.raises(ValueError, match="2 damaged regions"):
        effect([0.0, 0.0], [0.0, 0.0], [0, 0], [True, True])


def test_rounding_makes_no_difference_between_equal_falls() -> None:
    found = effect([0.5, 0.5], [0.5 - 1e-5, 0.5 + 1e-5], [0, 0], [True, False])
    assert found["ties"] == 1.0 and found["auc"] == 0.5


# ---- judges whose kind is known


class Seeing:
    """Says yes as far as the asked colour fills the middle of what it is shown; in writing, praises every region."""

    def __init__(self, writes: bool = False) -> None:
        self.writes = writes
        self.written = 0

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        index = image_index if image_index is not None else range(len(questions))
        rows = []
        for question, number in zip(questions, index, strict=True):
            channel = 0 if "red" in question else 2
            picture = images[number]
            lit = (picture[channel] > 0.6) & (picture[2 - channel] < 0.4)
            share = min(max(4 * float(lit.float().mean()), 0.01), 0.99)
            rows.append([math.log(share), math.log(1 - share)])
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
        self.written += len(questions)
        if not self.writes:
            return ["yes yes yes"] * len(questions)
        return ["\n---\n".join(f"Region {k}\nObject: thing\nScore: 0.7" for k in (1, 2))] * len(questions)

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        raise NotImplementedError


def scenes(count: int = 4) -> list[Scene]:
    """Red at the upper left, blue at the lower right; either is damaged in turn."""
    picture = torch.zeros(3, 32, 32)
    picture[0, 3:13, 3:13] = 1.0
    picture[2, 19:29, 19:29] = 1.0
    boxes = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0))
    phrases = ("a red square", "a blue circle")
    prompt = Prompt("p", "a red square and a blue circle", "color", phrases)
    return [Scene(replace(prompt, id=f"p{k}"), picture, boxes, phrases, k % 2) for k in range(count)]


def judging(*overrides: str) -> JudgePipeline:
    return JudgePipeline(load_config(RECIPE, overrides))


def test_crops_say_where_and_a_list_that_praises_does_not() -> None:
    judge = Seeing(writes=True)
    ways, refused = ways_of(judging())
    assert list(ways) == ["crops", "listed", "written", "whole"] and refused == {}
    crops = measured(ways["crops"], judge, scenes(), 0)
    for damage in ("paint", "swap"):
        assert crops[damage]["auc"] == 1.0 and crops[damage]["ties"] == 0.0
        assert crops[damage]["moved"] == 0.0 and crops[damage]["fell"] > 1
        assert crops[damage]["n"] == 4 and crops[damage]["failed"] == 0.0
    # Nothing is to be seen in grey, so nothing says which region would have been the damaged one.
    assert crops["grey"]["auc"] == pytest.approx(0.5, abs=0.05) and crops["grey"]["moved"] > 1
    written = measured(ways["written"], judge, scenes(), 0)
    assert written["paint"]["auc"] == 0.5 and written["paint"]["ties"] == 1.0
    assert written["paint"]["fell"] == 0.0 and written["paint"]["before"] == pytest.approx(0.7)
    whole = measured(ways["whole"], judge, scenes(), 0)
    assert whole["paint"]["auc"] == 0.5 and whole["paint"]["ties"] == 1.0


def test_a_judge_that_cannot_write_a_list_is_told_of_and_asked_once() -> None:
    judge = Seeing()
    pipeline = judging("judge.retries=0", "judge.max_new_tokens=4")
    found = measured(ways_of(pipeline)[0]["written"], judge, scenes(), 0)
    assert found == {"not_asked": "no reply to the undamaged pictures could be read", "failed": 1.0, "asked": 8}
    assert judge.written == 4


def test_a_picture_with_nothing_to_swap_is_counted() -> None:
    alone = [replace(scene, phrases=("a red square", "a red square")) for scene in scenes(2)]
    assert damaged_picture(alone, 0, "swap", 0) is None and damaged_picture(alone, 0, "foreign", 0) is None
    mixed = [alone[0], *scenes(3)]
    found = measured(ways_of(judging())[0]["crops"], Seeing(), mixed, 0)
    assert (found["swap"]["n"], found["swap"]["not_possible"]) == (3, 1)
    assert (found["paint"]["n"], found["paint"]["not_possible"]) == (4, 0)


def test_questions_about_listed_boxes() -> None:
    shapes = listed_template(judging(), None)
    assert isinstance(shapes, Template) and shapes.name == "shapes_listed"
    real = listed_template(judging("judge.local_template=local_crop"), None)
    assert isinstance(real, Template)
    question = real.render(
        phrase="a dog", boxes=[[0, 0, 9, 9], [9, 9, 20, 20]], number=2, width=20, height=20, prompt="x", think=False
    )
    assert "Region 2: [9, 9, 20, 20]" in question and "object in region 2" in question
    assert "must not name" in str(listed_template(judging("judge.readout=likelihood"), None))
    with pytest.raises(UserError, match="shapes_global never mentions"):
        listed_template(judging(), "shapes_global")


def test_settings_without_regions_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    for words in (["regions.kind=none"], ["judge.regional=boxes", "judge.local_template=regional_boxes"]):
        with pytest.raises(UserError, match=words[0].split("=")[0]):
            localise(RECIPE, [*words, "judge.readout=generate"], tmp_path)


def test_the_command_on_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["calibrate", "--localise", "eval.prompts=12", "eval.num_timesteps=9", "judge.max_new_tokens=3"]
    assert main([*words, "judge.retries=0", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "localise.json").read_text())
    used = result["pictures"]["used"]
    assert result["pictures"]["looked_at"] == 12 and used + result["pictures"]["without_two_regions"] == 12
    crops = result["ways"]["crops"]["paint"]
    assert crops["n"] == used and crops["auc"] > 0.9 and crops["moved"] < 0.2 < crops["fell"]
    assert result["ways"]["whole"]["paint"]["same_picture"] == 0.5
    assert result["ways"]["written"]["not_asked"].startswith("no reply")
    text = (tmp_path / "localise.md").read_text()
    assert text == capsys.readouterr().out
    assert f"| painted over | each region's own crop | {used} |" in text
    assert "Not measured: listed boxes, one written reply: no reply" in text
    assert main(["calibrate", "--localise", "--readouts", "logprob", "--out", str(tmp_path)]) == 2
    assert "judge.readout" in capsys.readouterr().err
    assert main(["calibrate", "--listed", "listed_box", "--out", str(tmp_path)]) == 2
    assert "belongs to --localise" in capsys.readouterr().err
