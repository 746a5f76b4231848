"""What may change of a run between two calls, and what becomes of the folder when it does.

Nothing that may change makes another weight of a step that is taken already, but by rounding. What the run was before
is kept: ``former/step_000120`` holds the settings that made the first 120 steps, and the export and results of a run
that had ended there.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config import Config, diff_configs, flat_config, save_config
from srum_ds.config.changes import FREE, STEPS, steps_decide
from srum_ds.monitoring.run_inputs import moved

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
STOPPED_BY_WATCH = "stopped_by_watch.json"
FORMER = "former"
# What says of a run that it has ended, and how well: the export first, why it ended last (``is_finished``).
_OF_THE_END = (
    EXPORT,
    "result.json",
    "outcomes.json",
    "eval.md",
    "samples/eval_grid.png",
    "eval",
    "report.html",
    STOPPED_BY_WATCH,
)
_CHECKPOINT = re.compile(r"step_(\d{6,})")


def refuse_changes(run_dir: Path, saved: Config, cfg: Config) -> None:
    """Raises UserError naming every setting that may not change, with both values and the ways out.

    saved: what the run has. Paths may change where what they name has the contents that the run began with.
    """
    changed = diff_configs(saved, cfg, ignore=FREE)
    same = moved(run_dir, saved, cfg) if changed else set()
    refused = []
    for key, _, _ in changed:
        why = _why_not_steps(run_dir, saved, cfg) if key == STEPS else ""
        if key not in same and why is not None:
            refused.append(f"{key} was {shown(saved, key)} and is now {shown(cfg, key)}" + (f" ({why})" if why else ""))
    if not refused:
        return
    fork = f", perhaps from this run's weights (--fork {run_dir})" if newest_step(run_dir) else ""
    raise UserError(
        f"{run_dir} holds a run with other settings: {'; '.join(refused)}. Give the run's own settings to go on with "
        f"it, or another run.dir to start a new one{fork}. docs/runs.md says what may change."
    )


def goes_on(run_dir: Path, saved: Config, cfg: Config) -> bool:
    """Whether a run that has ended is to go on: it has more steps now, or it was ended by a watch that has changed."""
    ended_by_watch = cfg.watch != saved.watch and (run_dir / STOPPED_BY_WATCH).exists()
    return cfg.train.steps > saved.train.steps or ended_by_watch


def take_up(run_dir: Path, saved: Config, cfg: Config) -> list[str]:
    """Makes the folder say what the run is from now on, and keeps what it was; returns what was done, in sentences.

    Only what ``refuse_changes`` lets pass may differ. Killed in between, the same call does the rest: the settings are
    written last.
    """
    changed = [key for key, _, _ in diff_configs(saved, cfg, ["run.accept_changed_inputs"])]
    if not changed:
        return []
    step = newest_step(run_dir)
    former = run_dir / FORMER / f"step_{step:06d}"
    told = []
    if goes_on(run_dir, saved, cfg) and (run_dir / EXPORT).exists():
        told.append(f"goes on to {cfg.train.steps} steps; the model of step {step} and its results are in {former}")
    try:
        if step and not (former / CONFIG).exists():
            save_config(saved, former / CONFIG)
        if goes_on(run_dir, saved, cfg):
            for name in _OF_THE_END:
                _set_aside(run_dir / name, former / name)
    except OSError as error:
        raise UserError(
            f"{error.filename or former}: could not be written ({error.strerror or error}). Free space or fix the "
            "permissions, and run the same command again."
        ) from error
    save_config(cfg, run_dir / CONFIG)
    listed = ", ".join(f"{key} {shown(saved, key)} -> {shown(cfg, key)}" for key in changed)
    return [*told, f"changed settings, noted in {run_dir / CONFIG}: {listed}"]


def shown(cfg: Config, key: str) -> str:
    """A setting's value for a message or a record: as it was written where it reads the environment."""
    return repr(cfg.written(key) if cfg.reads_environment(key) else flat_config(cfg)[key])


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    found = (_CHECKPOINT.fullmatch(path.name) for path in (run_dir / CHECKPOINTS).glob("step_*"))
    return max((int(match.group(1)) for match in found if match), default=0)


def _set_aside(path: Path, target: Path) -> None:
    if not path.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(path, target)


def _why_not_steps(run_dir: Path, saved: Config, cfg: Config) -> str | None:
    """Why a run may not have this other number of steps; None where it may."""
    if cfg.train.steps < saved.train.steps:
        return "it may only grow"
    if why := steps_decide(cfg):
        return why
    if (run_dir / STOPPED_BY_WATCH).exists() and cfg.watch == saved.watch:
        return "the watch ended this run and would again: go on past it with watch.stop=false"
    return None
