"""Means, differences and intervals of pictures that come in clusters: four pictures of a prompt are not four prompts.

A figure is a weighted mean of categories' means, overall = sum_k w_k mean_k. Its error comes from the influence of each
cluster, u_c = sum_k w_k sqrt(C_k / (C_k - 1)) sum_{i in c and k} (x_i - mean_k) / n_k, as the root of sum_c u_c^2;
C_k clusters lie in category k. For one category it is the cluster-robust error of a mean (Liang and Zeger 1986, with
the usual C / (C - 1)); for categories that share no cluster it is sqrt(sum_k w_k^2 stderr_k^2); for clusters of one it
is s / sqrt(n).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

POWER = 0.8
LEVEL = 0.05
CONFIDENCE = 0.95
# Values that differ by less are a tie: they came through different sums.
_TIE = 1e-9


@dataclass(frozen=True)
class Clustered:
    """A mean, its standard error, the measurements in it and the clusters that they form.

    The error is NaN where a category that counts has one cluster alone: nothing then says how much it would vary.
    """

    mean: float
    stderr: float
    n: int
    clusters: int


@dataclass(frozen=True)
class Paired:
    """One run against another on the same pictures: ``difference`` is other - base, wins are the other's."""

    difference: Clustered
    interval: tuple[float, float]
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class _Table:
    """Sums and counts of C clusters in K categories, and the categories' weights."""

    sums_CK: np.ndarray
    counts_CK: np.ndarray
    weights_K: np.ndarray


def clustered_mean(values: ArrayLike, clusters: Sequence[Hashable]) -> Clustered:
    """The plain mean of finite values with its error over clusters. ValueError for none and for other lengths."""
    x = np.asarray(values, dtype=float)
    return weighted_mean(x, [""] * x.size, clusters, {"": 1.0})


def weighted_mean(
    values: ArrayLike,
    categories: Sequence[Hashable],
    clusters: Sequence[Hashable],
    weights: Mapping[str, float],
) -> Clustered:
    """sum_k w_k mean_k over finite values with the error of this module's first lines.

    Values of categories without a weight stay out. ValueError where a category with a weight has no value (it must not
    vanish from a mean), where a value is not finite, and for lists of different lengths.
    """
    table = _tabulate(values, categories, clusters, weights)
    counts_K = table.counts_CK.sum(axis=0)
    mean_K = table.sums_CK.sum(axis=0) / counts_K
    per_category_K = (table.counts_CK > 0).sum(axis=0)
    stderr = math.nan
    if (per_category_K > 1).all():
        correction_K = np.sqrt(per_category_K / (per_category_K - 1))
        influence_CK = (table.sums_CK - table.counts_CK * mean_K) / counts_K * correction_K
        stderr = float(np.sqrt(np.square(influence_CK @ table.weights_K).sum()))
    return Clustered(float(mean_K @ table.weights_K), stderr, int(counts_K.sum()), len(table.sums_CK))


