"""From log-probabilities to scores."""

from __future__ import annotations

import math

import pytest
import torch

from srum_ds.rewards.scores import likelihood_score, scale_score, yes_no_score
from srum_ds.types import Status


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


def test_expected_rating_by_hand() -> None:
    # (0 * -1 + 0.2 * 0 + 0.6 * 1) / 0.8, then a certain worst, then all on the middle
    score, status = scale_score(logs([0.0, 0.2, 0.6], [1.0, 0.0, 0.0], [0.0, 0.5, 0.0]))
    assert score.tolist() == pytest.approx([0.75, -1.0, 0.0], abs=1e-6)
    assert status.tolist() == [Status.PARSED] * 3
    # five ratings: 0.5 * 0.5 + 0.5 * 1.0
    score, _ = scale_score(logs([0.0, 0.0, 0.0, 0.1, 0.1]))
    assert score.tolist() == pytest.approx([0.75], abs=1e-6)
    # two ratings are a no and a yes
    pair = logs([0.2, 0.6])
    assert scale_score(pair)[0].tolist() == pytest.approx(yes_no_score(pair.flip(1))[0].tolist(), abs=1e-6)


def test_ratings_without_mass_fail() -> None:
    rows = torch.tensor([[-9.0, -9.0, -9.0], [math.nan, -1.0, -1.0], [-math.inf] * 3])
    score, status = scale_score(rows)
    assert status.tolist() == [Status.FAILED] * 3
    assert score.isnan().all()
    with pytest.raises(ValueError, match="two ratings"):
        scale_score(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="more than 1"):
        scale_score(torch.zeros(2, 3))


def test_likelihood_by_hand() -> None:
    value = torch.tensor([-2.0, -3.0, -2.5, -2.0])
    blank = torch.tensor([-3.0, -2.0, -2.5, -2.5])
    score, status = likelihood_score(value, blank, temperature=0.5)
    assert score.tolist() == pytest.approx([1 / 1.5, -1 / 1.5, 0.0, 0.5], abs=1e-6)
    assert status.tolist() == [Status.PARSED] * 4


def test_likelihood_keeps_the_order_of_a_prompts_samples_and_fails_on_no_number() -> None:
    value = torch.linspace(-40, -1, 200)
    score, _ = likelihood_score(value, torch.full((200,), -3.0))
    assert (score.diff() > 0).all()
    score, status = likelihood_score(torch.tensor([math.nan, -math.inf, -1.0]), torch.tensor([-1.0, -1.0, math.nan]))
    assert status.tolist() == [Status.FAILED] * 3
    assert score.isnan().all()
    with pytest.raises(ValueError, match="above 0"):
        likelihood_score(value, value, 0.0)
