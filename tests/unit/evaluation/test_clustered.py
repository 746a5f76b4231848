"""Clustered errors, intervals and paired differences, against values worked out by hand and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from srum_ds.evaluation.clustered import (
    clustered_mean,
    interval,
    paired,
    smallest_difference,
    unpaired_error,
    weighted_mean,
)
from srum_ds.evaluation.statistics import estimate


def test_clusters_of_one_give_the_plain_error() -> None:
    values = [1.0, 2, 3, 6]
    found = clustered_mean(values, "abcd")
    plain = estimate(values)
    assert (found.mean, found.n, found.clusters) == (3, 4, 4)
    assert found.stderr == pytest.approx(plain.stderr)


def test_four_equal_pictures_of_a_prompt_tell_no_more_than_one() -> None:
    once = clustered_mean([1.0, 2, 3, 6], "abcd")
    four_times = clustered_mean(np.repeat([1.0, 2, 3, 6], 4), np.repeat(list("abcd"), 4).tolist())
    assert four_times.stderr == pytest.approx(once.stderr)
    assert (four_times.n, four_times.clusters) == (16, 4)


def test_clustered_error_by_hand() -> None:
    # Clusters {0, 2}, {4}, {2}: mean 2. Sums of deviations -2, 2, 0; over n = 4: -1/2, 1/2, 0. Squares 1/2, times 3/2.
    found = clustered_mean([0.0, 2, 4, 2], ["a", "a", "b", "c"])
    assert found.mean == 2
    assert found.stderr == pytest.approx(math.sqrt(0.75))


def test_weighted_mean_of_separate_categories_by_hand() -> None:
    # k: 0, 2 -> mean 1, stderr 1. l: 10, 16 -> mean 13, stderr 3. 3/4 and 1/4: 4, sqrt(9/16 + 9/16).
    found = weighted_mean([0.0, 2, 10, 16], ["k", "k", "l", "l"], "abcd", {"k": 0.75, "l": 0.25})
    assert found.mean == 4
    assert found.stderr == pytest.approx(math.sqrt(18) / 4)


def test_a_prompt_in_two_categories_is_one_cluster() -> None:
    # Prompts a and b stand in both: deviations of half the weight add up, u_a = -(1/2 1/2 + 1/2 1/2) sqrt(2).
    values, categories = [0.0, 1, 0, 1], ["k", "k", "l", "l"]
    weights = {"k": 0.5, "l": 0.5}
    together = weighted_mean(values, categories, ["a", "b", "a", "b"], weights)
    apart = weighted_mean(values, categories, ["a", "b", "c", "d"], weights)
    assert together.stderr == pytest.approx(0.5)
    assert apart.stderr == pytest.approx(0.5 / math.sqrt(2))
    assert (together.clusters, apart.clusters) == (2, 4)


def test_a_category_without_values_does_not_vanish() -> None:
    with pytest.raises(ValueError, match="'l'"):
        weighted_mean([1.0, 2], ["k", "k"], "ab", {"k": 0.5, "l": 0.5})
    with pytest.raises(ValueError, match="not finite"):
        weighted_mean([1.0, math.nan], ["k", "k"], "ab", {"k": 1.0})
    with pytest.raises(ValueError, match="2 values"):
        clustered_mean([1.0, 2], "a")


def test_one_prompt_of_a_category_leaves_the_error_unknown() -> None:
    found = weighted_mean([1.0, 2, 3], ["k", "k", "l"], "abc", {"k": 0.5, "l": 0.5})
    assert found.mean == 2.25
    assert math.isnan(found.stderr)
    assert all(math.isnan(end) for end in interval([1.0, 2, 3], ["k", "k", "l"], "abc", {"k": 0.5, "l": 0.5}))


def _experiments(count: int, seed: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Values of 30 prompts in two categories, 4 pictures each, that share their prompt's luck."""
    rng = np.random.default_rng(seed)
    luck = np.repeat(rng.normal(size=(count, 30)), 4, axis=1)
    values = luck + 0.5 * rng.normal(size=(count, 120))
    categories = np.repeat(["k"] * 10 + ["l"] * 20, 4).tolist()
    return values, categories, np.repeat(np.arange(30), 4).astype(str).tolist()


def test_error_is_the_spread_of_repeated_experiments() -> None:
    values, categories, clusters = _experiments(1500, 0)
    weights = {"k": 0.5, "l": 0.5}
    found = [weighted_mean(row, categories, clusters, weights) for row in values]
    spread = np.std([item.mean for item in found])
    assert np.sqrt(np.mean([item.stderr**2 for item in found])) == pytest.approx(spread, rel=0.05)
    # The error that takes pictures for prompts is far too small.
    assert estimate(values[0]).stderr < 0.7 * found[0].stderr


def test_interval_covers_the_truth_and_repeats() -> None:
    values, categories, clusters = _experiments(300, 1)
    weights = {"k": 0.5, "l": 0.5}
    hits = 0
    for row in values:
        low, high = interval(row, categories, clusters, weights, resamples=400)
        hits += low <= 0 <= high
    # 285 expected of 300 (standard deviation 4); percentiles of 10 clusters cover a little less.
    assert 268 <= hits <= 297
    assert interval(values[0], categories, clusters, weights) == interval(values[0], categories, clusters, weights)


def test_interval_of_two_prompts_by_hand() -> None:
    # One of two is drawn: the resamples are 0 and 1, as wide as the data.
    assert interval([0.0, 1], ["k", "k"], "ab", {"k": 1.0}) == (0.0, 1.0)


def test_paired_differences_wins_ties_and_losses() -> None:
    base, other = [0.0, 50, 80, 20], [10.0, 50, 70, 60]
    found = paired(base, other, ["k"] * 4, "abcd", {"k": 1.0})
    # 10, 0, -10, 40: mean 10, s^2 = 1400 / 3.
    assert found.difference.mean == 10
    assert found.difference.stderr == pytest.approx(math.sqrt(1400 / 12))
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.interval[0] < 10 < found.interval[1]


def test_wins_count_only_categories_of_the_figure() -> None:
    found = paired([0.0, 0, 0], [1.0, 1, 1], ["k", "k", "other"], "abc", {"k": 1.0})
    assert (found.wins, found.difference.n) == (2, 2)


def test_smallest_difference_is_found_four_times_in_five() -> None:
    assert smallest_difference(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert unpaired_error(3.0, 4.0) == 5.0
    # 400 pairs, spread 2: stderr 0.1.
    truth = smallest_difference(0.1)
    samples = np.random.default_rng(2).normal(truth, 2.0, size=(1000, 400))
    found = np.abs(samples.mean(axis=1)) > 1.96 * samples.std(axis=1, ddof=1) / 20
    # Standard deviation 0.013.
    assert found.mean() == pytest.approx(0.8, abs=0.045)
