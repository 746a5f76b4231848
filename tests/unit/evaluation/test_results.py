"""results.json, scores.jsonl and eval.md from grades, against figures worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks import Asks, Benchmark, Detection, Figure, Grade, Published, equal_shares
from srum_ds.evaluation.result_tables import figure_rows, markdown, published_rows, remarks, screen_table
from srum_ds.evaluation.results import (
    CanaryResult,
    Chosen,
    build_results,
    read_results,
    read_scores,
    score_rows,
    write_results,
)
from srum_ds.evaluation.scored import Scored
from srum_ds.judges.protocol import Question
from srum_ds.types import Prompt

JUDGE = {"kind": "http", "model": "qwen", "under_test": False}


class Nobody:
    """Grades nothing: the grades are given."""

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        return []

    def grade(self, prompt: Prompt, replies: Any) -> Grade:
        raise AssertionError("grades are given")


def _figures(categories: Sequence[str]) -> list[Figure]:
    # As T2I-CompBench's: complex is one third of its three leaves, and overall the mean of two.
    leaves = ("complex", "complex_action", "complex_spatial")
    return [
        Figure("complex_mean", {name: 1 / 3 for name in leaves}),
        Figure("overall", {"color": 1 / 2, **{name: 1 / 6 for name in leaves}}),
    ]


BENCHMARK = Benchmark(
    name="toy",
    version="1",
    read=lambda path: [],
    grading=Nobody(),
    figures=_figures,
    full=100.0,
    part_figures=("quality",),
    published=[Published("BAGEL", {"color": 89.3, "overall": 82.18}, "arXiv, table 1")],
)
assert isinstance(BENCHMARK.grading, Asks)


def one(category: str, text: str, value: float | None, sample: int = 0, raw: float | None = None) -> Scored:
    failure = "" if value is not None else "the judge wrote prose"
    quality = None if value is None else value / 2
    grade = Grade(value, {"quality": quality}, failure, f"about {text}", raw)
    return Scored(Prompt(f"{category}-{text}", text, category), sample, f"images/{category}-{text}_000.png", grade)


WHOLE = [
    one("color", "a", 80.0),
    one("color", "b", 60.0),
    one("complex", "c", 90.0),
    one("complex", "d", 70.0),
    one("complex_action", "e", 50.0),
    one("complex_action", "f", 40.0),
    one("complex_spatial", "g", 20.0),
    one("complex_spatial", "h", 10.0),
]


def test_figures_by_hand() -> None:
    found = build_results(BENCHMARK, WHOLE, JUDGE)
    assert [found[key] for key in ("benchmark", "version", "judge", "n", "failures")] == ["toy", "1", JUDGE, 8, 0]
    means = {name: row["mean"] for name, row in found["by_category"].items()}
    assert means == {"color": 70, "complex": 80, "complex_action": 45, "complex_spatial": 15}
    assert found["by_category"]["color"]["stderr"] == pytest.approx(10)
    # (80 + 45 + 15) / 3 = 46.67 and (70 + 46.67) / 2 = 58.33.
    assert found["figures"]["complex_mean"]["mean"] == pytest.approx(140 / 3)
    assert found["overall"]["mean"] == pytest.approx(175 / 3)
    # Errors 10, 10, 5, 5 at weights 1/2, 1/6, 1/6, 1/6.
    error = math.sqrt(25 + (100 + 25 + 25) / 36)
    assert found["overall"]["stderr"] == pytest.approx(error)
    assert found["overall"] == found["figures"]["overall"]
    assert found["power"]["smallest_difference"] == pytest.approx(2.8016 * math.sqrt(2) * error, rel=1e-4)
    assert found["parts"]["quality"]["figures"]["overall"]["mean"] == pytest.approx(175 / 6)
    assert found["complete"] and found["canary"]["passed"] is None


def test_a_failure_is_counted_and_never_a_number() -> None:
    rows = [*WHOLE, one("color", "x", None, raw=-1.0)]
    found = build_results(BENCHMARK, rows, JUDGE)
    color = found["by_category"]["color"]
    assert (color["mean"], color["n"], color["failures"]) == (70, 2, 1)
    assert (found["n"], found["failures"], found["pictures"]) == (8, 1, 9)
    zero = build_results(BENCHMARK, rows, JUDGE, failures="zero")["by_category"]["color"]
    assert (zero["mean"], zero["n"], zero["failures"]) == (pytest.approx(140 / 3), 3, 1)
    released = build_results(BENCHMARK, rows, JUDGE, srum_compat=True)
    assert released["by_category"]["color"]["mean"] == pytest.approx(139 / 3)
    assert released["failures"] == 1


def test_overall_never_loses_a_category_in_silence() -> None:
    rows = [row for row in WHOLE if row.prompt.category != "complex_action"]
    failed = [*rows, one("complex_action", "e", None)]
    for lacking in (rows, failed):
        found = build_results(BENCHMARK, lacking, JUDGE)
        assert found["overall"]["mean"] is None and found["overall"]["stderr"] is None
        assert found["overall"]["lacks"] == ["complex_action"]
        assert found["by_category"]["complex_action"]["mean"] is None
        assert found["power"]["smallest_difference"] is None
        assert any("complex_action" in text and "no overall" in text for text in remarks(found))
    # Of means of means, the leaf leaves complex alone: (70 + (80 + 15) / 2) / 2.
    released = build_results(BENCHMARK, failed, JUDGE, srum_compat=True)
    assert released["overall"]["mean"] == pytest.approx(58.75)
    assert released["overall"]["partial"] and released["overall"]["lacks"] == ["complex_action"]


def test_a_chosen_category_without_an_answer_leaves_no_overall() -> None:
    rows = [*(row for row in WHOLE if row.prompt.category == "color"), one("complex", "e", None)]
    found = build_results(BENCHMARK, rows, JUDGE, partial=Chosen(("color", "complex")))
    assert found["overall"]["mean"] is None and not found["overall"]["partial"]
    assert "complex" in found["overall"]["lacks"]
    assert any("there is no overall" in text for text in remarks(found))
    # Nobody chose the other two: with an answer there is an overall of what was chosen.
    found = build_results(BENCHMARK, [*rows, one("complex", "f", 30.0)], JUDGE, partial=Chosen(("color", "complex")))
    assert found["overall"]["mean"] == pytest.approx((70 + 30) / 2)
    assert found["overall"]["weights"] == pytest.approx({"color": 1 / 2, "complex": 1 / 2})


def test_prompts_without_a_published_category_are_told_of() -> None:
    row = Published("BAGEL", {"color": 89.3, "texture": 80.0, "overall": 82.18}, "arXiv, table 1")
    rows = [one for one in WHOLE if one.prompt.category == "color"]
    benchmark = replace(BENCHMARK, figures=equal_shares, published=[row])
    found = build_results(benchmark, rows, JUDGE)
    assert "The prompts have nothing in texture: overall is not comparable with published rows." in remarks(found)
    assert not any(
        "texture" in said for said in remarks(build_results(benchmark, rows, JUDGE, partial=Chosen(limit=2)))
    )


def test_chosen_categories_are_marked_as_a_part() -> None:
    rows = [row for row in WHOLE if row.prompt.category == "color"]
    found = build_results(BENCHMARK, rows, JUDGE, partial=Chosen(("color",)))
    assert found["overall"]["mean"] == 70 and found["overall"]["partial"]
    assert found["overall"]["lacks"] == ["complex", "complex_action", "complex_spatial"]
    assert list(found["by_category"]) == ["color"]
    assert found["figures"]["complex_mean"]["mean"] is None
    assert found["partial"] == {"categories": ["color"], "limit": None}
    assert not found["complete"]
    assert any("not comparable" in text for text in remarks(found))


def test_missing_pictures_are_named() -> None:
    gone = Prompt("color-z", "z", "color")
    found = build_results(BENCHMARK, WHOLE, JUDGE, missing=[(gone, 2)])
    assert found["missing"] == [{"id": "color-z", "sample": 2, "category": "color"}]
    assert found["by_category"]["color"]["missing"] == 1 and found["overall"]["missing"] == 1
    assert not found["complete"]
    with pytest.raises(UserError, match="no prompts"):
        build_results(BENCHMARK, [], JUDGE)


def test_the_same_text_in_two_categories_is_one_prompt() -> None:
    rows = [
        one(name, text, value) for name in ("complex", "complex_action") for text, value in (("a", 0.0), ("b", 9.0))
    ]
    rows += [one(name, text, 1.0) for name in ("color", "complex_spatial") for text in "cd"]
    assert build_results(BENCHMARK, rows, JUDGE)["overall"]["prompts"] == 4


def test_files_come_back_as_they_were_and_hold_no_nan(tmp_path: Path) -> None:
    rows = [*WHOLE, one("color", "line\u2028<script>", None)]
    found = build_results(BENCHMARK, rows, JUDGE, canary=[CanaryResult("blank", True, "0")], drawn={"seed": 1})
    boxes = {("color-a", 0): [Detection("cat", 0.5, (0.0, 0.1, 0.5, 0.6))]}
    scores = score_rows(rows, boxes)
    write_results(tmp_path, found, scores)
    assert read_results(tmp_path) == json.loads(json.dumps(found))
    back = read_scores(tmp_path)
    assert back == scores
    assert back[0].boxes == [{"label": "cat", "score": 0.5, "box": [0.0, 0.1, 0.5, 0.6]}]
    assert (back[-1].value, back[-1].failure) == (None, "the judge wrote prose")
    first = (tmp_path / "results.json").read_bytes()
    write_results(
        tmp_path, build_results(BENCHMARK, rows, JUDGE, [CanaryResult("blank", True, "0")], drawn={"seed": 1}), scores
    )
    assert (tmp_path / "results.json").read_bytes() == first
    assert b"NaN" not in first


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="srum-ds eval score"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": 9}')
    with pytest.raises(UserError, match="schema"):
        read_results(tmp_path)
    (tmp_path / "scores.jsonl").write_text('\n{"id": 1\n')
    with pytest.raises(UserError, match="line 2"):
        read_scores(tmp_path)


def test_tables_show_n_failures_and_published_rows() -> None:
    found = build_results(BENCHMARK, [*WHOLE, one("color", "x", None)], JUDGE)
    rows = {row[0]: row[1:] for row in figure_rows(found)}
    assert rows["color"] == ["2", "1", "0", "70.00 ± 10.00", "60.00 to 80.00"]
    assert rows["overall"][:4] == ["8", "1", "0", "58.33 ± 5.40"]
    headings, published = published_rows(found)
    assert headings == ["model", "color", "overall", "source"]
    assert published == [["this folder", "70.00", "58.33", ""], ["BAGEL", "89.30", "82.18", "arXiv, table 1"]]
    text = markdown(found)
    assert "| color | 2 | 1 | 0 | 70.00 ± 10.00 | 60.00 to 80.00 |" in text
    assert "| BAGEL | 89.30 | 82.18 | arXiv, table 1 |" in text
    assert "1 of 9 pictures have no score" in text
    assert screen_table(found).row_count == len(rows)


def test_the_models_own_judgement_is_marked_at_its_numbers() -> None:
    found = build_results(BENCHMARK, WHOLE, {"kind": "self", "model": "abc", "under_test": True})
    assert all("†" in row[4] for row in figure_rows(found))
    assert "†" in published_rows(found)[1][0][1] and "†" not in published_rows(found)[1][1][1]
    text = markdown(found)
    assert "judged by the model under test itself" in text


def test_a_failed_canary_stands_first_and_replies_are_inert() -> None:
    canary = [CanaryResult("a blank picture must score below 20", False, "95 | <script>alert(1)</script>")]
    found = build_results(BENCHMARK, WHOLE, JUDGE, canary)
    assert found["canary"]["passed"] is False
    assert "do not believe" in remarks(found)[0]
    text = markdown(found)
    assert "<script" not in text and "95 \\|" in text


def test_figures_of_parts_pool_questions_and_not_pictures() -> None:
    def shares(categories: Sequence[str]) -> list[Figure]:
        return [Figure("overall", {"color": 1 / 3, "count": 1 / 3, "never": 1 / 3}, of_parts=True)]

    benchmark = replace(BENCHMARK, figures=shares, part_figures=("color", "count", "never"), published=[])
    grades = [
        Grade(50.0, {"color": 100.0, "count": 0.0}, weights={"color": 3.0, "count": 1.0}),
        Grade(20.0, {"color": 20.0}, weights={"color": 1.0}),
        Grade(80.0, {"count": 80.0}),
        Grade(None, {"count": None}, "prose"),
    ]
    rows = [Scored(Prompt(f"p{i}", f"text {i}", "all"), 0, "", grade) for i, grade in enumerate(grades)]
    found = build_results(benchmark, rows, JUDGE)
    # color: (3 x 100 + 20) / 4 = 80, count: (0 + 80) / 2 = 40; nobody asks for the third.
    assert found["overall"]["mean"] == pytest.approx(60)
    assert found["overall"]["weights"] == {"color": 0.5, "count": 0.5}
    assert (found["overall"]["failures"], found["overall"]["partial"]) == (1, False)
    assert found["parts"]["color"]["figures"]["overall"]["mean"] == pytest.approx(80)
    assert found["parts"]["count"]["figures"]["overall"]["failures"] == 1
    assert found["parts"]["never"]["figures"]["overall"]["mean"] is None
    assert found["by_category"]["all"]["mean"] == pytest.approx(50)
    text = markdown(found)
    # Influences 3 x 20 / 4 and -60 / 4 of two prompts: sqrt(2 x 2 x 15^2) = 30.
    assert "| color | 4 | 0 | 0 | 80.00 ± 30.00 |" in text
    assert text.count("| never | 0 | 0 | 0 | - | - |") == 1


def test_categories_stand_in_the_order_of_overall() -> None:
    found = build_results(BENCHMARK, WHOLE[::-1], JUDGE)
    assert list(found["by_category"]) == ["color", "complex", "complex_action", "complex_spatial"]
