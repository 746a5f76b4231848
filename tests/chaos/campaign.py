"""Draws the faults of a campaign and carries one out: start, strike, wait, repeat, compare."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from srum_ds.common.environment import ROOT, git_state
from tests.chaos import kinds_files, kinds_signals
from tests.chaos.doors import EVALUATION, Job, start
from tests.chaos.fault import Fault
from tests.chaos.moments import reached, steps_done
from tests.chaos.verdict import FAILED, Attempt, Verdict, judge
from tests.chaos.workshop import Workshop, digest, evaluation_words, export_of

KINDS: dict[str, Callable[[Random, Workshop], Fault]] = {
    "kill": kinds_signals.kill,
    "stop": kinds_signals.stop,
    "freeze": kinds_signals.freeze,
    "pause": kinds_signals.pause,
    "evaluation": kinds_signals.evaluation,
    "checkpoint": kinds_files.checkpoint,
    "prompts": kinds_files.prompts,
    "model": kinds_files.model,
    "disk": kinds_files.disk,
    "read": kinds_files.read,
    "judge": kinds_files.judge,
}
# Of sixteen faults, so many of each kind.
ROUND = [*KINDS, "kill", "kill", "stop", "checkpoint", "judge"]
MOST_CALLS = 6
STRIKES = 4
# What a refusal leaves alone; the rest of a run's folder is written at each start, and config.yaml takes its limits.
KEPT = ("checkpoints", "export", "metrics.jsonl", "inputs.json")


@dataclass(frozen=True)
class Record:
    """One line of a campaign: the fault, and what became of it.

    seconds_to_detect: from the strike (or the start, where the fault was there) to the end of the last process of the
    job. limit_seconds: how long a call might take. calls: the statuses of each call of the same command. message: what
    the first call said. load: of the machine, at the end. commit: of this tree.
    """

    number: int
    seed: int
    kind: str
    what: str
    done: str
    moment: str | None
    door: str
    ranks: int
    calls: list[list[int | None]]
    outcome: str
    why: list[str]
    seconds_to_detect: float
    seconds: float
    limit_seconds: float
    steps_lost: int
    equal: bool
    message: str
    load: float
    commit: str | None


def draw(seed: int, number: int, shop: Workshop, only: Sequence[str] = ()) -> Fault:
    """The fault of this number: a function of (seed, number) and the machine's pace alone. only: kinds to draw."""
    kinds = [kind for kind in ROUND if not only or kind in only]
    Random(f"{seed}/{number // len(kinds)}").shuffle(kinds)
    kind = kinds[number % len(kinds)]
    return KINDS[kind](Random(f"{seed}/{number}/{kind}"), shop)


def carry_out(seed: int, number: int, shop: Workshop, only: Sequence[str] = ()) -> Record:
    """Carries one fault out in a folder of its own, which stays where it fails."""
    began = time.monotonic()
    for strike in range(STRIKES):
        fault = draw(seed, number, shop, only)
        case = shop.folder / "cases" / f"{number:04d}"
        made = _Case(fault, case, shop)
        try:
            made.run(strike)
        finally:
            made.close()
        if made.struck:
            break
    verdict = made.verdict()
    if verdict.outcome != FAILED:
        shutil.rmtree(case, ignore_errors=True)
    said = [message for attempt in made.attempts[:1] for message in attempt.messages]
    return Record(
        number,
        seed,
        fault.kind,
        fault.what,
        made.done,
        None if fault.moment is None else str(fault.moment),
        fault.door,
        fault.ranks,
        [list(attempt.statuses) for attempt in made.attempts],
        verdict.outcome,
        list(verdict.why),
        round(made.detected, 1),
        round(time.monotonic() - began, 1),
        round(made.limit, 1),
        verdict.steps_lost,
        made.equal,
        " / ".join(said)[:500],
        round(os.getloadavg()[0], 1),
        git_state(ROOT)[0],
    )


