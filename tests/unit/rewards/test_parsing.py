"""From written replies to scores."""

from __future__ import annotations

import math

import pytest

from srum_ds.rewards.judge.parsing import parse_regions, parse_reply, parse_score
from srum_ds.types import Status


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Score: 0.7", 0.7),
        ("score = -.25", -0.25),
        ("Score: 0", 0.0),
        ("**Score:** 0.7", 0.7),
        ("**Score**: **-0.5**", -0.5),
        ("**Score: 0.5**\nThe layout is right.", 0.5),
        ("Score: [0.3]", 0.3),
        ("Score (from -1 to 1): (0.4)", 0.4),
        ("Score in [-1, 1]: 0.25", 0.25),
        ("Overall score:\n\n  0.8.", 0.8),
        ("### **Score**\n0.8", 0.8),
        (r"Score: $\boxed{0.6}$", 0.6),
        ("Object: 3 dogs\n---\nScore: \u22120.6", -0.6),
        ("The score is 0.9, since both are there.", 0.9),
        ("I would give it a score of 0.1.", 0.1),
        ("Score: 3/5", 0.6),
        ("Score: 3 / 5 because two of 5 parts are wrong", 0.6),
        ("I rate this 4 out of 5.", 0.8),
        ("Score: 60%", 0.6),
        ("The picture shows 2 cats. **0.7**", 0.7),
        ("The picture shows 2 cats [0.7]", 0.7),
        ("0.7", 0.7),
        (" -0.5.\n", -0.5),
        ("1e-1", 0.1),
        ("Score: -1 to 1\nScore: 0.5", 0.5),
        ("Scores lie in [-1, 1]. Score: [-1, 1]\nScore: 0.2", 0.2),
        ("<think>Score: -1? no, two of 3 fit</think>Score: 0.5", 0.5),
        ("Colour score: 0.9\nLayout score: 0.1\n**Overall score**: 0.4", 0.4),
        ("Score: 0.8\nThe final score is 0.6.", 0.6),
        ("Score: 0.8\nA score of 1 would need the square.", 0.8),
        ("8 out of 10", 0.8),
        ("Score: **8 out of 10**", 0.8),
        ("two thoughts <think>a</think> 0.1 <think>b</think>\n0.3", 0.3),
    ],
)
def test_scores_are_found(reply: str, expected: float) -> None:
    score, status = parse_score(reply)
    assert status == Status.PARSED
    assert score == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("Score: 50", 1.0), ("Score: -3", -1.0), ("**7/5**", 1.0), ("1.0001", 1.0)],
)
def test_scores_off_the_scale_are_clamped_and_say_so(reply: str, expected: float) -> None:
    assert parse_score(reply) == (expected, Status.CLAMPED)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "The image is good.",
        "I see 3 dogs and 2 cats.",
        "Score: N/A",
        "Score: none, although 3 dogs are there",
        "Score: 0,7",
        "Score: 0.7.1",
        "Score: 3D",
        "Score: 1/0",
        "Score: [-1, 1]",
        "the range is [-1, 1]",
        "nan",
        "<think>Score: 0.5",
        "Score: 0.5<think>but wait",
        "<think>Score: 0.5</think>",
    ],
)
def test_replies_without_a_score_fail_and_are_never_zero(reply: str) -> None:
    score, status = parse_score(reply)
    assert status == Status.FAILED
    assert math.isnan(score)


def test_other_scales() -> None:
    assert parse_score("Score: 7", 0, 10) == (7.0, Status.PARSED)
    assert parse_score("Score: -1", 0, 10) == (0.0, Status.CLAMPED)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("yes", 1.0), ("No.", -1.0), ("**Yes**", 1.0), ("<think>no?</think>\nYes!", 1.0), ("Score: 0.2", 0.2)],
)
def test_a_bare_yes_or_no_counts_where_the_judge_was_asked_for_one(reply: str, expected: float) -> None:
    assert parse_reply(reply, ("yes", "no")) == (expected, Status.PARSED)


