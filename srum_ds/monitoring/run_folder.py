"""A run's folder: its file names, its lock, whether it fits the settings, and when it is finished."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config import Config, diff_configs, load_config, save_config
from srum_ds.config.schema import EvalConfig
from srum_ds.monitoring.writer import METRICS

# What may change between two calls of one run: nothing here changes a weight, but by rounding. ``eval.weights``
# does: it says which weights are exported.
_EVAL = tuple(f"eval.{field.name}" for field in fields(EvalConfig) if field.name != "weights")
FREE = ("log", "kernels", "deepspeed.ranks", "run.dir", *_EVAL)
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
STOPPED_BY_WATCH = "stopped_by_watch.json"
ROLLOUTS = "rollouts"


def prepare(run_dir: Path, cfg: Config) -> None:
    """Makes the folder and saves the resolved configuration, or checks that the saved one is the same.

    Raises UserError naming the keys that differ, and for a folder that cannot be written.
    """
    saved = run_dir / CONFIG
    if refuse_other_settings(run_dir, cfg):
        return
    # Nothing has been trained there: a call that failed on a wrong setting binds nobody to it.
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.dir {run_dir} cannot be made ({error}); choose another folder.") from error
    save_config(cfg, saved)


def refuse_other_settings(run_dir: Path, cfg: Config) -> bool:
    """Whether a run with these settings has begun there; UserError naming the keys where they differ."""
    if not any((run_dir / name).exists() for name in (CHECKPOINTS, EXPORT, METRICS)):
        return False
    saved = run_dir / CONFIG
    if not saved.exists():
        raise UserError(f"{run_dir} holds a run without its {CONFIG}; choose another run.dir.")
    changed = diff_configs(load_config(saved), cfg, ignore=FREE)
    if changed:
        listed = "; ".join(f"{key} was {old!r} and is now {new!r}" for key, old, new in changed)
        raise UserError(
            f"{run_dir} holds a run with other settings: {listed}. Give the run's own settings to go on "
            f"with it, or another run.dir to start a new one."
        )
    return True


@contextmanager
def locked(run_dir: Path, work: str = "training") -> Iterator[None]:
    """Holds the folder for this process; the lock ends with the process, however that ends.

    Raises UserError where another process holds it; ``work`` is what that one does there, for the message.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is {work} in {run_dir}; wait for it or stop it.") from error
        yield


def is_finished(run_dir: Path) -> bool:
    """Whether the trained model stands there, whole."""
    return (run_dir / EXPORT / "ema.safetensors").exists()


def publish_export(partial: Path, run_dir: Path) -> None:
    """Moves a completely written export to its place."""
    final = run_dir / EXPORT
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
