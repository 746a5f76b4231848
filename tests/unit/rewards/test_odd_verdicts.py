"""Replies that looked like a score and were none, or were one on a scale of their own."""

from __future__ import annotations

import math
import time

import pytest

from srum_ds.rewards.judge.parsing import parse_regions, parse_score
from srum_ds.types import Status


@pytest.mark.parametrize(
    "reply",
    [
        "Score: 0\u00b78",
        "Score: 0 .8",
        "Score: 0. 8",
        "Score: 1/" + "9" * 400,
        "Score: 0.5~0.7",
        "Score: 0.5 or 0.6",
        "Score: 0.5, 0.7",
        "Score: 0.5 + 0.2 = 0.7",
        "Score: 1 000",
        "Score: 1\\10",
        "Score: 1 : 10",
        "Score: 1 out of ten",
        "Score: 1 of the 4",
        "Score: 1\u2030",
        "Score: 1 May 2024",
        "Score: 4 stars",
        "Score: 0 issues",
        "Score: 1 minor error",
        "Score: 1 point deducted",
        "Score: > 0.5",
        "Score: -1 (worst) to 1 (best)",
        "Score: 1 = right, 0 = wrong",
        "Score: 1 if it is red, else 0",
        "Score: 8/10 = 0.6",
        "Score: 1 (10%)",
        "A score of 1 would need a square, which is missing.",
        "I would not give a score of 1.",
        "If there were a square the score would be 1.",
        "The maximum score is 1.",
        "Out of 10, I give a score of 7",
        "It is red [1].",
        "(1) It is red",
        "**1** red circle is there",
        "3/4 of a circle is there",
        "It is open 24/7",
        '{"score": 0.5, "score": -0.5}',
        '{"score": 0.5}\n{"score": -0.5}',
        "<|channel|>analysis<|message|>Score: 1",
        "<|START_THINKING|>Score: 1",
        "<seed:think>Score: 1",
    ],
)
def test_what_only_looks_like_a_score_fails(reply: str) -> None:
    score, status = parse_score(reply)
    assert status == Status.FAILED and math.isnan(score)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Score: 1 (0-10)", 0.1),
        ("Score: 1 [1..5]", 0.2),
        ("Score: 1 (max. 5)", 0.2),
        ("Score: 1 on a 1-10 scale", 0.1),
        ("Score (max 10): 1", 0.1),
        ("Score (5-point): 1", 0.2),
        ("Score: 1\u5206\uff08\u6ee1\u520610\u5206\uff09", 0.1),
        ('{"score": 1, "scale": "1-10"}', 0.1),
        ('{"score": "1", "max_score": 10}', 0.1),
        ("Score: 0\u200b.8", 0.8),
        ("Score: 0.5 (-1 to 1)", 0.5),
        ("Score: 0.7 (70%)", 0.7),
        ("Score: 8/10 = 0.8", 0.8),
        ("Score: 0.5, 2 circles are missing", 0.5),
        ("Score: 0.5 (3 of 4 are there)", 0.5),
        ("Score: <0.5>", 0.5),
        ("Score: 4/5 stars", 0.8),
        ("Score: 1 no errors", 1.0),
        ("Score: 1 because errors are absent", 1.0),
        ("The answer is \\boxed{1}", 1.0),
        ("It is all there.\n**1**", 1.0),
        ("<|channel|>analysis<|message|>Score: 1<|end|><|start|>assistant<|channel|>final<|message|>Score: 0.2", 0.2),
        ("<|START_THINKING|>Score: 1<|END_THINKING|>Score: 0.2", 0.2),
        ("<|begin_of_thought|>Score: 1<|end_of_thought|>Score: 0.2", 0.2),
        ('<think effort="low">Score: 1</think>Score: 0.2', 0.2),
    ],
)
def test_the_scale_and_the_end_of_thinking_are_seen_in_other_spellings(reply: str, expected: float) -> None:
    assert parse_score(reply) == (pytest.approx(expected), Status.PARSED)


@pytest.mark.parametrize(
    "reply",
    [
        '{"Region B": -0.5, "Region A": 0.8}',
        '{"R2": -0.5, "R1": 0.8}',
        '{"#2": -0.5, "#1": 0.8}',
        '{"Region 2 (a dog)": -0.5, "Region 1 (a cat)": 0.8}',
        '{"regions": {"2": -0.5, "1": 0.8}, "overall": 0.1}',
        '{"result": {"regions": {"2": -0.5, "1": 0.8}}}',
        '{"2": -0.5, "1": 0.8, "note": "none"}',
        '{"regions": [0.8, -0.5]}',
        "[0.8, -0.5]",
        '[{"region_id": 2, "score": -0.5}, {"region_id": 1, "score": 0.8}]',
        '[{"bbox_2d": [1, 2, 3, 4], "score": 0.8}, {"bbox_2d": [5, 6, 7, 8], "score": -0.5}]',
        'Here they are: {"Region 2": -0.5, "Region 1": 0.8}',
        "Region 2: -0.5, Region 1: 0.8",
        "Region 2 score: -0.5 Region 1 score: 0.8",
        "Score for region 2: -0.5\nScore for region 1: 0.8",
        "\u533a\u57df2\uff1a-0.5\n\u533a\u57df1\uff1a0.8",
    ],
)
def test_regions_are_told_apart_by_other_spellings_of_their_names(reply: str) -> None:
    assert [found.score for found in parse_regions(reply, 2)] == [0.8, -0.5]


@pytest.mark.parametrize(
    "reply",
    ['{"a cat": 0.8, "a dog": -0.5}', '{"1": 0.8, "1": -0.5}', "[0.8]", '{"confidence": 0.9, "overall": 0.5}'],
)
def test_regions_that_nobody_can_tell_apart_fail(reply: str) -> None:
    assert all(found.status == Status.FAILED for found in parse_regions(reply, 2))


def test_a_scale_above_a_list_of_regions_counts_for_all() -> None:
    found = parse_regions("Scores (out of 10):\nRegion 1: 5\nRegion 2: 1", 2)
    assert all(region.status == Status.FAILED for region in found)


@pytest.mark.parametrize("begins", ["Score: 1", "The score is 1"])
def test_a_reply_that_ends_in_white_space_takes_no_time(begins: str) -> None:
    start = time.process_time()
    assert parse_score(begins + " " * 20_000) == (1.0, Status.PARSED)
    assert time.process_time() - start < 2
