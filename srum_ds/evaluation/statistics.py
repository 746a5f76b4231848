"""Means with their standard errors, differences of paired measurements, and the AUC. The reports call it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error and the number of measurements. The error is NaN where n < 2."""

    mean: float
    stderr: float
    n: int

    @property
    def z(self) -> float:
        """The mean in standard errors; infinite (or NaN for a mean of 0) where the error is 0."""
        if self.stderr == 0:
            return math.copysign(math.inf, self.mean) if self.mean else math.nan
        return self.mean / self.stderr


def estimate(values: ArrayLike) -> Estimate:
    """Mean and standard error s / sqrt(n), s with n - 1, of measurements that must be finite.

    For 0/1 outcomes this is the binomial sqrt(p (1 - p) / (n - 1)). Raises ValueError for none, or
    for a value that is not finite: a failed measurement is for the caller to leave out and count.
    """
    x = _finite(values)
    stderr = float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else math.nan
    return Estimate(float(x.mean()), stderr, int(x.size))


def paired_difference(base: ArrayLike, trained: ArrayLike) -> Estimate:
    """Mean of ``trained - base`` over pairs (the same prompt and seed) with its standard error.

    Raises ValueError for lists of different lengths or values that are not finite.
    """
    return estimate(_differences(base, trained))


def paired_interval(
    base: ArrayLike, trained: ArrayLike, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap (BCa) confidence interval of the mean of ``trained - base`` over pairs.

    Where all differences are alike (or there is one), both ends are the mean.
    """
    x = _differences(base, trained)
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    with warnings.catch_warnings():
        # BCa's jackknife may degenerate on a handful of pairs; the percentile interval remains.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        for method in ("BCa", "percentile"):
            found = scipy.stats.bootstrap(
                (x,),
                np.mean,
                n_resamples=resamples,
                confidence_level=confidence,
                method=method,
                batch=1000,
                rng=np.random.default_rng(seed),
            ).confidence_interval
            if math.isfinite(found.low) and math.isfinite(found.high):
                break
    return float(found.low), float(found.high)


def by_category(categories: Sequence[Hashable], values: ArrayLike) -> dict[Hashable, Estimate]:
    """An estimate for each category, in the order in which the categories first occur."""
    x = np.asarray(values, dtype=float)
    if len(categories) != x.size:
        raise ValueError(f"{len(categories)} categories but {x.size} values")
    members = {name: [other == name for other in categories] for name in dict.fromkeys(categories)}
    return {name: estimate(x[mask]) for name, mask in members.items()}


def auc(scores: ArrayLike, truth: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a true one scores above a false one, ties half.

    Pairs with a NaN score do not count. NaN where all that remain are true, or all false.
    """
    x = np.asarray(scores, dtype=float)
    labels = np.asarray(truth, dtype=bool)
    if x.shape != labels.shape:
        raise ValueError(f"{x.size} scores but {labels.size} truths")
    good, bad = x[labels & ~np.isnan(x)], x[~labels & ~np.isnan(x)]
    if good.size == 0 or bad.size == 0:
        return math.nan
    return float(scipy.stats.mannwhitneyu(good, bad).statistic / (good.size * bad.size))


def _finite(values: ArrayLike) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"expected a list of measurements, got an array of shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} measurements are not finite")
    return x


def _differences(base: ArrayLike, trained: ArrayLike) -> np.ndarray:
    a, b = _finite(base), _finite(trained)
    if a.size != b.size:
        raise ValueError(f"pairs need equal numbers: {a.size} against {b.size}")
    differences: np.ndarray = b - a
    return differences
