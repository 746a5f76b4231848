"""A run's looks at its held-out prompts: when, what is said and written of them, and which checkpoint is the best."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srum_ds.common import ranks
from srum_ds.common.files import write_atomic
from srum_ds.common.phases import PHASES
from srum_ds.config import Config
from srum_ds.engine.checkpoint_files import committed_steps
from srum_ds.evaluation.held_out import HeldOut, best_of, told
from srum_ds.evaluation.run_words import best_text, checkpoint_of, settings_told
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.records import BEST
from srum_ds.monitoring.trackers import TrackerRun, open_trackers
from srum_ds.monitoring.writer import Monitor


class Lookout:
    """Looks and tells. looks: those of former calls of the run; the same on all ranks, as everything decided here."""

    def __init__(self, held_out: HeldOut, monitor: Monitor, run_dir: Path, looks: list[dict[str, Any]]) -> None:
        self.held_out = held_out
        self.monitor = monitor
        self.run_dir = run_dir
        self.looks = looks

    def before_step(self, done: int) -> None:
        """Looks at the base, unless an earlier call did; all ranks call it."""
        PHASES.enter("watch")
        drawing = self._drawing("drawing the base's held-out images", say=True)
        base = self.held_out.open_base(self.run_dir, done, drawing)
        if base is not None:
            self.looks = [base, *(look for look in self.looks if look["step"] > 0)]
            self.monitor.held_out(base)
            self.monitor.message(told(base))
        elif self.held_out.every and not self.held_out.base:
            self.monitor.message("held-out: the run began without a look at the base, so later ones stand alone")

    def after_step(self, done: int, metrics: dict[str, Any]) -> bool:
        """Looks where that is due after ``done`` steps; whether it is the best look so far. All ranks call it.

        metrics: the step's, which gain the checker's share.
        """
        if not self.held_out.due(done):
            return False
        PHASES.enter("watch")
        look = self.held_out.record(done, self.held_out.look(self._drawing("drawing held-out images")))
        self.monitor.activity("")
        if "checker_exact" in look:
            metrics["checker_exact"] = look["checker_exact"]
        self.looks.append(look)
        self.monitor.held_out(look)
        self.monitor.message(told(look))
        return best_of(self.looks) is look

    @property
    def protected(self) -> tuple[int, ...]:
        """The step whose checkpoint is not to be removed."""
        best = best_of(self.looks)
        return () if best is None else (int(best["step"]),)

    def write_best(self) -> None:
        """Says in ``best.json`` which checkpoint has the best held-out self-reward; all ranks call it."""
        best = best_of(self.looks)
        if best is not None:
            text = best_text(best)
            ranks.run_on_all_ranks(lambda: write_atomic(self.run_dir / BEST, text), rank_zero=True)

    def _drawing(self, words: str, say: bool = False) -> Callable[[int, int], None]:
        return lambda drawn, total: self.monitor.activity(words, drawn / total if total else None, say)


def taken_up(monitor: Monitor, run_dir: Path, done: int) -> list[dict[str, Any]]:
    """The looks of a run that goes on after ``done`` steps, its records cut to them. Rank 0 alone calls it.

    One whose checkpoint is gone is no candidate for the best any more, nor is what ``best.json`` says of it.
    """
    looks = monitor.truncate(done)
    best = best_of(looks)
    there = best is not None and (run_dir / checkpoint_of(best)).is_dir()
    if not there:
        (run_dir / BEST).unlink(missing_ok=True)
    return looks


def open_monitor(cfg: Config, run_dir: Path) -> Monitor:
    """What shows the run, on the first rank with its trackers; UserError for one that cannot begin."""
    images = cfg.rollout.prompts_per_step * cfg.rollout.images_per_prompt
    monitor = Monitor(
        run_dir,
        int(os.environ.get("RANK", "0")),
        cfg.log.tensorboard,
        cfg.log.progress,
        cfg.train.steps,
        images=images,
        from_base=cfg.train.mode != "offline",
    )
    if monitor.active and cfg.log.trackers:
        done = max(committed_steps(run_dir / run_folder.CHECKPOINTS), default=0)
        run = TrackerRun(run_dir.resolve().name, cfg.log.project, run_dir, settings_told(cfg), done)
        monitor.track(open_trackers(cfg.log.trackers, run, monitor.message))
    monitor.activity(f"loading {cfg.written('model.path')}", say=True)
    return monitor
