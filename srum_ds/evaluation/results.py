"""``results.json`` and ``scores.jsonl`` of a scored folder: made from grades, written, and read again.

``srum-ds eval score`` makes them; the reports and ``srum-ds compare`` read them and need nothing else.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.evaluation.aggregate import Row, Rule, by_category, figures, figures_of_parts, pooled, power_of
from srum_ds.evaluation.benchmarks import Benchmark, Detection, Figure
from srum_ds.evaluation.canary import CanaryResult
from srum_ds.evaluation.scored import RESULTS, Scored
from srum_ds.types import Prompt

SCHEMA = 1
SCORES = "scores.jsonl"
OVERALL = "overall"


@dataclass(frozen=True)
class Chosen:
    """What the user left out: only these categories (empty: all), only the first ``limit`` prompts (None: all)."""

    categories: tuple[str, ...] = ()
    limit: int | None = None

    def __bool__(self) -> bool:
        return bool(self.categories) or self.limit is not None


@dataclass(frozen=True)
class Score:
    """One line of ``scores.jsonl``: a picture of a prompt and what it is worth.

    picture: its path from the folder on. value, parts, failure, words, raw, weights: as in ``Grade``. boxes: of x0, y0,
    x1, y1 in [0, 1], with a label and a score each, empty where nobody looked for any.
    """

    id: str
    sample: int
    category: str
    text: str
    picture: str
    value: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    failure: str = ""
    words: str = ""
    raw: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    boxes: Sequence[Mapping[str, Any]] = ()

    @property
    def key(self) -> tuple[str, int]:
        """What names the same picture in two runs."""
        return self.id, self.sample


def counted(value: float | None, raw: float | None, failures: Rule, srum_compat: bool) -> float | None:
    """What a picture adds to the mean, None where it is left out.

    A value that failed stays out, or is 0 by ``failures="zero"``. With ``srum_compat`` it is what the released scripts
    count: ``raw``, a -1 for a reply that they cannot read included, where the grade has one.
    """
    if srum_compat and raw is not None:
        return raw
    if value is None and failures == "zero":
        return 0.0
    return value


def part_rows(text: str, parts: Mapping[str, float | None], weights: Mapping[str, float], failures: Rule) -> list[Row]:
    """One picture's parts, each once for every question behind it; one that failed once. category: the part's name."""
    rows = []
    for name, value in parts.items():
        times = 1 if value is None else round(weights.get(name, 1.0))
        rows += [Row(name, text, counted(value, None, failures, False), value is None)] * times
    return rows


def build_results(
    benchmark: Benchmark,
    scored: Sequence[Scored],
    judge: Mapping[str, Any],
    canary: Sequence[CanaryResult] = (),
    missing: Sequence[tuple[Prompt, int]] = (),
    failures: Rule = "exclude",
    srum_compat: bool = False,
    drawn: Mapping[str, Any] | None = None,
    partial: Chosen | None = None,
) -> dict[str, Any]:
    """The content of ``results.json``.

    {"benchmark", "version", "full", "judge", "n", "failures", "overall", "by_category", "figures", "parts", "canary",
    "power", "complete", "missing", "partial", "published", ...}. ``overall``, each category and each figure has "mean",
    "stderr" (clustered by prompt text), "interval" (bootstrap, 95 %), "n" (pictures in the mean), "prompts" (distinct
    texts), "failures" and "missing"; undefined ones are None. n and failures at the top are of all pictures.

    judge: {"kind", "model", "under_test"}. missing: (prompt, sample) of pictures that are not there. drawn: the content
    of ``drawn.json``. partial: what the user chose. complete: no picture is missing and nothing was left out by choice.
    Raises UserError where there is no picture and none is missing; ValueError for a judge without these keys.
    """
    lacking = [key for key in ("kind", "model", "under_test") if key not in judge]
    if lacking:
        raise ValueError(f"judge lacks {', '.join(lacking)}")
    if not scored and not missing:
        raise UserError(f"nothing to score for {benchmark.name}: the folder has no prompts")
    partial = partial or Chosen()
    categories = dict.fromkeys([*(one.prompt.category for one in scored), *(p.category for p, _ in missing)])
    as_zero = benchmark.released_as_zero if srum_compat else ()
    wanted = benchmark.figures(list(dict.fromkeys([*categories, *as_zero])))
    order = _order(wanted, list(categories), partial)
    absent = {name: 0 for name in order} | dict(Counter(prompt.category for prompt, _ in missing))
    rows = [
        Row(
            one.prompt.category,
            one.prompt.text,
            counted(one.grade.value, one.grade.raw, failures, srum_compat),
            one.grade.value is None,
        )
        for one in scored
    ]
    chosen = bool(partial.categories)
    told = [row for one in scored for row in part_rows(one.prompt.text, one.grade.parts, one.grade.weights, failures)]
    of_leaves = [figure for figure in wanted if not figure.of_parts]
    left_out = {name for figure in of_leaves for name in figure.weights if chosen and name not in partial.categories}
    found = figures(of_leaves, rows, absent, chosen, srum_compat, left_out, as_zero)
    found |= figures_of_parts([figure for figure in wanted if figure.of_parts], told, chosen, srum_compat)
    overall = found[OVERALL]
    parts = {name: _part(name, scored, wanted, failures, chosen) for name in benchmark.part_figures}
    results = {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "full": benchmark.full,
        "samples": benchmark.samples,
        "judge": dict(judge),
        "n": sum(row.value is not None for row in rows),
        "pictures": len(scored),
        "failures": sum(row.failed for row in rows),
        "failures_count": "as the released scripts count them" if srum_compat else _SAID[failures],
        "failure_rule": failures,
        "srum_compat": srum_compat,
        "overall": overall,
        "by_category": by_category(rows, absent),
        "figures": found,
        "parts": parts,
        "canary": canary_summary(canary),
        "power": power_of(overall),
        "complete": not missing and not partial,
        "missing": [{"id": prompt.id, "sample": sample, "category": prompt.category} for prompt, sample in missing],
        "partial": {"categories": list(partial.categories), "limit": partial.limit} if partial else None,
        "published": [
            {"model": row.model, "figures": dict(row.figures), "source": row.source} for row in benchmark.published
        ],
        "notice": benchmark.notice,
        "drawn": dict(drawn) if drawn is not None else None,
    }
    return dict(_finite(results))


def canary_summary(canary: Sequence[CanaryResult]) -> dict[str, Any]:
    """{"passed": whether all were answered right (None: none was asked), "cases": [{"what", "passed", "reply"}]}."""
    cases = [{"what": case.what, "passed": case.passed, "reply": case.reply} for case in canary]
    return {"passed": all(case.passed for case in canary) if canary else None, "cases": cases}


def score_rows(
    scored: Sequence[Scored], boxes: Mapping[tuple[str, int], Sequence[Detection]] | None = None
) -> list[Score]:
    """The lines of ``scores.jsonl``, in the order given. boxes: what a detector found, by prompt id and sample."""
    found = boxes or {}
    return [
        Score(
            id=one.prompt.id,
            sample=one.sample,
            category=one.prompt.category,
            text=one.prompt.text,
            picture=one.picture,
            value=one.grade.value,
            parts=dict(one.grade.parts),
            failure=one.grade.failure,
            words=one.grade.words,
            raw=one.grade.raw,
            weights=dict(one.grade.weights),
            boxes=[
                {"label": box.label, "score": box.score, "box": list(box.box)}
                for box in found.get((one.prompt.id, one.sample), ())
            ],
        )
        for one in scored
    ]


def write_results(folder: Path, results: Mapping[str, Any], scores: Sequence[Score]) -> None:
    """Writes ``scores.jsonl``, then ``results.json``, each in one step; alike for alike input, byte for byte."""
    lines = [json.dumps(_finite(vars(score)), ensure_ascii=False, allow_nan=False) + "\n" for score in scores]
    write_atomic(folder / SCORES, "".join(lines))
    write_atomic(folder / RESULTS, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(folder: Path) -> dict[str, Any]:
    """The content of ``DIR/results.json``. UserError where it is missing, broken or of another schema."""
    path = folder / RESULTS
    try:
        found = parse_json(file_bytes(path))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; score the folder first, with `srum-ds eval score {folder}`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); score the folder again") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UserError(f'{path}: expected an object with "schema": {SCHEMA}; score the folder again')
    return found


def read_scores(folder: Path) -> list[Score]:
    """The lines of ``DIR/scores.jsonl``. UserError naming file and line where one is missing or broken."""
    path = folder / SCORES
    try:
        text = file_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); score the folder again") from None
    found = []
    # Not splitlines: words may hold separators that it would take for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if line:
            try:
                found.append(Score(**parse_json(line)))
            except (TypeError, ValueError) as error:
                raise UserError(f"{path}: line {number}: no score ({error}); score the folder again") from None
    return found


_SAID = {"exclude": "left out of the means", "zero": "counted as 0"}


def _order(wanted: Sequence[Figure], categories: Sequence[str], partial: Chosen) -> list[str]:
    """The categories as tables list them: the benchmark's own order, then others; chosen ones alone where chosen."""
    weighted = [name for figure in reversed(wanted) if not figure.of_parts for name in figure.weights]
    named = dict.fromkeys([*weighted, *categories])
    return [name for name in named if name in categories or not partial.categories]


def _part(
    name: str, scored: Sequence[Scored], wanted: Sequence[Figure], failures: Rule, chosen: bool
) -> dict[str, Any]:
    """One part by leaf category; its figures where every category asks for it, and else its mean over all pictures."""
    rows = []
    for one in scored:
        prompt, grade = one.prompt, one.grade
        mine = {name: grade.parts[name]} if name in grade.parts else {}
        for row in part_rows(prompt.text, mine, grade.weights, failures):
            rows.append(Row(prompt.category, row.cluster, row.value, row.failed))
    asked = {row.category for row in rows}
    fitting = [figure for figure in wanted if not figure.of_parts and set(figure.weights) <= asked]
    found = figures(fitting, rows, {}, chosen, released=False)
    if OVERALL not in found:
        found[OVERALL] = pooled(rows)
    return {"by_category": by_category(rows, {}), "figures": found}


def _finite(value: Any) -> Any:
    """JSON knows no NaN: an undefined figure is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
