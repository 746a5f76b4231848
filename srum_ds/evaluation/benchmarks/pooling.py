"""Means of part figures over all pictures, pooled over the questions behind them, as some authors report them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from srum_ds.evaluation.benchmarks.protocol import Figure, Grade


@dataclass(frozen=True)
class Pooled:
    """mean: weighted by questions, None where no picture has an answer. n: pictures with one. failures: without."""

    mean: float | None
    n: int
    failures: int


def pool_parts(grades: Iterable[Grade]) -> dict[str, Pooled]:
    """Every part that the grades name: sum of weight x part over sum of weights, failed ones left out and counted."""
    sums: dict[str, tuple[float, float, int, int]] = {}
    for grade in grades:
        for name, value in grade.parts.items():
            total, weight, n, failures = sums.get(name, (0.0, 0.0, 0, 0))
            if value is None:
                sums[name] = total, weight, n, failures + 1
                continue
            share = float(grade.weights.get(name, 1.0))
            sums[name] = total + share * value, weight + share, n + 1, failures
    return {
        name: Pooled(total / weight if weight else None, n, failures)
        for name, (total, weight, n, failures) in sums.items()
    }


def part_values(grade: Grade) -> list[tuple[str, float | None]]:
    """(part, value) of a grade, once for each question behind it, so that a plain mean over all of them is pooled.

    A part that failed stands once, with None. A part that the grade does not name was not asked for and is not there.
    """
    found: list[tuple[str, float | None]] = []
    for name, value in grade.parts.items():
        times = 1 if value is None else round(grade.weights.get(name, 1.0))
        found += [(name, value)] * times
    return found


def figure_of_parts(figure: Figure, pooled: Mapping[str, Pooled]) -> float | None:
    """A figure with ``of_parts`` from the pooled parts: the weighted mean of those that the prompts ask for.

    None where one that is asked for has no answer at all, or where none is asked for: nothing is dropped silently.
    """
    asked = {name: weight for name, weight in figure.weights.items() if name in pooled}
    means = [(pooled[name].mean, weight) for name, weight in asked.items()]
    known = [(mean, weight) for mean, weight in means if mean is not None]
    if not known or len(known) < len(means):
        return None
    return sum(mean * weight for mean, weight in known) / sum(weight for _, weight in known)


def part_shares(names: Sequence[str]) -> Figure:
    """``overall`` as the plain mean of these parts."""
    return Figure("overall", {name: 1 / len(names) for name in names}, of_parts=True)
