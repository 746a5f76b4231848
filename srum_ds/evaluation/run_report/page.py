"""``report.html`` of a run: one file that needs no network, made of what stands in the run's folder alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from srum_ds.common.files import write_atomic
from srum_ds.config import Config, plain_config
from srum_ds.evaluation.report import table_rows
from srum_ds.evaluation.report_html.page import render
from srum_ds.evaluation.report_html.thumbnails import Thumbnails, overlay
from srum_ds.evaluation.result_tables import number
from srum_ds.evaluation.results import Score
from srum_ds.evaluation.run_report.benchmarks import Measured
from srum_ds.evaluation.run_report.charts import charts_of, drawn
from srum_ds.evaluation.run_report.facts import RunFacts, read_run
from srum_ds.evaluation.run_report.pictures import EXTREMES, extremes, fixed_section, grids
from srum_ds.evaluation.run_report.state import State
from srum_ds.evaluation.run_report.verdict import Verdict, first_and_last, verdict_of
from srum_ds.evaluation.scored import REPORT
from srum_ds.monitoring.judge_failures import FAILURES
from srum_ds.monitoring.usage import TIME, usage_rates, usage_rows

EVAL_GRID = Path("samples/eval_grid.png")
GRID_SIDE = 1280
"""Longest side of an embedded grid, whose captions must stay readable."""

REPLIES = 5

STATES = {
    State.RUNNING: "running",
    State.STOPPED: "stopped",
    State.FAILED: "failed",
    State.FINISHED: "finished",
    State.BY_WATCH: "ended by the watch",
}


def write_run_report(run_dir: Path, ending: bool = False) -> Path:
    """Writes RUN/report.html and returns its path. ending: the caller is the run itself, which ends now.

    Raises UserError for a folder that holds no run, and where the page cannot be written.
    """
    path = run_dir / REPORT
    write_atomic(path, run_page(read_run(run_dir, ending)))
    return path


def run_page(facts: RunFacts) -> str:
    """The page of a run."""
    verdict = verdict_of(facts)
    thumbnails, large = Thumbnails(), Thumbnails(side=GRID_SIDE)
    alarms: dict[str, list[int]] = {}
    for alarm in verdict.alarms:
        alarms.setdefault(alarm.signal, []).append(alarm.step)
    first, further = charts_of(facts, alarms)
    fixed = fixed_section(facts, thumbnails)
    context = {
        "title": f"{facts.run_dir.resolve().name}: srum-ds run",
        "name": facts.run_dir.resolve().name,
        "folder": str(facts.run_dir),
        "state": STATES[facts.state],
        "made": datetime.now().astimezone().isoformat(" ", "seconds"),
        "verdict": verdict,
        "hero": _hero(facts, verdict),
        "facts": _key_facts(facts),
        "problems": facts.problems,
        "charts": [drawn(chart) for chart in first],
        "further": [drawn(chart) for chart in further],
        "fixed": fixed,
        "grids": grids(facts, large),
        "extremes": [*extremes(facts, thumbnails), *_benchmark_extremes(facts.benchmarks, thumbnails)],
        "evaluation": _evaluation(facts, large),
        "benchmarks": facts.benchmarks,
        "alarms": [alarm.text for alarm in verdict.alarms],
        "replies": _replies(facts),
        "time": _time(facts),
        "changed": _changed(facts.config),
        "settings": [(key, _shown(value)) for key, value in facts.config.items()],
        "environment": list(_flat(facts.environment)),
        "thumbnails": {
            "shown": thumbnails.shown + large.shown,
            "left_out": thumbnails.left_out + large.left_out,
            "lost": thumbnails.unreadable + large.unreadable,
        },
    }
    return render("run.html.jinja", context, ("page.css", "run.css"))


def _hero(facts: RunFacts, verdict: Verdict) -> dict[str, str] | None:
    """The one figure that stands beside the headline, and what it is."""
    if verdict.difference is None:
        return None
    return {
        "value": f"{verdict.difference.mean:+.3f}",
        "stderr": f"{verdict.difference.stderr:.3f}",
        "what": verdict.difference_name,
        "level": verdict.difference.level,
    }


def _key_facts(facts: RunFacts) -> list[tuple[str, str]]:
    wanted = facts.steps_wanted
    rewards = facts.values("reward_global")
    found = [("Steps done", f"{facts.steps_done} of {wanted}" if wanted else str(facts.steps_done))]
    if rewards:
        first, last, count = first_and_last([value for _, value in rewards])
        steps = "step" if count == 1 else f"{count} steps"
        found.append((f"Reward, first and last {steps}", f"{first:+.3f} → {last:+.3f}"))
    seconds = sum(_seconds(line) for line in facts.metrics)
    if seconds:
        found.append(("Time in steps", duration(seconds)))
    images = sum(value for _, value in facts.values("pictures"))
    if images:
        found.append(("Images drawn", f"{images:,.0f}"))
    for key, name in (("objective.name", "Objective"), ("model.trains", "Trains")):
        if key in facts.config:
            found.append((name, _shown(facts.config[key])))
    if "world_size" in facts.environment:
        found.append(("Ranks", _shown(facts.environment["world_size"])))
    return found


def duration(seconds: float) -> str:
    """A time as people say it: 48 s, 5 min 12 s, 42 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def _seconds(line: Mapping[str, Any]) -> float:
    return sum(float(v) for k, v in line.items() if k.startswith(TIME) and isinstance(v, int | float))


