"""Looks at the folder that is written: whether it can be, whether somebody else does, and which run it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from srum_ds.config import Config
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.run_inputs import INPUTS, check_inputs
from srum_ds.preflight.findings import Finding, error, ok


def look_at_folder(folder: Path, part: str, work: str) -> Iterator[Finding]:
    """Whether a folder can be written by this process alone. Nothing is made where none is.

    part: the setting that names it. work: what another process would do there.
    """
    if _is_folder(folder):
        with run_folder.locked(folder, work):
            pass
        if not os.access(folder, os.W_OK | os.X_OK):
            yield error(part, f"{part}={folder} cannot be written by this user; change its owner, or choose another.")
        return
    above = next((parent for parent in folder.absolute().parents if _exists(parent)), Path("/"))
    if _exists(folder):
        yield error(part, f"{part}={folder} is a file, expected a folder or a name for a new one; choose another.")
    elif not above.is_dir():
        yield error(part, f"{part}={folder} cannot be made, since {above} is a file; choose another.")
    elif not os.access(above, os.W_OK | os.X_OK):
        yield error(part, f"{part}={folder} cannot be made, since {above} cannot be written; choose another.")


def look_at_run(cfg: Config) -> Iterator[Finding]:
    """The folder of a training run: ``look_at_folder``, and whether a run with other settings or inputs is there."""
    run_dir = Path(cfg.run.dir)
    found = list(look_at_folder(run_dir, "run.dir", "training"))
    yield from found
    if found:
        return
    begun = run_folder.refuse_other_settings(run_dir, cfg)
    if begun and (run_dir / INPUTS).exists() and not cfg.run.accept_changed_inputs:
        check_inputs(run_dir, cfg, begun=True)
    if run_folder.is_finished(run_dir, cfg):
        yield ok("run.dir", f"{run_dir} holds the finished run: its result is printed, and nothing trains")
    elif begun:
        yield ok("run.dir", f"{run_dir} holds this run: it goes on from its last checkpoint")
    else:
        yield ok("run.dir", f"{run_dir} is free")


def is_finished(cfg: Config) -> bool:
    """Whether the run of these settings is there, whole."""
    return run_folder.is_finished(Path(cfg.run.dir), cfg)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    # lexists: a link to nothing stands in the way, too.
    try:
        return os.path.lexists(path)
    except ValueError:
        return False
