"""Statistics against values worked out by hand and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from srum_ds.evaluation.statistics import (
    Estimate,
    auc,
    by_category,
    estimate,
    paired_difference,
    paired_interval,
)


def test_mean_and_standard_error_by_hand() -> None:
    # 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14, s^2 = 14/3, stderr = sqrt(14/12).
    found = estimate([1, 2, 3, 6])
    assert found.mean == 3
    assert found.stderr == pytest.approx(math.sqrt(14 / 12))
    assert found.n == 4


def test_zero_one_outcomes_give_the_binomial_error() -> None:
    found = estimate([1] * 40 + [0] * 60)
    assert found.mean == pytest.approx(0.4)
    assert found.stderr == pytest.approx(math.sqrt(0.4 * 0.6 / 99))


def test_pairing_removes_what_pairs_share() -> None:
    # base 1 0 1 0, trained 1 1 1 0: differences 0 1 0 0, mean 1/4, s^2 = 1/4, stderr = 1/4.
    found = paired_difference([1, 0, 1, 0], [1, 1, 1, 0])
    assert found == Estimate(0.25, 0.25, 4)
    assert found.z == pytest.approx(1.0)
    worse = paired_difference([1, 1, 1, 0], [1, 0, 1, 0])
    assert worse.mean == -0.25 and worse.z == pytest.approx(-1.0)


def test_standard_error_is_the_spread_of_repeated_experiments() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((2000, 300)) < 0.4
    trained = np.where(rng.random((2000, 300)) < 0.3, True, base)
    found = [paired_difference(a, b) for a, b in zip(base, trained, strict=True)]
    spread = np.std([item.mean for item in found])
    assert np.mean([item.stderr for item in found]) == pytest.approx(spread, rel=0.05)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    truth = 0.6 * 0.3
    hits = 0
    for _ in range(200):
        base = rng.random(200) < 0.4
        trained = np.where(rng.random(200) < 0.3, True, base)
        low, high = paired_interval(base, trained, resamples=500)
        hits += low <= truth <= high
    # 190 expected, standard deviation 3.
    assert 180 <= hits <= 199


def test_interval_is_repeatable_and_survives_equal_pairs() -> None:
    base, trained = [0.0, 1, 0, 0, 1, 0], [1.0, 1, 0, 1, 1, 0]
    low, high = paired_interval(base, trained)
    assert (low, high) == paired_interval(base, trained)
    assert low < paired_difference(base, trained).mean < high
    assert paired_interval([0, 1], [0, 1]) == (0.0, 0.0)
    assert paired_interval([0.5], [1.0]) == (0.5, 0.5)


def test_undefined_errors_are_said_to_be_so() -> None:
    assert math.isnan(estimate([1.0]).stderr)
    assert Estimate(0.1, 0.0, 5).z == math.inf
    assert Estimate(-0.1, 0.0, 5).z == -math.inf
    assert math.isnan(Estimate(0.0, 0.0, 5).z)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_what_cannot_be_averaged_is_refused(values: list) -> None:
    with pytest.raises(ValueError):
        estimate(values)


def test_pairs_of_different_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 against 3"):
        paired_difference([1, 2], [1, 2, 3])


def test_categories_keep_their_order_and_members() -> None:
    found = by_category(["b", "a", "b", "a"], [1, 0, 0, 0])
    assert list(found) == ["b", "a"]
    assert found["b"] == Estimate(0.5, 0.5, 2)
    assert found["a"] == Estimate(0.0, 0.0, 2)
    with pytest.raises(ValueError, match="1 categories but 2 values"):
        by_category(["a"], [1, 2])


def test_auc_by_hand() -> None:
    # Pairs (true, false): 0.9 > 0.1, 0.9 > 0.5, 0.5 > 0.1, 0.5 = 0.5 -> 3.5 of 4.
    assert auc([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0]) == pytest.approx(3.5 / 4)
    assert auc([0.9, 0.5, 0.5, 0.1, math.nan], [1, 1, 0, 0, 1]) == pytest.approx(3.5 / 4)
    assert math.isnan(auc([0.1, 0.2], [1, 1]))
    with pytest.raises(ValueError, match="1 scores but 2"):
        auc([0.1], [1, 0])
