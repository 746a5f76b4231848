"""Runs side by side by what was looked at while they trained, for ``srum-ds compare`` where one has no evaluation.

No picture is paired here, so a difference between two runs has the error of two independent ones: the larger one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from srum_ds.common.files import write_atomic
from srum_ds.evaluation.report import RESULT
from srum_ds.evaluation.run_report.benchmarks import FOLDER
from srum_ds.evaluation.run_report.facts import RunFacts, read_run
from srum_ds.evaluation.run_report.listing import Line, line_of
from srum_ds.evaluation.run_report.verdict import Difference
from srum_ds.evaluation.scored import RESULTS
from srum_ds.monitoring.blocks import path_text
from srum_ds.monitoring.records import METRICS
from srum_ds.monitoring.run_folder import CONFIG

COMPARISON = "compare.json"
ALIKE = (
    *("data.shards", "data.prompts", "data.column", "data.train_share", "watch.prompts", "model.path"),
    *("rollout.image_size", "rollout.num_timesteps", "rollout.timestep_shift", "rollout.text_scale"),
    *("judge.readout", "judge.options", "judge.global_template", "judge.answers", "judge.scale", "judge.think"),
    *("judge.caption_template", "judge.external", "judge.external_weight"),
)
"""Settings that must be equal for held-out figures of two runs to be of the same thing: prompts, sampler and judges."""


def not_evaluated(runs: Sequence[Path]) -> list[Path]:
    """Those that are folders of runs, and that nobody has evaluated yet."""
    return [run for run in runs if _is_run(run) and not _has_evaluation(run)]


def _is_run(run: Path) -> bool:
    return (run / CONFIG).is_file() or (run / METRICS).is_file()


def _has_evaluation(run: Path) -> bool:
    return any((run / name).is_file() for name in (RESULT, RESULTS)) or any(run.glob(f"{FOLDER}/*/trained/{RESULTS}"))


def compare_by_training(runs: Sequence[Path], out: Path, console: Console | None = None) -> dict[str, Any]:
    """Prints the runs' held-out figures and rewards side by side, with what is missing, and writes ``compare.json``.

    Returns its content. Raises UserError for a folder that holds no run.
    """
    console = console or Console()
    facts = [read_run(run) for run in runs]
    lines = [line_of(each) for each in facts]
    notes = _notes(runs, facts, lines)
    against = [None, *(_against(lines[0], line) for line in lines[1:])]
    result = {
        "kind": "training",
        "runs": [
            {
                "folder": str(run),
                "steps_done": line.steps_done,
                "reward_first": line.reward_first,
                "reward_last": line.reward_last,
                "reward_steps": line.reward_steps,
                "held_out": line.held_out,
                "held_out_stderr": line.held_out_stderr,
                "against_first": None if found is None else found.mean,
                "against_first_stderr": None if found is None else found.stderr,
            }
            for run, line, found in zip(runs, lines, against, strict=True)
        ],
        "notes": notes,
    }
    write_atomic(out / COMPARISON, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    console.print(_table(runs, lines, against))
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    console.print(f"written: {out}/{COMPARISON}", soft_wrap=True, highlight=False, markup=False)
    return result


def _against(first: Line, line: Line) -> Difference | None:
    known = (first.held_out, first.held_out_stderr, line.held_out, line.held_out_stderr)
    if any(value is None for value in known):
        return None
    before, before_error, after, after_error = (float(value or 0.0) for value in known)
    return Difference(after - before, math.hypot(before_error, after_error))


def _table(runs: Sequence[Path], lines: Sequence[Line], against: Sequence[Difference | None]) -> Table:
    table = Table(title="runs by what was looked at during training")
    headings = ("run", "steps", "reward, first and last steps", "held-out less base", "against the first")
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position == 0 else "right", overflow="fold")
    for run, line, found in zip(runs, lines, against, strict=True):
        rewards = "-" if line.reward_first is None else f"{line.reward_first:+.3f} to {line.reward_last:+.3f}"
        held = "-"
        if line.held_out is not None:
            error = line.held_out_stderr
            held = f"{line.held_out:+.3f}" if error is None else str(Difference(line.held_out, error))
        table.add_row(escape(str(run)), str(line.steps_done), rewards, held, "-" if found is None else str(found))
    return table


def _notes(runs: Sequence[Path], facts: Sequence[RunFacts], lines: Sequence[Line]) -> list[str]:
    bare = not_evaluated(runs)
    notes = [
        f"{run} has no evaluation, so no pictures could be paired: `srum-ds eval {path_text(run)}` makes one of a "
        "finished run (with --benchmark, where its prompts are your own)."
        for run in bare
    ]
    notes += [
        f"{run} has no held-out figures (no held_out.jsonl with a look after the first step)."
        for run, line in zip(runs, lines, strict=True)
        if line.held_out is None
    ]
    notes += [
        f"{run} looked at too few held-out prompts to know the error of its difference."
        for run, line in zip(runs, lines, strict=True)
        if line.held_out is not None and line.held_out_stderr is None
    ]
    first = facts[0]
    for run, each in zip(runs[1:], facts[1:], strict=True):
        # What a run of a former version does not say had that version's default.
        known = [key for key in ALIKE if key in first.config and key in each.config]
        differing = [key for key in known if first.config[key] != each.config[key]]
        if differing:
            said = ", ".join(f"{key} {each.config.get(key)!r} for {first.config.get(key)!r}" for key in differing)
            notes.append(f"{run} looked at something else than {runs[0]}: {said}. Do not compare their figures.")
        if each.steps_done != first.steps_done:
            notes.append(f"{run} has done {each.steps_done} steps, {runs[0]} {first.steps_done}.")
    notes.append("These rewards are the models’ own judgement; whether images are better, an evaluation says.")
    return [*notes, *(problem for each in facts for problem in each.problems)]
