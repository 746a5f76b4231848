"""Benchmarks score the images of a prompt set. ``srum-ds eval``, ``ablate`` and ``calibrate`` load one by its name."""

from srum_ds.evaluation.benchmarks.loading import load_benchmark, load_checks
from srum_ds.evaluation.benchmarks.protocol import (
    Asks,
    Benchmark,
    Canary,
    Checks,
    Detection,
    Detects,
    Figure,
    Grade,
    Outcome,
    Published,
    RegionTruth,
    equal_shares,
)

__all__ = [
    "Asks",
    "Benchmark",
    "Canary",
    "Checks",
    "Detection",
    "Detects",
    "Figure",
    "Grade",
    "Outcome",
    "Published",
    "RegionTruth",
    "equal_shares",
    "load_benchmark",
    "load_checks",
]
