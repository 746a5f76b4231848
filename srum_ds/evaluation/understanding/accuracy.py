"""Accuracy by category from answers, and two models on the same questions: pure arithmetic, plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from srum_ds.evaluation.understanding.asking import Answer
from srum_ds.evaluation.understanding.items import Item


def accuracy(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
    """{"overall", "by_category"} of {"mean", "stderr", "n", "failures", "failures_wrong"}, in percent.

    n: units (questions, with their rotations where there are any) whose items all have an answer; the mean is over
    these. failures: units with one that failed. failures_wrong: the mean with failures counted as wrong, as released
    scripts do. Standard errors are clustered by picture. Sets with two questions a picture have ``acc_plus`` beside
    it: the share of pictures with every question right, and ``score`` = accuracy + acc_plus, as MME has it.
    """
    units = _units(items, answers)
    by_category = {name: _measured([unit for unit in units if unit[0] == name]) for name in _names(units)}
    return {"overall": _measured(units), "by_category": by_category}


def compare(items: Sequence[Item], before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Any]:
    """``after - before`` on the units that both answered, overall and by category, in percentage points.

    {"difference", "stderr", "n", "unpaired", "wins", "losses", "ties", "p"}: standard errors clustered by picture;
    wins are units that only the second got right; p is McNemar's exact two-sided probability, which takes units as
    independent. unpaired: units that only one of them, or neither, answered.
    """
    pairs = list(zip(_units(items, before), _units(items, after), strict=True))
    names = _names([first for first, _ in pairs])
    rows = {name: _paired([pair for pair in pairs if pair[0][0] == name]) for name in names}
    return {"overall": _paired(pairs), "by_category": rows}


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided probability of so uneven a split of ``wins + losses`` fair tosses; 1 where there are none."""
    total = wins + losses
    return float(scipy.stats.binomtest(wins, total, 0.5).pvalue) if total else 1.0


def clustered_error(values: Sequence[float], clusters: Sequence[str]) -> float:
    """Standard error of a mean of values that come in C clusters: sqrt(C / (C - 1) sum_c (sum_i x_i - mean)^2) / n.

    For clusters of one it is s / sqrt(n). NaN where C < 2. Liang and Zeger 1986.
    """
    names = list(dict.fromkeys(clusters))
    if len(names) < 2:
        return math.nan
    x = np.asarray(values, dtype=float)
    place = {name: number for number, name in enumerate(names)}
    sums = np.zeros(len(names))
    np.add.at(sums, [place[name] for name in clusters], x - x.mean())
    return float(math.sqrt(len(names) / (len(names) - 1) * np.square(sums).sum()) / x.size)


# Category, picture, and whether all of the unit is right; None where one of it failed.
_Unit = tuple[str, str, bool | None]


def _units(items: Sequence[Item], answers: Sequence[Answer]) -> list[_Unit]:
    units: dict[str, _Unit] = {}
    for item, answer in zip(items, answers, strict=True):
        name = item.unit or item.key
        right = None if answer.failure else answer.right
        if name in units:
            before = units[name][2]
            # A rotation that is wrong settles the unit; one that failed leaves it open only where the others are right.
            if before is False or right is False:
                right = False
            elif before is None or right is None:
                right = None
        units[name] = (item.category, item.group or item.key, right)
    return list(units.values())


def _names(units: Sequence[_Unit]) -> list[str]:
    return list(dict.fromkeys(category for category, _, _ in units))


def _measured(units: Sequence[_Unit]) -> dict[str, Any]:
    answered = [(group, float(right)) for _, group, right in units if right is not None]
    failures = len(units) - len(answered)
    values = [100 * value for _, value in answered]
    mean = sum(values) / len(values) if values else None
    row: dict[str, Any] = {
        "mean": mean,
        "stderr": _json(clustered_error(values, [group for group, _ in answered])) if values else None,
        "n": len(answered),
        "failures": failures,
        "failures_wrong": sum(values) / len(units) if units else None,
    }
    groups: dict[str, list[bool | None]] = {}
    for _, group, right in units:
        groups.setdefault(group, []).append(right)
    if groups and all(len(several) == 2 for several in groups.values()):
        whole = [several for several in groups.values() if None not in several]
        plus = 100 * sum(all(several) for several in whole) / len(whole) if whole else None
        row |= {"acc_plus": plus, "pictures": len(whole)}
        row["score"] = None if mean is None or plus is None else mean + plus
    return row


def _paired(pairs: Sequence[tuple[_Unit, _Unit]]) -> dict[str, Any]:
    both = [(first, second) for first, second in pairs if first[2] is not None and second[2] is not None]
    differences = [100 * (float(bool(second[2])) - float(bool(first[2]))) for first, second in both]
    wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    groups = [first[1] for first, _ in both]
    return {
        "difference": sum(differences) / len(differences) if differences else None,
        "stderr": _json(clustered_error(differences, groups)) if differences else None,
        "n": len(both),
        "unpaired": len(pairs) - len(both),
        "wins": wins,
        "losses": losses,
        "ties": len(both) - wins - losses,
        "p": mcnemar(wins, losses) if both else None,
    }


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value


def table(result: Mapping[str, Any]) -> list[str]:
    """The lines of ``understanding.md``: one row a category, the models side by side and their difference."""
    models = result["models"]
    names = list(models)
    head = " | ".join(f"{name} | n | failures" for name in names)
    lines = [f"| category | {head} |" + (" difference | p |" if result.get("difference") else "")]
    lines.append("|---|" + "---:|" * (3 * len(names)) + ("---:|---:|" if result.get("difference") else ""))
    categories = list(models[names[0]]["by_category"])
    rows = [*categories, None] if len(categories) > 1 else [None]
    for category in rows:
        cells = []
        for name in names:
            row = models[name]["overall"] if category is None else models[name]["by_category"][category]
            cells += [_value(row["mean"], row["stderr"]), str(row["n"]), str(row["failures"])]
        line = f"| {'**overall**' if category is None else category or 'none'} | {' | '.join(cells)} |"
        if result.get("difference"):
            told = result["difference"]
            row = told["overall"] if category is None else told["by_category"][category]
            p = "-" if row["p"] is None else f"{row['p']:.3g}"
            line += f" {_value(row['difference'], row['stderr'], signed=True)} | {p} |"
        lines.append(line)
    for name in names:
        overall = models[name]["overall"]
        if overall.get("acc_plus") is not None:
            told = f"{overall['acc_plus']:.2f} of {overall['pictures']} pictures with every question right"
            lines += ["", f"{name}: acc+ {told}; score {overall['score']:.2f}."]
    return lines


def _value(mean: float | None, stderr: float | None, signed: bool = False) -> str:
    if mean is None:
        return "-"
    shown = f"{mean:+.2f}" if signed else f"{mean:.2f}"
    return shown if stderr is None else f"{shown} ± {stderr:.2f}"