class _Case:
    """One fault being carried out."""

    def __init__(self, fault: Fault, case: Path, shop: Workshop) -> None:
        self.fault, self.case, self.shop = fault, case, shop
        self.limit = shop.patience + fault.extra_limit
        self.attempts: list[Attempt] = []
        self.done = ""
        self.detected = 0.0
        self.equal = False
        self.struck = True
        self.mounted = False

    def run(self, strike: int) -> None:
        """Everything, to the end of the last call. strike: how often the moment was missed before."""
        fault = self.fault
        self.shop.copy(fault.source, self.case)
        if fault.mount is not None:
            self._mount(fault.mount)
        if fault.before is not None:
            self.done = fault.before(self.case)
        undone = False
        while len(self.attempts) < MOST_CALLS:
            attempt = self._call(first=not self.attempts, undone=undone)
            self.attempts.append(attempt)
            if not self.struck and strike + 1 < STRIKES:
                return
            if attempt.ended_well or None in attempt.statuses:
                break
            if not undone and len(self.attempts) > fault.again:
                self._undo()
                undone = True
        self.equal = self._is_equal()

    def verdict(self) -> Verdict:
        """What became of it."""
        if not self.struck:
            return Verdict(FAILED, (f"its moment never came in {STRIKES} tries: {self.fault.moment}",))
        return judge(self.fault.expected, self.attempts, self.equal)

    def close(self) -> None:
        """Gives back the disk."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.case / "run")], check=False)
            self.mounted = False

    def _call(self, first: bool, undone: bool) -> Attempt:
        fault, shop = self.fault, self.shop
        before, steps = self._kept(), steps_done(self.case / "run")
        log = self.case / "logs" / f"call{len(self.attempts) + 1}.txt"
        log.parent.mkdir(exist_ok=True)
        run = self.case / "run"
        is_evaluation = fault.door == EVALUATION
        words = evaluation_words(run) if is_evaluation else shop.words(self.case)
        more = {} if undone else fault.variables
        job = start(fault.door, fault.ranks, words, str(self.case), log, more)
        at = job.began
        try:
            if first and fault.strike is not None and fault.moment is not None:
                self.struck = reached(fault.moment, job, run, fault.role, self.limit)
                at = time.monotonic()
                if self.struck:
                    self.done = fault.strike(job, fault.role)
            statuses, left = self._wait(job)
        finally:
            job.kill()
        seconds = time.monotonic() - job.began
        if first:
            self.detected = time.monotonic() - at
        finished = (run / "outcomes.json" if is_evaluation else run / "export" / "ema.safetensors").exists()
        done = steps_done(run)
        # A call that took steps has changed the run, as it should.
        altered = tuple(_differences(before, self._kept())) if done == steps else ()
        return Attempt(tuple(statuses), seconds, job.text(), done, finished, left, altered, undone)

    def _wait(self, job: Job) -> tuple[list[int | None], int]:
        """The statuses at the end, or at the limit, and how many processes outlived it."""
        end = job.began + self.limit
        while time.monotonic() < end:
            job.look()
            if job.has_ended() and not job.left():
                break
            time.sleep(0.2)
        return job.statuses(), len(job.left()) if job.has_ended() else 0

    def _undo(self) -> None:
        if self.fault.undo is not None:
            self.fault.undo(self.case)
        if self.mounted:
            (self.case / "run" / "filling").unlink(missing_ok=True)
            subprocess.run(["mount", "-o", "remount,size=1g", str(self.case / "run")], check=True)

    def _mount(self, options: str) -> None:
        """Puts a small disk where the run's folder is; its content goes there."""
        run = self.case / "run"
        aside = self.case / "aside"
        if run.exists():
            run.rename(aside)
        run.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", str(run)], check=True)
        self.mounted = True
        if aside.exists():
            shutil.copytree(aside, run, dirs_exist_ok=True)
            shutil.rmtree(aside)

    def _kept(self) -> dict[str, str]:
        """What a refusal must leave alone, by name: a checkpoint set aside is still there."""
        run = self.case / "run"
        found: dict[str, str] = {}
        for name in KEPT:
            top = run / name
            files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
            for path in files:
                place = str(path.relative_to(run)).replace(".corrupt", "")
                if ".partial" not in place:
                    found[place] = digest(path)
        return found

    def _is_equal(self) -> bool:
        run = self.case / "run"
        export = export_of(run) == self.shop.export
        if self.fault.door == EVALUATION:
            outcomes = run / "outcomes.json"
            return export and outcomes.exists() and digest(outcomes) == self.shop.outcomes
        return export


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of what was there before and is changed or gone."""
    return [name for name, content in before.items() if now.get(name) != content]
