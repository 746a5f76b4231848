"""Published rows: each overall figure follows from its row by the very weights that results use."""

from __future__ import annotations

import pytest

from srum_ds.evaluation.benchmarks import Benchmark, Published, load_benchmark

ROWS = [
    pytest.param(name, row, id=f"{name}: {row.model}")
    for name in ("compbench", "reasonbench", "wise_verified")
    for row in load_benchmark(name).published
]
# Printed figures are rounded, each by itself: those of 84.665 -> 84.66, 84.465 -> 84.46 and 46.755 -> 46.75 downwards.
HALF_OF_THE_LAST_DIGIT = {100.0: 0.005, 1.0: 0.0005}


def _overall(benchmark: Benchmark, row: Published) -> float:
    leaves = [name for name in row.figures if name != "overall"]
    overall = benchmark.figures(leaves)[-1]
    assert overall.name == "overall" and sorted(overall.weights) == sorted(leaves)
    return sum(weight * row.figures[name] for name, weight in overall.weights.items())


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_overall_follows_from_the_categories_to_the_last_printed_digit(name: str, row: Published) -> None:
    benchmark = load_benchmark(name)
    recomputed = _overall(benchmark, row)
    assert abs(recomputed - row.figures["overall"]) <= HALF_OF_THE_LAST_DIGIT[benchmark.full] + 1e-9
    assert all(0 <= figure <= benchmark.full for figure in row.figures.values())
    assert row.source


def test_the_rows_that_the_paper_claims_are_there() -> None:
    rows = {row.model: row.figures["overall"] for row in load_benchmark("compbench").published}
    assert (rows["BAGEL"], rows["BAGEL + SRUM"], rows["BAGEL + SRUM (CoT)"]) == (82.18, 86.55, 88.37)
    rows = {row.model: row.figures["overall"] for row in load_benchmark("reasonbench").published}
    assert rows == {"BAGEL": 43.82, "BAGEL + SFT": 45.37, "BAGEL + SRUM": 46.75}
    assert "2510.12784" in load_benchmark("compbench").published[0].source
    assert [len(load_benchmark(name).published) for name in ("compbench", "reasonbench")] == [13, 3]
