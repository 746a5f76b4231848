"""Tokens that spell an answer, by hand."""

import math

import pytest

from srum_ds.judges.words import answer_of, answer_probabilities


def test_spellings_of_an_answer() -> None:
    assert [answer_of(token, ("yes", "no")) for token in ("yes", " Yes", "NO\n", "not", "y", "", " ")] == [
        0, 0, 1, None, None, None, None,
    ]  # fmt: skip
    # answers that differ in case alone have a spelling each
    assert [answer_of(token, ("yes", "Yes", "no")) for token in ("Yes", "yes", "YES")] == [1, 0, 0]


def test_probabilities_of_spellings_are_added_up() -> None:
    tokens = [("Yes", math.log(0.5)), (" yes", math.log(0.25)), ("The", math.log(0.2)), ("no", -9999.0)]
    found, spelled = answer_probabilities(tokens, ("yes", "no", "maybe"))
    assert found == pytest.approx((0.75, 0.0, 0.0)) and spelled == 3
    assert answer_probabilities([("no", math.nan), ("a", 0.0)], ("yes", "no")) == ((0.0, 0.0), 0)
