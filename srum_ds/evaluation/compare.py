"""``srum-ds compare``: two or more runs on the pictures that they share, paired by prompt and sample.

A side is a folder that ``srum-ds eval score`` scored, or a run: one that ``srum-ds eval RUN`` measured from pixels
(``result.json`` and ``outcomes.json``), or one with a scored folder under ``eval/``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.evaluation.aggregate import Rule
from srum_ds.evaluation.clustered import Clustered, Paired, interval, paired, smallest_difference, weighted_mean
from srum_ds.evaluation.compared_runs import Compared, compared_sides
from srum_ds.evaluation.report_html import Pair, Side, write_comparison
from srum_ds.evaluation.result_tables import figure_label, label, with_error
from srum_ds.evaluation.results import OVERALL, Score, counted
from srum_ds.evaluation.scored import REPORT

COMPARISON = "compare.json"

# Entries of drawn.json: the models are what is compared, and which prompts are common is looked up one by one.
_MEANT_TO_DIFFER = ("model", "weights", "prompts", "schema")
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Common:
    """The pictures that every run has a value of. values: one list a run, in the order of ``keys``."""

    keys: list[tuple[str, int]]
    scores: list[list[Score]]
    values: list[list[float]]


def compare(
    *runs: Path,
    out: Path = Path("compare"),
    benchmark: str = "",
    any_judge: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compares runs with the first one, writes ``compare.json`` and ``report.html`` to ``out`` and prints a table.

    runs: scored folders or runs; one run alone is compared with the base that it started from. benchmark: which one,
    where a run has several. any_judge: compare figures of different judges too, and say so. Returns the content of
    ``compare.json``. Raises UserError where there is nothing to compare, where benchmarks, versions, judges or the
    counting of failures differ, and where no picture is common.
    """
    console = console or Console()
    sides = compared_sides(list(runs), benchmark)
    notes = _refuse(sides, any_judge)
    common = _common(sides)
    result = _result(sides, common, notes)
    write_atomic(out / COMPARISON, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_comparison(out, result, _page_sides(sides), _page_pairs(common))
    console.print(screen_table(result))
    for note in result["notes"]:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    console.print(f"written: {out}/{COMPARISON}, {REPORT}", soft_wrap=True, highlight=False, markup=False)
    return result


def screen_table(result: Mapping[str, Any]) -> Table:
    """For each category and figure a row for each run: its mean and, from the second on, its difference."""
    shown = Table(title=escape(f"{result['benchmark']} {result['version']}".strip()))
    headings = ("category", "run", "n", "mean ± stderr", "against the first", "win/tie/loss")
    for position, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if position < 2 else "right", no_wrap=position > 1)
    full = result["full"]
    rows = [(label(name), row, "") for name, row in result["by_category"].items()]
    rows += [(figure_label(result, name), row, "bold") for name, row in result["figures"].items()]
    for name, row, style in rows:
        for position, (run, mean) in enumerate(zip(result["runs"], row["means"], strict=True)):
            cells = [name if position == 0 else "", run["name"], str(row["n"]), with_error(mean, full), "", ""]
            if position > 0:
                found = row["differences"][position - 1]
                cells[4:] = with_error(found, full, True), f"{found['wins']}/{found['ties']}/{found['losses']}"
            shown.add_row(*map(escape, cells), style=style, end_section=position == len(result["runs"]) - 1)
    return shown


def _refuse(sides: Sequence[Compared], any_judge: bool) -> list[str]:
    first = sides[0]
    notes = []
    for side in sides[1:]:
        for key, what in (("benchmark", "benchmark"), ("version", "version of the benchmark"), ("full", "scale")):
            if side.results[key] != first.results[key]:
                raise UserError(
                    f"{side.folder}: {what} {side.results[key]!r}, but {first.folder} has {first.results[key]!r}: "
                    "compare runs that were scored alike"
                )
        for key in ("failure_rule", "srum_compat"):
            if side.results[key] != first.results[key]:
                raise UserError(
                    f"{side.folder}: {key} {side.results[key]!r}, but {first.folder} has {first.results[key]!r}: "
                    "failures must count alike; score one of them again"
                )
        theirs, ours = (f"{s.results['judge']['kind']} {s.results['judge']['model']}".strip() for s in (side, first))
        if theirs != ours and not any_judge:
            raise UserError(
                f"{side.folder}: judged by {theirs}, but {first.folder} by {ours}: a difference would be the judges'. "
                "Score both with one judge, or say --any-judge"
            )
        if theirs != ours:
            notes.append(f"{side.name} was judged by {theirs}, {first.name} by {ours}: the difference may be theirs.")
        notes += _drawn_apart(first, side)
    for side in sides:
        notes += side.notes
        if side.results["canary"]["passed"] is False:
            notes.insert(0, f"The judge of {side.name} failed its canary: do not believe these scores.")
        if side.results["canary"]["passed"] is None:
            notes.append(f"No canary was asked of the judge of {side.name}.")
        if side.results["judge"]["under_test"]:
            notes.append(f"{side.name} was judged by the model under test itself.")
    return notes