def _evaluation(facts: RunFacts, large: Thumbnails) -> dict[str, Any] | None:
    if facts.result is None:
        return None
    try:
        rows = table_rows(facts.result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        facts.problems.append(f"{facts.run_dir / 'result.json'} is no result of an evaluation ({error!r}).")
        return None
    grid = facts.run_dir / EVAL_GRID
    picture = large.of(grid) if grid.is_file() else None
    return {"rows": rows, "picture": picture, "boxes": []}


def _benchmark_extremes(found: Sequence[Measured], thumbnails: Thumbnails) -> list[dict[str, Any]]:
    sections = []
    for benchmark in found:
        known = sorted((s for s in benchmark.scores if s.value is not None), key=lambda s: -(s.value or 0.0))
        count = min(EXTREMES, len(known) // 2)
        if count == 0:
            continue
        of = f"of {len(known)} images of the trained model, {benchmark.name}"
        for title, part in (("Highest scores", known[:count]), ("Lowest scores", known[::-1][:count])):
            cards = [_score_card(score, benchmark, thumbnails) for score in part]
            sections.append({"title": title, "of": of, "cards": cards})
    return sections


def _score_card(score: Score, benchmark: Measured, thumbnails: Thumbnails) -> dict[str, Any]:
    value = score.value or 0.0
    return {
        "text": score.text,
        "category": score.category,
        "id": score.id,
        "score": number(value, benchmark.full),
        "share": round(100 * min(1.0, max(0.0, value / benchmark.full)), 1),
        "words": score.words,
        "picture": thumbnails.of(benchmark.folder / "trained" / score.picture) if score.picture else None,
        "boxes": overlay(score.boxes),
        "map": "",
    }


def _replies(facts: RunFacts) -> dict[str, Any]:
    """The most frequent replies that could not be used."""
    said = [str(record.get("reply", "")) for record in facts.failures]
    questions = {str(r.get("reply", "")): str(r.get("question", "")) for r in reversed(facts.failures)}
    often = Counter(said).most_common(REPLIES)
    return {
        "count": len(said),
        "file": FAILURES,
        "kinds": len(set(said)),
        "rows": [{"times": times, "reply": reply, "question": questions[reply]} for reply, times in often],
    }


def _time(facts: RunFacts) -> dict[str, Any] | None:
    """Seconds a step by phase, as shares and as a table."""
    lines = [{k: v for k, v in line.items() if isinstance(v, int | float)} for line in facts.metrics]
    names = list(dict.fromkeys(key for line in lines for key in line if key.startswith(TIME)))
    if not names:
        return None
    sums = {name.removeprefix(TIME): sum(line.get(name, 0.0) for line in lines) for name in names}
    whole = sum(sums.values()) or 1.0
    phases = [
        {
            "name": name,
            "seconds": f"{seconds / len(lines):.2f}",
            "share": round(100 * seconds / whole, 1),
            "number": position % 6 + 1,
        }
        for position, (name, seconds) in enumerate(sums.items())
    ]
    rows = {row[0]: row for row in usage_rows(lines)}
    for phase in phases:
        row = rows.get(str(phase["name"]))
        phase["flops"], phase["mfu"] = (row[3], row[4]) if row else ("", "")
    return {
        "phases": phases,
        "total": duration(whole),
        "a_step": f"{whole / len(lines):.2f}",
        "rates": usage_rates(lines),
        "counted": any(phase["flops"] for phase in phases),
    }


def _changed(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, value, default) of the settings that are not their defaults."""
    defaults = {
        f"{section}.{name}": value
        for section, content in plain_config(Config()).items()
        for name, value in content.items()
    }
    return [
        (key, _shown(value), _shown(defaults[key]))
        for key, value in config.items()
        if key in defaults and value != defaults[key]
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict) and value:
            found += _flat(value, f"{name}, ")
        else:
            found.append((name, _shown(value)))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
