"""ReasonBench: how sections are asked, and what the replies are worth, by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks import Asks, Figure, load_benchmark
from srum_ds.evaluation.benchmarks.reasonbench import BENCHMARK, ReasonBenchGrading, read
from srum_ds.judges.protocol import Reply
from srum_ds.prompts.records import write_records
from srum_ds.types import Prompt

TWO = [["Is it so?", "1: yes; 0: no"], ["And that?", "1: yes; 0.5: half; 0: no"]]
ONE = [["Is it sharp?", "1: yes; 0: no"]]
IDIOM = Prompt("i", "to break the ice", "idiom", (), {"sections": {"reason": TWO, "quality": ONE}})
ENTITY = Prompt("e", "the city of light", "entity", (), {"sections": {"reason": TWO, "details": TWO, "quality": ONE}})


def _said(score: Any) -> Reply:
    return Reply(("It shows a man.", json.dumps({"reason": ["because"], "score": score})))


def _grade(prompt: Prompt, replies: Mapping[str, Reply]) -> Any:
    return ReasonBenchGrading().grade(prompt, replies)


def test_each_section_is_asked_after_a_description_of_its_own() -> None:
    questions = ReasonBenchGrading().questions(ENTITY)
    assert [question.key for question in questions] == ["reason", "details", "quality"]
    for question in questions:
        describe, task = question.turns
        assert "Describe" in describe and "q1: " in task and "c1: " in task
        assert question.picture_first and question.max_tokens == 1000
        # What the prompt asks for must not help the description, nor one section another.
        assert ENTITY.text not in describe + task
    assert "q2: And that?\nc2: 1: yes; 0.5: half; 0: no" in questions[0].turns[1]
    assert "the 2 scores" in questions[0].turns[1] and "the 1 scores" in questions[2].turns[1]
    schema = questions[0].schema
    assert schema is not None and schema["properties"]["score"]["minItems"] == 2
    assert [question.key for question in ReasonBenchGrading().questions(IDIOM)] == ["reason", "quality"]


def test_accuracy_is_the_mean_of_reason() -> None:
    grade = _grade(IDIOM, {"reason": _said([1, 0.5]), "quality": _said([0])})
    assert grade.value == 75.0 and grade.parts == {"reason": 75.0, "quality": 0.0}
    assert grade.failure == "" and grade.raw is None and "because" in grade.words


def test_accuracy_of_entities_is_seven_parts_of_it_and_three_of_other_details() -> None:
    grade = _grade(ENTITY, {"reason": _said([1, 0]), "details": _said(["1", 1.0]), "quality": _said([0.5])})
    assert grade.value == pytest.approx(0.7 * 50 + 0.3 * 100)
    assert grade.parts == {"reason": 50.0, "details": 100.0, "quality": 50.0}


@pytest.mark.parametrize("score", [[1], [1, 1, 1], [1, 2], [1, None], [True, 1], "1, 1", 1, None, {"s1": 1, "s2": 1}])
def test_a_list_of_another_length_or_kind_is_a_failure(score: Any) -> None:
    grade = _grade(ENTITY, {"reason": _said([1, 1]), "details": _said(score), "quality": _said([1])})
    assert grade.value is None and grade.failure.startswith("details: score is not 2 numbers from 0 to 1")
    assert grade.parts == {"reason": 100.0, "details": None, "quality": 100.0}


def test_failures_name_their_section_and_quality_fails_alone() -> None:
    replies = {"reason": Reply(error="429"), "details": Reply(("x", "prose")), "quality": _said([1])}
    grade = _grade(ENTITY, replies)
    assert grade.value is None
    assert grade.failure == "reason: 429; details: no JSON object, or not a single one, in the reply 'prose'"
    grade = _grade(IDIOM, {"reason": _said([1, 1]), "quality": Reply(error="cut off")})
    assert grade.value == 100.0 and grade.parts["quality"] is None and grade.failure == ""
    assert "quality: cut off" in grade.words


def test_prompts_without_questions_are_refused(tmp_path: Path) -> None:
    grading = ReasonBenchGrading()
    for prompt in (
        Prompt("p", "a car", "color"),
        Prompt("p", "a car", "idiom"),
        Prompt("p", "a car", "entity", (), {"sections": {"reason": TWO, "quality": ONE}}),
    ):
        with pytest.raises(UserError, match="prompt 'p' has no questions of T2I-ReasonBench"):
            grading.questions(prompt)
    with pytest.raises(UserError, match="sections: quality: expected a list"):
        grading.questions(Prompt("p", "a car", "idiom", (), {"sections": {"reason": TWO, "quality": []}}))
    with pytest.raises(UserError, match="KaiyueSun98/T2I-ReasonBench with --prompts"):
        read(None)
    write_records(tmp_path / "prompts.jsonl", [IDIOM, ENTITY])
    assert read(tmp_path / "prompts.jsonl") == [IDIOM, ENTITY]


def test_overall_is_the_mean_of_four_categories() -> None:
    found = load_benchmark("reasonbench")
    assert found.grading is BENCHMARK.grading and isinstance(found.grading, Asks)
    assert found.full == 100.0 and found.part_figures == ("quality",)
    names = ["idiom", "textual_image", "entity", "scientific"]
    assert found.figures(names) == [Figure("overall", {name: 0.25 for name in names})]
    assert "no licence" in found.notice
