"""Figures over parts, pooled over the questions behind them, as some authors report them."""

from __future__ import annotations

from collections.abc import Sequence

from srum_ds.evaluation.benchmarks.protocol import Figure


def part_shares(names: Sequence[str]) -> Figure:
    """``overall`` as the plain mean of these parts."""
    return Figure("overall", {name: 1 / len(names) for name in names}, of_parts=True)