def _drawn_apart(first: Compared, side: Compared) -> list[str]:
    ours, theirs = first.results["drawn"] or {}, side.results["drawn"] or {}
    shared = [key for key in ours if key in theirs and not key.startswith(_MEANT_TO_DIFFER)]
    differing = [key for key in shared if ours[key] != theirs[key]]
    if not differing:
        return []
    said = ", ".join(f"{key} {_short(theirs[key])} for {_short(ours[key])}" for key in differing)
    return [f"{side.name} was drawn otherwise than {first.name}: {said}."]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _common(sides: Sequence[Compared]) -> _Common:
    tables = [{score.key: score for score in side.scores} for side in sides]
    rules = sides[0].results["failure_rule"], sides[0].results["srum_compat"]
    keys, scores, values = [], [], []
    for key in tables[0]:
        mine = [table[key] for table in tables if key in table]
        if len(mine) < len(tables):
            continue
        if len({score.text for score in mine if score.text}) > 1:
            names = " and ".join(str(side.folder) for side in sides)
            raise UserError(f"{names}: the prompt {key[0]!r} has different texts there: these are different prompts")
        found = [counted(score.value, score.raw, *rules) for score in mine]
        told = [value for value in found if value is not None]
        if len(told) == len(found):
            keys.append(key)
            scores.append(mine)
            values.append(told)
    if not keys:
        names = ", ".join(str(side.folder) for side in sides)
        raise UserError(f"{names}: no (prompt, sample) has a score in all of them: nothing can be paired")
    return _Common(keys, _turned(scores), _turned(values))


def _turned(rows: Sequence[Sequence[_T]]) -> list[list[_T]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _result(sides: Sequence[Compared], common: _Common, notes: Sequence[str]) -> dict[str, Any]:
    first = sides[0].results
    categories = [score.category for score in common.scores[0]]
    clusters = [score.text or score.id for score in common.scores[0]]
    leaves = [name for name in first["by_category"] if name in set(categories)]
    leaves += [name for name in dict.fromkeys(categories) if name not in leaves]
    weights = {name: dict(row["weights"]) for name, row in first["figures"].items()}
    weights[OVERALL] = weights.pop(OVERALL)
    runs = []
    for side in sides:
        left_out = len(side.scores) - len(common.keys)
        runs.append(
            {
                "name": side.name,
                "folder": str(side.folder),
                "judge": side.results["judge"],
                "pictures": len(side.scores),
                "failures": sum(score.value is None for score in side.scores),
                "left_out": left_out,
            }
        )
    out = [f"{run['left_out']} of {run['pictures']} of {run['name']}" for run in runs if run["left_out"]]
    notes = [*notes]
    if out:
        notes.append(
            f"Compared on the {len(common.keys)} pictures that all have a score of; left out: {', '.join(out)}."
        )
    rule = first["failure_rule"]
    figures = {}
    for name, used in weights.items():
        told = _parts(common, rule) if first["figures"][name].get("of_parts") else (common.values, categories, clusters)
        figures[name] = _line(*told, used)
    if lacks := figures[OVERALL]["lacks"]:
        notes.append(f"No picture with a score in all runs in {', '.join(map(label, lacks))}: there is no overall.")
    lines = {name: _line(common.values, categories, clusters, {name: 1.0}) for name in leaves}
    return {
        "benchmark": first["benchmark"],
        "version": first["version"],
        "full": first["full"],
        "n": len(common.keys),
        "prompts": len(set(clusters)),
        "runs": runs,
        "by_category": lines,
        "figures": figures,
        "notes": notes,
    }


def _parts(common: _Common, rule: Rule) -> tuple[list[list[float]], list[str], list[str]]:
    """Values, part names and prompts of the parts that every run has, each once for every question behind it."""
    names, clusters = [], []
    values: list[list[float]] = []
    for mine in zip(*common.scores, strict=True):
        first = mine[0]
        for name in first.parts:
            found = [counted(score.parts.get(name), None, rule, False) for score in mine]
            told = [value for value in found if value is not None]
            if len(told) == len(found):
                times = round(first.weights.get(name, 1.0))
                names += [name] * times
                clusters += [first.text or first.id] * times
                values += [told] * times
    return _turned(values), names, clusters


def _line(
    values: Sequence[Sequence[float]], categories: Sequence[str], clusters: Sequence[str], weights: Mapping[str, float]
) -> dict[str, Any]:
    lacks = [name for name in weights if name not in set(categories)]
    n = sum(name in weights for name in categories)
    if lacks:
        nothing = {"mean": None, "stderr": None, "interval": None}
        difference = {**nothing, "smallest_difference": None, "wins": 0, "ties": 0, "losses": 0}
        return {
            "n": n,
            "lacks": lacks,
            "means": [nothing for _ in values],
            "differences": [difference for _ in values[1:]],
        }
    told = (categories, clusters, weights)
    means = [_mean(weighted_mean(column, *told), interval(column, *told)) for column in values]
    differences = [_difference(paired(values[0], column, *told)) for column in values[1:]]
    return {"n": n, "lacks": [], "means": means, "differences": differences}


def _mean(found: Clustered, ends: tuple[float, float]) -> dict[str, Any]:
    known = not math.isnan(found.stderr)
    return {
        "mean": found.mean,
        "stderr": found.stderr if known else None,
        "interval": list(ends) if known else None,
    }


def _difference(found: Paired) -> dict[str, Any]:
    known = not math.isnan(found.difference.stderr)
    return {
        **_mean(found.difference, found.interval),
        "smallest_difference": smallest_difference(found.difference.stderr) if known else None,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
    }


def _page_sides(sides: Sequence[Compared]) -> list[Side]:
    return [Side(side.name, side.folder, side.results["judge"], side.results["canary"]) for side in sides]


def _page_pairs(common: _Common) -> list[Pair]:
    columns = zip(zip(*common.scores, strict=True), zip(*common.values, strict=True), strict=True)
    return [Pair(tuple(scores), tuple(values)) for scores, values in columns]
