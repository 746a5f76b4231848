"""A run's folder: its file names, its lock, whether it fits the settings, and when it is finished."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config import Config, load_config, save_config
from srum_ds.monitoring.records import METRICS
from srum_ds.monitoring.run_changes import (
    CHECKPOINTS,
    CONFIG,
    EXPORT,
    FORMER,
    STOPPED_BY_WATCH,
    goes_on,
    refuse_changes,
    take_up,
)
from srum_ds.monitoring.run_fork import pin_fork
from srum_ds.monitoring.run_inputs import check_inputs

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "EXPORT",
    "FORMER",
    "ROLLOUTS",
    "STOPPED_BY_WATCH",
    "has_begun",
    "identity",
    "is_finished",
    "load_run",
    "locked",
    "prepare",
    "publish_export",
    "refuse_another",
    "refuse_other_settings",
]

ROLLOUTS = "rollouts"


def prepare(run_dir: Path, cfg: Config) -> list[str]:
    """Makes the folder and saves the resolved configuration, or takes up the run that is there with these settings.

    Returns in sentences which inputs' changed contents are accepted (``run_inputs``), and which settings have changed
    since (``run_changes``). Raises UserError naming the keys and the inputs that may not differ, and for a folder that
    cannot be written.
    """
    saved = run_dir / CONFIG
    if refuse_other_settings(run_dir, cfg):
        accepted = check_inputs(run_dir, cfg, begun=True)
        told = [f"{changed} has changed since the run began, which is accepted" for changed in accepted]
        return [*told, *take_up(run_dir, load_config(saved), cfg)]
    # Nothing has been trained there: a call that failed on a wrong setting binds nobody to it.
    pin_fork(run_dir, cfg)
    save_config(cfg, saved)
    check_inputs(run_dir, cfg, begun=False)
    return []


def has_begun(run_dir: Path) -> bool:
    """Whether a run has begun there: a call that failed on a wrong setting binds nobody to it."""
    return any((run_dir / name).exists() for name in (CHECKPOINTS, EXPORT, METRICS))


def refuse_other_settings(run_dir: Path, cfg: Config) -> bool:
    """Whether a run has begun there; UserError naming the keys of these settings that it may not go on with."""
    if not has_begun(run_dir):
        return False
    saved = run_dir / CONFIG
    if not saved.exists():
        raise UserError(f"{run_dir} holds a run without its {CONFIG}; choose another run.dir.")
    refuse_changes(run_dir, load_config(saved), cfg)
    return True


def identity(run_dir: Path) -> tuple[int, int]:
    """What tells the folder from another of its name: device and inode. UserError where it cannot be looked at."""
    try:
        found = os.stat(run_dir)
    except OSError as error:
        raise UserError(
            f"run.dir {run_dir} is not there any more ({error.strerror or error}): was it moved or removed while the "
            "run went on? The run ends here and makes no new folder. Put it back, or give its new place as run.dir; "
            "the same command goes on from its last checkpoint."
        ) from error
    return found.st_dev, found.st_ino


def refuse_another(run_dir: Path, known: tuple[int, int]) -> None:
    """Raises UserError where the folder that the run began in is not there any more, under its name."""
    if identity(run_dir) != known:
        raise UserError(
            f"run.dir {run_dir} is another folder than the one that this run began in, which was moved or removed "
            "meanwhile. The run ends here and writes nothing there. Give the folder's new place as run.dir, and the "
            "same command goes on from its last checkpoint."
        )


@contextmanager
def locked(run_dir: Path, work: str = "training") -> Iterator[None]:
    """Holds the folder for this process; the lock ends with the process, however that ends.

    Raises UserError where the folder cannot be made or written, or another process holds it; ``work`` is what that one
    does there, for the message.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / ".lock", "w")
    except (OSError, ValueError) as error:
        # ValueError: a NUL in the name.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"{ascii(str(run_dir))[1:-1]} is no folder that can be written ({reason}); choose another one (run.dir, or "
            "--out)."
        ) from error
    with lock as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is {work} in {run_dir}; wait for it or stop it.") from error
        yield


def load_run(run_dir: Path, overrides: Sequence[str] = ()) -> Config:
    """The settings of the run in a folder, wherever the folder was moved to since."""
    return load_config(run_dir / CONFIG, [f"run.dir={run_dir}", *overrides])


def is_finished(run_dir: Path, cfg: Config | None = None) -> bool:
    """Whether the trained model stands there, whole; with ``cfg``, whether it is what these settings ask for.

    Other ranks may ask while the first one prepares the folder: it moves the export away before it notes the settings.
    """
    if cfg is not None and (run_dir / CONFIG).exists() and goes_on(run_dir, load_config(run_dir / CONFIG), cfg):
        return False
    # Whatever files its design has in it: it is moved there whole.
    return (run_dir / EXPORT).is_dir()


def publish_export(partial: Path, run_dir: Path) -> None:
    """Moves a completely written export to its place."""
    final = run_dir / EXPORT
    # Half of an export must never stand under its name.
    aside = run_dir / f"{EXPORT}.removed"
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        os.replace(final, aside)
    os.replace(partial, final)
    shutil.rmtree(aside, ignore_errors=True)
