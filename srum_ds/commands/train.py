"""`srum-ds train`: starts the DeepSpeed launcher on launch/train.sh, which `make train` does through here."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from srum_ds.commands.json_output import Json, one_object
from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from srum_ds.config import Config


def train(
    *arguments: str,
    launcher_args: str = "",
    check: bool = False,
    dry_run: bool = False,
    fork: Path | None = None,
    verbose: bool = False,
    json_: Json = False,
) -> int:
    """Train, or go on where the run stands: starts `deepspeed launch/train.sh`.

    First it looks at everything that can be looked at before a rank starts (docs/preflight.md). Exit status 2 where
    something is wrong; each error is one line, and all of them are told.

    Parameters
    ----------
    arguments
        [RECIPE] [key=value ...]: a recipe (without one launch/recipes/tiny.yaml) and settings on top of it.
    launcher_args
        The DeepSpeed launcher's own flags in one word, such as --launcher-args="--num_gpus 4".
    check
        Look at everything, print what was found, and stop.
    dry_run
        Print the launcher's command line and the plan of the run at its number of ranks, and stop. The model is built
        without memory for its weights.
    fork
        Begin a new run (run.dir) with the weights of this run's newest checkpoint, or of run.fork_step=N.
    verbose
        Show the launcher's own lines too; run.log in the run's folder has them in any case.
    """
    from srum_ds.commands.launcher import build_command, build_environment, has_cuda, run_command
    from srum_ds.commands.preflight import ranks_of, refuse, tell
    from srum_ds.commands.train_summary import train_summary
    from srum_ds.config import split_arguments
    from srum_ds.monitoring import run_folder
    from srum_ds.preflight import Start, look_at
    from srum_ds.preflight.findings import error, ok

    recipe, overrides = split_arguments([*arguments, *([] if fork is None else [f"run.fork={fork}"])])
    flags = shlex.split(launcher_args)
    cfg, found = look_at(Start("train", recipe, overrides), lambda cfg: ranks_of(cfg, flags))
    command: list[str] = []
    if cfg is not None:
        try:
            command = build_command(cfg, recipe, overrides, flags)
            found.append(ok("launcher", shlex.join(command)))
        except UserError as problem:
            if not any(finding.text == str(problem) for finding in found):
                found.append(error("launcher", str(problem)))
    if check:
        return tell(found, json_)
    status = refuse(found)
    if status or cfg is None:
        return status
    if dry_run:
        return _plan(cfg, command, ranks_of(cfg, flags), json_)
    # Held by a rank from here on; who is quicker is told by theirs.
    with run_folder.locked(Path(cfg.run.dir)):
        pass
    environment = build_environment(os.environ, cfg.deepspeed.ranks, has_cuda())
    with one_object(json_) as say:
        status = run_command(command, environment, Path(cfg.run.dir), verbose)
        say(train_summary(Path(cfg.run.dir), cfg.train.steps, status))
    return status


def _plan(cfg: Config, command: list[str], ranks: int | None, as_json: bool) -> int:
    """Prints the launcher's command line, and what it would do."""
    lines: list[str] = []
    with one_object(as_json) as say:
        print(shlex.join(command))
        if ranks is None:
            print("the launcher's own flags say how many ranks there are: no plan without --num_gpus.")
        else:
            from srum_ds.preflight.plan import planned

            lines = list(planned(cfg, ranks))
        for line in lines:
            print(line)
        say({"command": "train --dry-run", "launcher": command, "ranks": ranks, "plan": lines})
    return 0