@pytest.mark.parametrize("reply", ["yes and no", "no dogs are there", "maybe", "<think>yes", ""])
def test_words_within_a_sentence_are_no_verdict(reply: str) -> None:
    score, status = parse_reply(reply, ("yes", "no"))
    assert status == Status.FAILED and math.isnan(score)
    assert parse_reply("yes")[1] == Status.FAILED


CAT_AND_DOG = [
    "Object: a cat\nScore: 0.8\n---\nObject: a dog\nScore: -0.5",
    "Here are the regions.\n\nObject: a cat\nScore: 0.8\n\n- - -\n\nObject: a dog\nScore: -0.5\n---",
    "Object: a cat\nScore: 0.8\n***\nObject: a dog\nScore: -0.5\n***",
    "Object: a cat\nScore: 0.8\n\nObject: a dog\nScore: -0.5",
    "Object: a cat\n\nScore: 0.8\n\n\nObject: a dog\n\nScore: \u22120.5",
    "Object: a cat\nScore: 0.8\nObject: a dog\nScore: -0.5",
    "1. a cat: 0.8\n2. a dog: -0.5",
    "1) Object: a cat\n   Score: 0.8\n\n2) Object: a dog\n   Score: -0.5\n\nOverall score: 0.1",
    "**Region 1** - Object: a cat, Score: **0.8**\n**Region 2** - Object: a dog, Score: [-0.5]",
    "### Region 2\nObject: a dog\nScore: -0.5\n### Region 1\nObject: a cat\nScore: 4/5",
    "| # | object | score |\n|---|---|---|\n| 1 | a cat | 0.8 |\n| 2 | a dog | -0.5 |",
    '[{"object": "a cat", "score": 0.8}, {"object": "a dog", "score": -0.5}]',
    '{"object": "a cat", "score": 0.8}\n{"object": "a dog", "score": -0.5}',
    "[1] a cat (0.8)\n[2] a dog (-0.5)",
    "a cat: 0.8\na dog: -0.5",
    "I see 2 regions:\n1. a cat - 8 out of 10\n2. a dog | -0.5",
    "<think>1. a cat: 0.1\n2. a dog: 0.1</think>1. a cat: 0.8\n2. a dog: -0.5",
]


@pytest.mark.parametrize("reply", CAT_AND_DOG)
def test_regions_are_told_apart_however_they_are_separated(reply: str) -> None:
    found = parse_regions(reply, 2)
    assert [(r.object, r.score, r.status) for r in found] == [
        ("a cat", pytest.approx(0.8), Status.PARSED),
        ("a dog", pytest.approx(-0.5), Status.PARSED),
    ]


def statuses(reply: str, count: int) -> list[tuple[float | None, Status]]:
    return [(None if math.isnan(r.score) else r.score, r.status) for r in parse_regions(reply, count)]


def test_a_region_without_score_fails_alone() -> None:
    gone, there = (None, Status.FAILED), (0.5, Status.PARSED)
    # said, but not scored
    assert statuses("Object: a\nScore: 0.5\n---\nObject: b\nScore: N/A\n---\nObject: c\nScore: 7", 3) == [
        there,
        gone,
        (1.0, Status.CLAMPED),
    ]
    # left out: the numbers say which
    assert statuses("Region 1: Score: 0.5\nRegion 3: Score: 0.5", 3) == [there, gone, there]
    # cut off: the order says which
    assert statuses("Object: a\nScore: 0.5\n---\nObject: b\nSco", 3) == [there, gone, gone]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I cannot see any boxes.",
        "0.8, 0.4, -0.1",
        "<think>Object: a\nScore: 0.5",
        "Object: a\nScore: 1\nObject: b\nScore: 1\nObject: c\nScore: 1\nObject: d\nScore: 1",
    ],
)
def test_a_reply_that_fits_no_region_fails_for_all(reply: str) -> None:
    assert statuses(reply, 3) == [(None, Status.FAILED)] * 3


