"""When a fault strikes: a job is watched until it stands where the fault was drawn for, and a little longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.doors import Job

START, STEP, SAVE, EXPORT, EVALUATION = "start-up", "step", "save", "export", "evaluation"


@dataclass(frozen=True)
class Moment:
    """A place in a run and a delay after it, in seconds. step: done steps, for ``STEP`` and ``SAVE``."""

    place: str
    step: int = 0
    delay: float = 0.0

    def __str__(self) -> str:
        at = f" {self.step}" if self.place in (STEP, SAVE) else ""
        return f"{self.place}{at} + {self.delay:.2f} s"


def reached(moment: Moment, job: Job, run: Path, role: str, limit: float) -> bool:
    """Waits until a job is at the moment and has a process of the role; False where it ends before, or never is."""
    there = _place(moment, run)
    end = time.monotonic() + limit
    while True:
        stands = there()
        if stands and job.processes(role):
            break
        if job.has_ended() or time.monotonic() > end:
            return False
        # Looking for processes takes a while of a core; looking for a file does not.
        time.sleep(0.05 if stands else 0.002)
    time.sleep(moment.delay)
    return not job.has_ended()


def _place(moment: Moment, run: Path) -> Callable[[], bool]:
    if moment.place == STEP:
        return lambda: steps_done(run) >= moment.step
    if moment.place == SAVE:
        partial = run / "checkpoints" / f"step_{moment.step:06d}.partial"
        return lambda: partial.exists() or steps_done(run) > moment.step
    if moment.place == EXPORT:
        return lambda: (run / "export.partial").exists() or (run / "export").exists()
    return lambda: True


def steps_done(run: Path) -> int:
    """Whole lines of a run's record."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0
