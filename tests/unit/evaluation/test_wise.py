"""Both editions of WISE: how they are asked, what replies are worth, and the weights of the categories."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks import Asks, load_benchmark
from srum_ds.evaluation.benchmarks.wise import (
    VERIFIED_WEIGHTS,
    WEIGHTS,
    WISE,
    WISE_VERIFIED,
    WiseGrading,
    WiseVerifiedGrading,
)
from srum_ds.judges.protocol import Reply
from srum_ds.prompts.records import write_records
from srum_ds.types import Prompt

PROMPT = Prompt("w", "the pastry of a festival", "culture", (), {"explanation": "this means {mooncakes}"})
SIX = ("culture", "time", "space", "biology", "physics", "chemistry")


def _said(text: str) -> dict[str, Reply]:
    return {"score": Reply((text,))}


@pytest.mark.parametrize(("grading", "tokens"), [(WiseGrading(), 2000), (WiseVerifiedGrading(), 500)])
def test_text_stands_before_the_picture_after_a_system_turn(
    grading: WiseGrading | WiseVerifiedGrading, tokens: int
) -> None:
    (question,) = grading.questions(PROMPT)
    assert not question.picture_first and question.system and question.max_tokens == tokens
    (text,) = question.turns
    assert 'PROMPT: "the pastry of a festival"\nEXPLANATION: "this means {mooncakes}"' in text
    with pytest.raises(UserError, match="prompt 'x' has no explanation"):
        grading.questions(Prompt("x", "a car"))


def test_three_scores_are_weighed() -> None:
    grade = WiseGrading().grade(PROMPT, _said('{"consistency": 2, "realism": 1, "aesthetic_quality": 0}'))
    assert grade.value == pytest.approx((0.7 * 2 + 0.2 * 1 + 0.1 * 0) / 2)
    assert grade.parts == {"consistency": 1.0, "realism": 0.5, "aesthetic_quality": 0.0}
    best = WiseGrading().grade(PROMPT, _said('{"consistency": "2", "realism": 2.0, "aesthetic_quality": "2/2"}'))
    assert best.value == pytest.approx(1.0)


@pytest.mark.parametrize(
    "text",
    [
        '{"consistency": 2, "realism": 1}',
        '{"consistency": 3, "realism": 1, "aesthetic_quality": 0}',
        '{"consistency": 1.5, "realism": 1, "aesthetic_quality": 0}',
        '{"consistency": true, "realism": 1, "aesthetic_quality": 0}',
        "Consistency is high",
        "",
    ],
)
def test_what_is_no_triple_of_scores_fails(text: str) -> None:
    grade = WiseGrading().grade(PROMPT, _said(text))
    assert grade.value is None and grade.failure and grade.words == text
    assert set(grade.parts.values()) == {None}


def test_the_verified_edition_is_binary() -> None:
    grading = WiseVerifiedGrading()
    assert grading.grade(PROMPT, _said('{"score": 1}')).value == 1.0
    assert grading.grade(PROMPT, _said('<think>0?</think>{"score": 0}')).value == 0.0
    for text in ('{"score": 0.5}', '{"score": 2}', '{"score": false}', "Score: 1", '{"score": 1} {"score": 0}'):
        grade = grading.grade(PROMPT, _said(text))
        assert grade.value is None and grade.failure
    failed = grading.grade(PROMPT, {"score": Reply(error="timed out")})
    assert failed.value is None and failed.failure == "timed out"


def test_weights_are_the_published_ones() -> None:
    assert WEIGHTS == {"culture": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
    assert sum(WEIGHTS.values()) == pytest.approx(1) and sum(VERIFIED_WEIGHTS.values()) == pytest.approx(1)
    (overall,) = WISE.figures(SIX)
    assert overall.name == "overall" and overall.weights == pytest.approx(WEIGHTS)
    (overall,) = WISE_VERIFIED.figures(SIX)
    assert overall.weights == pytest.approx(VERIFIED_WEIGHTS)
    # Of chosen categories: 0.4 and 0.1 of 0.5.
    assert WISE.figures(["culture", "physics"])[0].weights == pytest.approx({"culture": 0.8, "physics": 0.2})
    with pytest.raises(UserError, match="WISE has no category 'color'"):
        WISE.figures(["color"])


def test_they_are_two_benchmarks_and_need_the_users_files(tmp_path: Path) -> None:
    for name, benchmark, folder in (
        ("wise", WISE, "WISE_legacy/data"),
        ("wise_verified", WISE_VERIFIED, "data_verified"),
    ):
        found = load_benchmark(name)
        assert found.grading is benchmark.grading and found.name == name and isinstance(found.grading, Asks)
        assert found.full == 1.0 and "no licence" in found.notice
        with pytest.raises(UserError, match=f"--benchmark {name}: its prompts.*PKU-YuanGroup/WISE, or its {folder}"):
            found.read(None)
        write_records(tmp_path / f"{name}.jsonl", [PROMPT])
        assert found.read(tmp_path / f"{name}.jsonl") == [PROMPT]
    assert WISE.part_figures == ("consistency", "realism", "aesthetic_quality")