def interval(
    values: ArrayLike,
    categories: Sequence[Hashable],
    clusters: Sequence[Hashable],
    weights: Mapping[str, float],
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval (percentiles) of ``weighted_mean``: clusters are drawn anew, those of each category apart.

    Of m clusters m - 1 are drawn and weighed m / (m - 1), which makes the spread of the resamples the unbiased one
    (Rao and Wu 1988). Both ends are NaN where the standard error is unknown. Raises what ``weighted_mean`` raises.
    """
    if math.isnan(weighted_mean(values, categories, clusters, weights).stderr):
        return math.nan, math.nan
    table = _tabulate(values, categories, clusters, weights)
    rng = np.random.default_rng(seed)
    sums_BK = np.zeros((resamples, table.weights_K.size))
    counts_BK = np.zeros_like(sums_BK)
    for members in _strata(table.counts_CK > 0):
        drawn_BM = _resampled(rng, len(members), resamples)
        sums_BK += drawn_BM @ table.sums_CK[members]
        counts_BK += drawn_BM @ table.counts_CK[members]
    # A category whose clusters all lie in others too may be drawn empty.
    whole = (counts_BK > 0).all(axis=1)
    figures = (sums_BK[whole] / counts_BK[whole]) @ table.weights_K
    low, high = np.quantile(figures, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired(
    base: ArrayLike,
    other: ArrayLike,
    categories: Sequence[Hashable],
    clusters: Sequence[Hashable],
    weights: Mapping[str, float],
    seed: int = 0,
) -> Paired:
    """``other - base`` on the same pictures, position by position, with wins, ties and losses of the other.

    Wins and losses count the pictures of all categories that have a weight. Raises what ``weighted_mean`` raises.
    """
    a, b = np.asarray(base, dtype=float), np.asarray(other, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equal numbers: {a.size} against {b.size}")
    differences = b - a
    counted = differences[[name in weights for name in categories]]
    return Paired(
        weighted_mean(differences, categories, clusters, weights),
        interval(differences, categories, clusters, weights, seed=seed),
        int((counted > _TIE).sum()),
        int((np.abs(counted) <= _TIE).sum()),
        int((counted < -_TIE).sum()),
    )


def smallest_difference(stderr: float, power: float = POWER, level: float = LEVEL) -> float:
    """The smallest true difference that a two-sided test finds with this power: (z_{1 - level/2} + z_power) stderr.

    stderr: of the difference; of two unpaired means it is ``unpaired_error``. NaN stays NaN.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)) * stderr


def unpaired_error(first: float, second: float) -> float:
    """Standard error of the difference of two means that were measured apart."""
    return math.hypot(first, second)


def _tabulate(
    values: ArrayLike,
    categories: Sequence[Hashable],
    clusters: Sequence[Hashable],
    weights: Mapping[str, float],
) -> _Table:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(categories) != x.size or len(clusters) != x.size:
        raise ValueError(f"{x.size} values, {len(categories)} categories and {len(clusters)} clusters")
    columns: dict[Hashable, int] = {}
    for name, weight in weights.items():
        if weight:
            columns[name] = len(columns)
    kept = [i for i, name in enumerate(categories) if name in columns]
    if not np.isfinite(x[kept]).all():
        raise ValueError(f"{int((~np.isfinite(x[kept])).sum())} of {len(kept)} values are not finite")
    absent = [name for name in columns if name not in {categories[i] for i in kept}]
    if absent or not columns:
        raise ValueError(f"no value in the categories {absent}" if absent else "no category has a weight")
    rows: dict[Hashable, int] = {}
    for i in kept:
        rows.setdefault(clusters[i], len(rows))
    place = ([rows[clusters[i]] for i in kept], [columns[categories[i]] for i in kept])
    sums_CK = np.zeros((len(rows), len(columns)))
    counts_CK = np.zeros_like(sums_CK)
    np.add.at(sums_CK, place, x[kept])
    np.add.at(counts_CK, place, 1.0)
    return _Table(sums_CK, counts_CK, np.asarray([weights[str(name)] for name in columns]))


def _strata(present_CK: np.ndarray) -> list[list[int]]:
    """Clusters that lie in the same categories; those that stand alone with theirs are put together."""
    groups: dict[bytes, list[int]] = {}
    for position, row in enumerate(present_CK):
        groups.setdefault(row.tobytes(), []).append(position)
    alone = [members[0] for members in groups.values() if len(members) == 1]
    found = [members for members in groups.values() if len(members) > 1]
    return [*found, alone] if alone else found


def _resampled(rng: np.random.Generator, members: int, resamples: int) -> np.ndarray:
    """Weights [B, M] of the members in each resample."""
    if members == 1:
        return np.ones((resamples, 1))
    drawn = rng.integers(0, members, size=(resamples, members - 1)) + np.arange(resamples)[:, None] * members
    counts = np.bincount(drawn.ravel(), minlength=resamples * members).reshape(resamples, members)
    weights: np.ndarray = counts * (members / (members - 1))
    return weights
