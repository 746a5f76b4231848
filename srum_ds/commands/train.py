"""`srum-ds train`: starts the DeepSpeed launcher on launch/train.sh, which `make train` does through here."""

from __future__ import annotations

import os
import shlex


def train(*arguments: str, launcher_args: str = "", dry_run: bool = False) -> int:
    """Train, or go on where the run stands: starts `deepspeed launch/train.sh`.

    Parameters
    ----------
    arguments
        [RECIPE] [key=value ...]: a recipe (without one launch/recipes/tiny.yaml) and settings on top of it.
    launcher_args
        The DeepSpeed launcher's own flags in one word, such as --launcher-args="--num_gpus 4".
    dry_run
        Print the launcher's command line and stop.
    """
    from srum_ds.commands.launcher import build_command, build_environment, has_cuda, run_command
    from srum_ds.config import check_world, load_config, split_arguments

    recipe, overrides = split_arguments(arguments)
    cfg = load_config(recipe, overrides)
    flags = shlex.split(launcher_args)
    command = build_command(cfg, recipe, overrides, flags)
    if "--num_gpus" in command[: len(command) - len(flags)]:
        # Nobody else says how many ranks there are, so a bad number can be told before they start.
        check_world(cfg, cfg.deepspeed.ranks)
    if dry_run:
        print(shlex.join(command))
        return 0
    return run_command(command, build_environment(os.environ, cfg.deepspeed.ranks, has_cuda()))
