"""From pictures' values to figures as plain JSON: means with errors, and what is missing. ``results`` calls it.

No mean loses a category in silence: a figure that lacks one is None and says which, unless the user left it out (then
it is of the chosen ones, and marked) or asked for the released arithmetic, which drops them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from srum_ds.evaluation.benchmarks import Figure
from srum_ds.evaluation.clustered import (
    LEVEL,
    POWER,
    interval,
    smallest_difference,
    unpaired_error,
    weighted_mean,
)

Rule = Literal["exclude", "zero"]


@dataclass(frozen=True)
class Row:
    """One picture in the sums. cluster: its prompt's text. value: None where it failed and does not count."""

    category: str
    cluster: str
    value: float | None
    failed: bool = False


def by_category(rows: Sequence[Row], absent: Mapping[str, int]) -> dict[str, Any]:
    """{category: {"mean", "stderr", "interval", "n", "prompts", "failures", "missing"}}.

    absent: how many pictures each category lacks; a category that lacks them all has a mean of None.
    """
    names = dict.fromkeys([*absent, *(row.category for row in rows)])
    return {name: _measured(rows, {name: 1.0}, absent) for name in names}


def figures(
    wanted: Sequence[Figure],
    rows: Sequence[Row],
    absent: Mapping[str, int],
    chosen: bool,
    released: bool,
    left_out: Collection[str] = (),
    as_zero: Collection[str] = (),
) -> dict[str, Any]:
    """{figure: what ``by_category`` has of a category, and "weights", "lacks", "partial", "smallest_difference"}.

    lacks: the figure's categories without one counted picture. Where there are any, the mean is None; but those of
    ``left_out`` (by the user, who then has ``chosen``), or any with ``released`` (the released arithmetic), are left
    aside, and "partial" is true. as_zero: with ``released``, categories that count as 0 where all of them lack.
    weights: those that were used.
    """
    answered = {row.category for row in rows if row.value is not None}
    found = {}
    for figure in wanted:
        lacks = [name for name in figure.weights if name not in answered]
        parts = [other for other in wanted if other is not figure]
        weights = dict(figure.weights)
        if released:
            weights = remaining_weights(figure, parts, answered, as_zero)
        elif left_out:
            weights = remaining_weights(figure, parts, set(weights) - set(left_out))
        if weights and set(weights) <= answered:
            measured = _measured(rows, weights, absent)
        else:
            measured = _counts(rows, figure.weights, absent)
        found[figure.name] = {
            **measured,
            "weights": weights or dict(figure.weights),
            "lacks": lacks,
            "of_parts": figure.of_parts,
            "partial": (bool(lacks) or chosen) and measured["mean"] is not None,
            "smallest_difference": apart(measured),
        }
    return found


def figures_of_parts(wanted: Sequence[Figure], rows: Sequence[Row], chosen: bool, released: bool) -> dict[str, Any]:
    """``figures`` of those with ``of_parts``. rows: of parts, a part's name as the category, once for each question.

    A part that no prompt asks for leaves a figure, and the others' weights are scaled to 1; where no part is asked for
    at all the mean is None.
    """
    asked = {row.category for row in rows}
    scaled = []
    for figure in wanted:
        weights = {name: weight for name, weight in figure.weights.items() if name in asked} or figure.weights
        total = sum(weights.values())
        scaled.append(Figure(figure.name, {name: weight / total for name, weight in weights.items()}, of_parts=True))
    return figures(scaled, rows, {}, chosen, released)


def pooled(rows: Sequence[Row]) -> dict[str, Any]:
    """The plain mean of all rows, whatever their category, as ``by_category`` has one."""
    together = [Row("", row.cluster, row.value, row.failed) for row in rows]
    return _measured(together, {"": 1.0}, {})


def remaining_weights(
    figure: Figure, parts: Sequence[Figure], answered: set[str], as_zero: Collection[str] = ()
) -> dict[str, float]:
    """The weights of a figure over the categories that have an answer, summing to 1; empty where none has.

    Categories that form another figure (CompBench's complex, of three) keep that one's share among themselves, and
    leave the denominator only when all of them lack: so do the means of means of the released code. But ``as_zero``,
    where all of these lack, does not leave it: its share counts as 0, and the weights sum to less than 1.
    """
    groups: list[Mapping[str, float]] = []
    seen: set[str] = set()
    for part in parts:
        names = set(part.weights)
        if names < set(figure.weights) and not names & seen:
            groups.append({name: figure.weights[name] for name in part.weights})
            seen |= names
    groups += [{name: weight} for name, weight in figure.weights.items() if name not in seen]
    kept: dict[str, float] = {}
    zero = 0.0
    for group in groups:
        present = {name: weight for name, weight in group.items() if name in answered}
        scale = sum(group.values()) / sum(present.values()) if present else 0.0
        kept.update({name: weight * scale for name, weight in present.items()})
        if set(group) <= set(as_zero) and answered.isdisjoint(as_zero):
            zero += sum(group.values())
    total = sum(kept.values()) + zero
    return {name: kept[name] / total for name in figure.weights if name in kept}


def apart(measured: Mapping[str, Any]) -> float | None:
    """The smallest difference that two runs of such an error show when they are not paired, or None."""
    error = measured["stderr"]
    return None if error is None else smallest_difference(unpaired_error(error, error))


def power_of(overall: Mapping[str, Any]) -> dict[str, Any]:
    """What "power" says of a result: the smallest difference from another run of this n, and how it is meant."""
    return {
        "smallest_difference": overall["smallest_difference"],
        "power": POWER,
        "level": LEVEL,
        "against": "another run of the same n, unpaired; paired on the same prompts and seeds it is smaller",
    }


def _counts(rows: Sequence[Row], weights: Mapping[str, float], absent: Mapping[str, int]) -> dict[str, Any]:
    mine = [row for row in rows if row.category in weights]
    return {
        "mean": None,
        "stderr": None,
        "interval": None,
        "n": sum(row.value is not None for row in mine),
        "prompts": len({row.cluster for row in mine if row.value is not None}),
        "failures": sum(row.failed for row in mine),
        "missing": sum(absent.get(name, 0) for name in weights),
    }


def _measured(rows: Sequence[Row], weights: Mapping[str, float], absent: Mapping[str, int]) -> dict[str, Any]:
    counts = _counts(rows, weights, absent)
    counted = [row for row in rows if row.category in weights and row.value is not None]
    if not counted:
        return counts
    values = [row.value for row in counted if row.value is not None]
    categories, clusters = [row.category for row in counted], [row.cluster for row in counted]
    found = weighted_mean(values, categories, clusters, weights)
    low, high = interval(values, categories, clusters, weights)
    known = not math.isnan(found.stderr)
    return {
        **counts,
        "mean": found.mean,
        "stderr": found.stderr if known else None,
        "interval": [low, high] if known else None,
    }
