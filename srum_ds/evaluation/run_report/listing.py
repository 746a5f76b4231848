"""``srum-ds runs``: the runs below a folder, one a line, from what stands in their folders."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from srum_ds.common.errors import UserError
from srum_ds.common.texts import is_number
from srum_ds.evaluation.run_report.facts import RunFacts, read_run
from srum_ds.evaluation.run_report.verdict import evaluated_difference, first_and_last, last_look
from srum_ds.monitoring.records import METRICS
from srum_ds.monitoring.run_folder import CONFIG

_NAME = 16
DEPTH = 4
"""Folders below the named one that are looked into."""

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True)
class Line:
    """A run in short.

    state: running, stopped, failed, finished or by watch. reward_first, reward_last: means of the first and the last
    ``reward_steps`` steps. held_out, evaluation: difference from the base with its standard error, None where it is not
    known (the error: where one prompt was looked at); the evaluation is that of ``srum-ds eval`` or of a benchmark.
    age_seconds: since anything was written.
    """

    name: str
    folder: str
    state: str
    steps_done: int
    steps: int | None
    reward_first: float | None
    reward_last: float | None
    reward_steps: int
    held_out: float | None
    held_out_stderr: float | None
    evaluation: float | None
    evaluation_stderr: float | None
    evaluation_of: str
    age_seconds: float
    bytes: int
    problems: tuple[str, ...] = ()


def list_runs(folder: Path) -> list[Line]:
    """The runs in a folder and the folders below it, up to ``DEPTH`` deep; the folder may be a run itself.

    Raises UserError for a folder that is not there. Folders of a run (its checkpoints, its export) are no runs.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that your runs stand in, such as runs.")
    return [line_of(read_run(run), folder) for run in sorted(_runs(folder, DEPTH))]


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / CONFIG).is_file() or (folder / METRICS).is_file():
        yield folder
        return
    if depth > 0:
        try:
            below = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return
        for entry in below:
            if not entry.name.startswith("."):
                yield from _runs(Path(entry.path), depth - 1)


def line_of(facts: RunFacts, below: Path | None = None) -> Line:
    """A run's line. below: the folder that names are relative to; the run's own name without one, or where it is it."""
    run = facts.run_dir
    relative = run.relative_to(below) if below is not None and run.is_relative_to(below) else Path(run.name)
    rewards = [value for _, value in facts.values("reward_global")]
    first, last, count = first_and_last(rewards) if rewards else (None, None, 0)
    held, evaluation = last_look(facts), evaluated_difference(facts)
    size, newest = _extent(run)
    return Line(
        name=relative.as_posix() if relative.name else run.resolve().name,
        folder=str(run),
        state=facts.state.value,
        steps_done=facts.steps_done,
        steps=facts.steps_wanted,
        reward_first=first,
        reward_last=last,
        reward_steps=count,
        held_out=None if held is None else float(held["difference"]),
        held_out_stderr=None if held is None or not is_number(held.get("difference_se")) else held["difference_se"],
        evaluation=None if evaluation is None else evaluation[0].mean,
        evaluation_stderr=None if evaluation is None else evaluation[0].stderr,
        evaluation_of="" if evaluation is None else evaluation[1],
        age_seconds=max(0.0, time.time() - newest),
        bytes=size,
        problems=tuple(problem for problem in facts.problems if facts.metrics or METRICS not in problem),
    )


def _extent(run: Path) -> tuple[int, float]:
    """Bytes of all files of a folder, and when the newest was written. What goes away meanwhile does not count."""
    size, newest = 0, 0.0
    for folder, _, names in os.walk(run):
        for name in names:
            try:
                found = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            size += found.st_size
            newest = max(newest, found.st_mtime)
    return size, newest


def plain_lines(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The lines for JSON."""
    return [asdict(line) for line in lines]


def table_of(lines: Sequence[Line], width: int | None = None) -> Table:
    """The lines for a terminal of ``width`` columns; None: of the one it is shown on.

    Names are folded to ``_NAME`` columns where they must. A narrower terminal breaks the rows: cut to its width, 16 of
    200 steps would read as 16 of 2, and nobody could tell which run it is.
    """
    table = Table(box=None, pad_edge=False)
    headings = ("run", "state", "steps", "reward", "held-out", "evaluation", "age", "size")
    for position, heading in enumerate(headings):
        table.add_column(
            heading, justify="left" if position < 2 else "right", overflow="fold", no_wrap=position > 0, min_width=4
        )
    for line in lines:
        table.add_row(
            Text(line.name),
            line.state,
            str(line.steps_done) if line.steps is None else f"{line.steps_done}/{line.steps}",
            _change(line.reward_first, line.reward_last),
            _difference(line.held_out, line.held_out_stderr),
            _difference(line.evaluation, line.evaluation_stderr),
            age(line.age_seconds),
            size(line.bytes),
        )
    if width is not None:
        needed = [max(cell_len(str(cell)) for cell in (column.header, *column.cells)) for column in table.columns]
        least = min(needed[0], _NAME) + sum(needed[1:]) + 2 * (len(needed) - 1)
        table.width = least if least > width else None
    return table


def _change(first: float | None, last: float | None) -> str:
    return "-" if first is None or last is None else f"{first:+.2f} {last:+.2f}"


def _difference(mean: float | None, stderr: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:+.2f}" if stderr is None else f"{mean:+.2f}±{stderr:.2f}"


def age(seconds: float) -> str:
    """A time as people say it, in its largest unit: 3 d, 5 h, 12 min, 40 s."""
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return "0 s"


def size(number: int) -> str:
    """Bytes in decimal units: 1.2 GB, 35 MB, 820 kB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            value = number / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
    return f"{number} B"
