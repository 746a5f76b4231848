"""``report.html`` of a comparison: differences from the first run, and the pictures that gained and lost the most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.files import write_atomic
from srum_ds.evaluation.report_html.page import render
from srum_ds.evaluation.report_html.score_page import share
from srum_ds.evaluation.report_html.thumbnails import Thumbnails, overlay
from srum_ds.evaluation.result_tables import between, figure_label, judge_line, label, number, with_error
from srum_ds.evaluation.results import OVERALL, Score
from srum_ds.evaluation.scored import REPORT

SHOWN = 24


@dataclass(frozen=True)
class Side:
    """One run of a comparison: where its pictures lie, who judged them, and what its canary said."""

    name: str
    folder: Path
    judge: Mapping[str, Any]
    canary: Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """The same picture of every run: its scores, and the values that the comparison counts, in the runs' order."""

    scores: Sequence[Score]
    values: Sequence[float]

    @property
    def gain(self) -> float:
        """The best of the further runs less the first one."""
        return max(self.values[1:]) - self.values[0]

    @property
    def loss(self) -> float:
        """The worst of the further runs less the first one: below 0 for a loss."""
        return min(self.values[1:]) - self.values[0]


def write_comparison(out: Path, result: Mapping[str, Any], sides: Sequence[Side], pairs: Sequence[Pair]) -> Path:
    """Writes ``report.html`` into ``out`` and returns its path. result: the content of ``compare.json``."""
    path = out / REPORT
    write_atomic(path, comparison_page(result, sides, pairs))
    return path


def comparison_page(result: Mapping[str, Any], sides: Sequence[Side], pairs: Sequence[Pair]) -> str:
    """The page. Pictures that are not in the sides' folders are left out and counted."""
    thumbnails = Thumbnails()
    full = float(result["full"])
    gains = sorted((pair for pair in pairs if pair.gain > 0), key=lambda pair: -pair.gain)
    losses = sorted((pair for pair in pairs if pair.loss < 0), key=lambda pair: pair.loss)
    sections = []
    for name, title, found in (("gains", "Largest gains", gains), ("losses", "Largest losses", losses)):
        cards = [_card(pair, sides, full, thumbnails) for pair in found[:SHOWN]]
        sections.append({"id": name, "title": title, "of": f"{len(cards)} of {len(found)} pictures", "cards": cards})
    lines = [*_lines(result)]
    context = {
        "title": f"{result['benchmark']} {result['version']}: {', '.join(side.name for side in sides)}",
        "result": result,
        "sides": [
            {
                "name": side.name,
                "judge": judge_line(side.judge),
                "canary": side.canary,
                "asked": side.judge["kind"] != "checker",
                "self": side.judge["under_test"],
                "folder": str(side.folder),
                **_counts(run),
            }
            for side, run in zip(sides, result["runs"], strict=True)
        ],
        "notes": [note for note in result["notes"] if "canary" not in note],
        "overall": _overall(result),
        "lines": lines,
        "sections": [section for section in sections if section["cards"]],
        "thumbnails": {"shown": thumbnails.shown, "left_out": thumbnails.left_out, "lost": thumbnails.unreadable},
    }
    return render("comparison.html.jinja", context)


def _counts(run: Mapping[str, Any]) -> dict[str, Any]:
    return {key: run[key] for key in ("pictures", "failures", "left_out")}


def _overall(result: Mapping[str, Any]) -> dict[str, Any]:
    full = float(result["full"])
    line = result["figures"][OVERALL]
    return {
        "lacks": [label(name) for name in line["lacks"]],
        "means": [with_error(mean, full) for mean in line["means"]],
        "differences": [_difference(found, line["n"], full, _widest(result)) for found in line["differences"]],
    }


def _lines(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    full, widest = float(result["full"]), _widest(result)
    named = [(label(name), line, "leaf") for name, line in result["by_category"].items()]
    named += [(figure_label(result, name), line, "sum") for name, line in result["figures"].items()]
    return [
        {
            "name": name,
            "kind": kind,
            "n": line["n"],
            "means": [with_error(mean, full) for mean in line["means"]],
            "differences": [_difference(found, line["n"], full, widest) for found in line["differences"]],
        }
        for name, line, kind in named
    ]


def _widest(result: Mapping[str, Any]) -> float:
    """The half width of the scale of differences: the farthest end of any interval."""
    ends = [0.0]
    for line in [*result["by_category"].values(), *result["figures"].values()]:
        for found in line["differences"]:
            ends += [abs(end) for end in found["interval"] or ()]
            ends.append(abs(found["mean"] or 0.0))
    return max(ends) or 1.0


def _difference(found: Mapping[str, Any], n: int, full: float, widest: float) -> dict[str, Any]:
    mean, ends = found["mean"], found["interval"]
    known = mean is not None
    middle = share((mean or 0.0) + widest, 2 * widest)
    established = ends is not None and not ends[0] <= 0 <= ends[1]
    total = max(1, found["wins"] + found["ties"] + found["losses"])
    return {
        "known": known,
        "text": with_error(found, full, signed=True),
        "mean": number(mean, full, signed=True),
        "stderr": None if found["stderr"] is None else number(found["stderr"], full),
        "interval": between(found, full, signed=True),
        "left": min(50.0, middle),
        "width": round(abs(middle - 50.0), 2),
        "up": known and mean >= 0,
        "established": established,
        "low": None if ends is None else share(ends[0] + widest, 2 * widest),
        "high": None if ends is None else share(ends[1] + widest, 2 * widest),
        "smallest": number(found["smallest_difference"], full),
        "wins": found["wins"],
        "ties": found["ties"],
        "losses": found["losses"],
        "won": round(100 * found["wins"] / total, 2),
        "tied": round(100 * found["ties"] / total, 2),
        "lost": round(100 * found["losses"] / total, 2),
        "n": n,
        "scale": number(widest, full),
        "verdict": ("better" if mean > 0 else "worse") if established else "no difference established",
    }


def _card(pair: Pair, sides: Sequence[Side], full: float, thumbnails: Thumbnails) -> dict[str, Any]:
    first = pair.scores[0]
    cells = []
    for position, (side, score, value) in enumerate(zip(sides, pair.scores, pair.values, strict=True)):
        difference = value - pair.values[0]
        cells.append(
            {
                "name": side.name,
                "self": side.judge["under_test"],
                "score": number(value, full),
                "share": share(value, full),
                "gain": "" if position == 0 else number(difference, full, signed=True),
                "up": difference > 0,
                "down": difference < 0,
                "words": score.words,
                "picture": thumbnails.of(side.folder / score.picture) if score.picture else None,
                "boxes": overlay(score.boxes),
            }
        )
    return {
        "id": first.id,
        "sample": first.sample,
        "category": label(first.category),
        "text": first.text or first.id,
        "cells": cells,
        "pictured": any(cell["picture"] for cell in cells),
    }
