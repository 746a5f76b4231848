"""`srum-ds rollout`: draws and judges without training."""

from __future__ import annotations

from pathlib import Path


def rollout(*arguments: str, out: Path, launcher_args: str = "", dry_run: bool = False) -> int:
    """Draw and judge a recipe's prompts without training, into shards that train.mode=offline trains from.

    The folder gets the images of train.steps steps. Repeating the command goes on where it was stopped.

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
    from srum_ds.commands.launcher import run_worker
    from srum_ds.commands.preflight import look_or_refuse
    from srum_ds.config import split_arguments
    from srum_ds.preflight import Start

    recipe, overrides = split_arguments(arguments)
    cfg, status = look_or_refuse(Start("rollout", recipe, overrides, out=out), launcher_args)
    if cfg is None:
        return status
    return run_worker(cfg, ["rollout", str(out), str(recipe), *overrides], launcher_args, dry_run)