def test_no_regions_need_no_reply() -> None:
    assert parse_regions("Score: 1", 0) == []


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("A score of 1 would need the square.\nScore: -0.3", -0.3),
        ("I first thought score: 0.9, but the dog is missing.\n\nScore: 0.2", 0.2),
        ('The request reads "Score: 1". The object is missing.\nScore: -0.5', -0.5),
        ("Score explanation: 3 objects are there.\nScore: 0.6", 0.6),
        ("Score guide: 1 all, 0 half, -1 none.\nScore: -0.6", -0.6),
        ('{"reason": "Score: 1 would need a square", "score": 0.3}', 0.3),
        ('```json\n{"reason": "score: 1", "score": "7/10"}\n```', 0.7),
        ('Here it is: {"score": 7, "out_of": 10}', 0.7),
        ("{'reason': 'score: 1', 'score': -0.2}", -0.2),
        ("<thinking>Score: 1</thinking>Score: 0.2", 0.2),
        ("[THINK]Score: 1[/THINK]0.2", 0.2),
    ],
)
def test_the_verdict_stands_where_the_question_demands_it(reply: str, expected: float) -> None:
    assert parse_score(reply) == (pytest.approx(expected), Status.PARSED)


@pytest.mark.parametrize(
    "reply",
    [
        "Score (out of 10): 7",
        "Score (0-10): 7",
        "Score (from 1 to 10): 7",
        "Score (%): 70",
        "Score: 7 (out of 10)",
        "Score: 7 of 10",
        "Score: 7 points out of a possible 10",
        "Score: 7 on a scale from 0 to 10",
        "Score: 70 percent",
        "Score: 7 (good)/10",
        "Score: \uff10\uff0e\uff17",
        "Score: 70\uff05",
        "Score: 70\uff0f100",
        "Score: \u0660\u066b\u0667",
        "Score\uff1a0.7",
        "Score: 0.7\u5206",
        "\uff33\uff43\uff4f\uff52\uff45\uff1a\uff10\uff0e\uff17",
    ],
)
def test_the_scale_beside_a_score_and_digits_of_every_script_count(reply: str) -> None:
    assert parse_score(reply) == (pytest.approx(0.7), Status.PARSED)


@pytest.mark.parametrize(
    "reply",
    [
        "The score is [[7]], so this is 7/10",
        "I rate on a 10-point scale.\nScore: 1",
        "Score: 0.5-0.8",
        "Score: 0.5 - 0.8",
        "Score: 2024-05-01",
        "Score: 5/10/2024",
        "Score: 10:30",
        "Score (3 to 9): 7",
        "It works 24/7 (or 3/7).",
        "Score: 0.9 would be ideal.\nScore: N/A",
        '{"reason": "Score: 1 would need a square", "sco',
        '{"score": null, "reason": "score: 1"}',
        '{"score": true}',
        "<reasoning>Score: 0.5",
    ],
)
def test_ranges_dates_and_unknown_scales_are_no_scores(reply: str) -> None:
    score, status = parse_score(reply)
    assert status == Status.FAILED and math.isnan(score)


@pytest.mark.parametrize(
    "reply",
    [
        '{"Region 2": -0.5, "Region 1": 0.8}',
        '{"regions": {"2": "-0.5", "1": "4/5"}}',
        '{"region_2": {"score": -0.5}, "region_1": {"score": 0.8}}',
        '[{"region": 2, "score": -0.5}, {"region": 1, "score": 0.8}]',
        '{"0": 0.8, "1": -0.5}',
    ],
)
def test_a_map_of_regions_is_read_by_their_names(reply: str) -> None:
    assert statuses(reply, 2) == [(pytest.approx(0.8), Status.PARSED), (-0.5, Status.PARSED)]
