"""From answer probabilities and written replies to scores."""

from __future__ import annotations

import math

import pytest
import torch

from srum_ds.models.base import Status
from srum_ds.rewards.readouts import parse_score, yes_no_score


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_yes_no_by_hand() -> None:
    score, status = yes_no_score(logs([0.6, 0.2], [0.1, 0.3], [0.25, 0.25], [0.5, 0.0], [0.0, 1.0]))
    assert score.tolist() == pytest.approx([0.5, -0.5, 0.0, 1.0, -1.0], abs=1e-6)
    assert status.tolist() == [Status.PARSED] * 5
    assert score.dtype == torch.float32


def test_only_the_share_between_yes_and_no_matters() -> None:
    score, _ = yes_no_score(logs([0.6, 0.2], [0.06, 0.02]))
    assert score.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_precision_holds_at_the_ends() -> None:
    score, _ = yes_no_score(torch.tensor([[-1e-7, -12.0], [-2e-7, -11.0]]))
    assert score[0] > score[1]
    assert float(1 - score[0]) == pytest.approx(2 * math.exp(-12), rel=0.02)


def test_answers_that_carry_no_mass_or_are_no_numbers_fail() -> None:
    rows = torch.tensor(
        [
            [math.log(0.02), math.log(0.02)],
            [-math.inf, -math.inf],
            [math.nan, -0.1],
            [math.inf, -0.1],
            [math.log(0.03), math.log(0.03)],
        ]
    )
    score, status = yes_no_score(rows)
    assert status.tolist() == [Status.FAILED] * 4 + [Status.PARSED]
    assert score[:4].isnan().all()
    assert float(score[4]) == pytest.approx(0.0, abs=1e-6)
    assert yes_no_score(rows, min_mass=0.01)[1].tolist()[0] == Status.PARSED


def test_spellings_of_an_answer_add_up() -> None:
    # yes, Yes, no, No
    score, _ = yes_no_score(logs([0.1, 0.5, 0.15, 0.05]))
    assert score.tolist() == pytest.approx([0.5], abs=1e-6)


def test_no_questions_no_scores() -> None:
    score, status = yes_no_score(torch.zeros(0, 2))
    assert score.shape == status.shape == (0,)


def test_logits_and_odd_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 1"):
        yes_no_score(torch.tensor([[2.0, 1.0]]))
    with pytest.raises(ValueError, match="A even"):
        yes_no_score(torch.zeros(4, 3))


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
