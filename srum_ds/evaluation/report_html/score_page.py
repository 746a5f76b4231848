"""``report.html`` of a scored folder, made from its ``results.json``, ``scores.jsonl`` and pictures alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.files import write_atomic
from srum_ds.evaluation.report_html.page import render
from srum_ds.evaluation.report_html.thumbnails import Thumbnails, overlay
from srum_ds.evaluation.result_tables import (
    between,
    figure_label,
    judge_line,
    label,
    number,
    part_tables,
    published_rows,
    reading,
    remarks,
    with_error,
)
from srum_ds.evaluation.results import OVERALL, Score, read_results, read_scores
from srum_ds.evaluation.scored import REPORT

WORST = 48
BEST = 24
FAILED_PICTURES = 48


def write_report(folder: Path) -> Path:
    """Writes ``DIR/report.html`` from what lies in the folder and returns its path. UserError as ``read_results``."""
    path = folder / REPORT
    write_atomic(path, score_page(folder, read_results(folder), read_scores(folder)))
    return path


def score_page(folder: Path, results: Mapping[str, Any], scores: Sequence[Score]) -> str:
    """The page. folder: where the scores' pictures lie; those that are not there are left out and counted."""
    full = float(results["full"])
    thumbnails = Thumbnails()
    answered = [score for score in scores if score.value is not None]
    failed = [score for score in scores if score.value is None]
    worst = in_order(answered, lambda score: score.value or 0.0)[:WORST]
    taken = {score.key for score in worst}
    best = [score for score in in_order(answered, lambda score: -(score.value or 0.0)) if score.key not in taken][:BEST]
    sections = [
        {
            "id": "worst",
            "title": "Lowest scores",
            "of": f"{len(worst)} of {len(answered)} scored pictures, the lowest first",
            "cards": [_card(folder, score, full, thumbnails) for score in worst],
        },
        {
            "id": "best",
            "title": "Highest scores",
            "of": f"{len(best)} of {len(answered)} scored pictures, the highest first",
            "cards": [_card(folder, score, full, thumbnails) for score in best],
        },
    ]
    failures = [
        {**_card(folder, score, full, thumbnails if position < FAILED_PICTURES else None), "failure": score.failure}
        for position, score in enumerate(failed)
    ]
    headings, rows = published_rows(results)
    overall = results["overall"]
    context = {
        "title": f"{results['benchmark']} {results['version']}",
        "results": results,
        "judge": judge_line(results["judge"]),
        "self_judged": results["judge"]["under_test"],
        "hero": {
            "mean": number(overall["mean"], full),
            "stderr": None if overall["stderr"] is None else number(overall["stderr"], full),
            "interval": between(overall, full),
            "full": f"{full:g}",
            "power": number(results["power"]["smallest_difference"], full),
        },
        "notes": [note for note in remarks(results) if not _about_canary(results, note)],
        "tables": _tables(results),
        "references": [row["model"] for row in results["published"]],
        "reading": reading(results),
        "published": {"headings": headings, "rows": rows},
        "sections": [section for section in sections if section["cards"]],
        "failures": failures,
        "reasons": Counter(score.failure for score in failed).most_common(),
        "missing": results["missing"],
        "settings": _settings(results),
        "thumbnails": {"shown": thumbnails.shown, "left_out": thumbnails.left_out, "lost": thumbnails.unreadable},
    }
    return render("score.html.jinja", context)


def in_order(scores: Sequence[Score], key: Any) -> list[Score]:
    """Sorted by ``key``; among equals the first of each category come first, then the second ones."""
    place: Counter[tuple[Any, str]] = Counter()
    keyed = []
    for position, score in enumerate(scores):
        value = key(score)
        keyed.append((value, place[value, score.category], position, score))
        place[value, score.category] += 1
    return [item[-1] for item in sorted(keyed, key=lambda item: item[:3])]


def share(value: float | None, full: float) -> float:
    """A figure as per cent of the scale, kept on it."""
    return round(min(100.0, max(0.0, 100 * (value or 0.0) / full)), 2)


def _about_canary(results: Mapping[str, Any], note: str) -> bool:
    return results["canary"]["passed"] is not True and "canary" in note


def _tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    full = float(results["full"])
    figures = {name: found for name, found in results["figures"].items() if name != OVERALL}
    tables = [
        {
            "title": "",
            "rows": [
                *(_bar(label(name), name, found, results, "leaf") for name, found in results["by_category"].items()),
                *(_bar(figure_label(results, name), name, found, results, "sum") for name, found in figures.items()),
                _bar(OVERALL, OVERALL, results["overall"], results, "sum"),
            ],
        }
    ]
    for title, named in part_tables(results):
        tables.append({"title": title, "rows": [_bar(name, "", found, results, kind) for name, found, kind in named]})
    for table in tables:
        table["full"] = f"{full:g}"
    return tables


def _bar(title: str, name: str, found: Mapping[str, Any], results: Mapping[str, Any], kind: str) -> dict[str, Any]:
    full = float(results["full"])
    # A leaf and a figure may share a name (complex): papers report the figure.
    known = bool(name) and not (kind == "leaf" and name in results["figures"])
    marks = {
        row["model"]: share(row["figures"][name], full) if known and name in row["figures"] else None
        for row in results["published"]
    }
    ends = found["interval"]
    return {
        "name": title,
        "kind": kind,
        "known": found["mean"] is not None,
        "width": share(found["mean"], full),
        "low": None if ends is None else share(ends[0], full),
        "high": None if ends is None else share(ends[1], full),
        "mean": number(found["mean"], full),
        "with_error": with_error(found, full),
        "interval": between(found, full),
        "n": found["n"],
        "prompts": found["prompts"],
        "failures": found["failures"],
        "missing": found["missing"],
        "partial": found.get("partial", False),
        "first": next(iter(marks.values()), None),
        "marks": json.dumps(list(marks.values())),
    }


def _card(folder: Path, score: Score, full: float, thumbnails: Thumbnails | None) -> dict[str, Any]:
    parts = [f"{name} {number(value, full)}" for name, value in score.parts.items()]
    return {
        "id": score.id,
        "sample": score.sample,
        "category": label(score.category),
        "text": score.text,
        "score": number(score.value, full),
        "share": None if score.value is None else share(score.value, full),
        "parts": parts,
        "words": score.words,
        "picture": thumbnails.of(folder / score.picture) if thumbnails else None,
        "boxes": overlay(score.boxes),
    }


def _settings(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    judge = results["judge"]
    rows = [
        ("benchmark", results["benchmark"]),
        ("version", results["version"]),
        *((f"judge, {key.replace('_', ' ')}", _shown(value)) for key, value in judge.items()),
        ("failures are", results["failures_count"]),
        ("released arithmetic", "yes (--srum-compat)" if results["srum_compat"] else "no"),
        ("complete", "yes" if results["complete"] else "no"),
    ]
    for key, value in (results["drawn"] or {}).items():
        rows.append((f"drawn, {key.replace('_', ' ')}", _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
