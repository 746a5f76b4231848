"""Benchmarks score the images of a prompt set. ``srum-ds eval``, ``ablate`` and ``calibrate`` load one by its name."""

from srum_ds.evaluation.benchmarks.protocol import Benchmark, Outcome, RegionTruth, load_benchmark

__all__ = ["Benchmark", "Outcome", "RegionTruth", "load_benchmark"]
