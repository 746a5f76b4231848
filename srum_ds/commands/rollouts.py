"""The commands `srum-ds rollout` and `srum-ds rescore`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srum_ds.config import Config

MODULE = "srum_ds.rollouts.worker"
RESCORABLE = ("judge", "regions", "reward", "log", "deepspeed", "model.path", "rollout.micro_batch_prompts")
KEPT = "rescoring keeps the pictures as they were drawn; `srum-ds rollout` draws others."


def rollout(*arguments: str, out: Path, launcher_args: str = "", dry_run: bool = False) -> int:
    """Draw and judge a recipe's prompts without training, into shards that train.mode=offline trains from.

    The folder gets the pictures of train.steps steps. Repeating the command goes on where it was stopped.

    Parameters
    ----------
    arguments
        [RECIPE] [key=value ...], as for train; deepspeed.ranks processes share the work.
    out
        Folder of the shards.
    launcher_args
        The DeepSpeed launcher's own flags in one word, such as --launcher-args="--num_gpus 4".
    dry_run
        Print the launcher's command line and stop.
    """
    from srum_ds.config import load_config, split_arguments

    recipe, overrides = split_arguments(arguments)
    cfg = load_config(recipe, overrides)
    return _start(cfg, ["rollout", str(out), str(recipe), *overrides], launcher_args, dry_run)


def rescore(folder: Path, *overrides: str, out: Path, launcher_args: str = "", dry_run: bool = False) -> int:
    """Judge the pictures of a folder of rollouts again, without drawing them again.

    Parameters
    ----------
    folder
        Folder that `srum-ds rollout` or a run with rollout.keep=true wrote.
    overrides
        key=value: judge.*, regions.* and reward.* settings that differ from the folder's own.
    out
        Folder of the new shards; pictures and latents are carried over.
    launcher_args
        The DeepSpeed launcher's own flags in one word, such as --launcher-args="--num_gpus 4".
    dry_run
        Print the launcher's command line and stop.
    """
    from srum_ds.common.errors import UserError
    from srum_ds.config import load_config
    from srum_ds.config.messages import refuse_others

    recipe = folder / "config.yaml"
    if not recipe.is_file():
        raise UserError(f"{folder} is no folder of rollouts (no {recipe.name}); write one with `srum-ds rollout`.")
    if out.resolve() == folder.resolve():
        raise UserError(f"--out {out} is the folder that is read: name another one.")
    refuse_others(overrides, RESCORABLE, KEPT)
    cfg = load_config(recipe, overrides)
    return _start(cfg, ["rescore", str(folder), str(out), *overrides], launcher_args, dry_run)


def _start(cfg: Config, words: Sequence[str], launcher_args: str, dry_run: bool) -> int:
    """Runs one rank here where a launcher has started this process, or where one rank is all; else starts them."""
    from srum_ds.commands.launcher import build_environment, build_module_command, has_cuda, run_command
    from srum_ds.config import check_world

    if not dry_run and ("RANK" in os.environ or (cfg.deepspeed.ranks == 1 and not launcher_args)):
        from srum_ds.rollouts.worker import main

        return main(words)
    command = build_module_command(cfg, MODULE, words, shlex.split(launcher_args))
    if not launcher_args:
        # Nobody else says how many ranks there are, so a bad number can be told before they start.
        check_world(cfg, cfg.deepspeed.ranks)
    if dry_run:
        print(shlex.join(command))
        return 0
    return run_command(command, build_environment(os.environ, cfg.deepspeed.ranks, has_cuda()))
