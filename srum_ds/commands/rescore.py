"""`srum-ds rescore`: judges the images of rollouts again."""

from __future__ import annotations

from pathlib import Path

from srum_ds.common.errors import UserError


def rescore(folder: Path, *overrides: str, out: Path, launcher_args: str = "", dry_run: bool = False) -> int:
    """Judge the images of a folder of rollouts again, without drawing them again.

    Parameters
    ----------
    folder
        Folder that `srum-ds rollout` or a run with rollout.keep=true wrote.
    overrides
        key=value: judge.*, regions.* and reward.* settings that differ from the folder's own.
    out
        Folder of the new shards; images and tokens are carried over.
    launcher_args
        The DeepSpeed launcher's own flags in one word, such as --launcher-args="--num_gpus 4".
    dry_run
        Print the launcher's command line and stop.
    """
    from srum_ds.commands.launcher import run_worker
    from srum_ds.commands.preflight import look_or_refuse
    from srum_ds.config.messages import refuse_others
    from srum_ds.monitoring.run_folder import CONFIG
    from srum_ds.preflight import Start
    from srum_ds.rollouts.rescoring import KEPT, RESCORABLE

    recipe = folder / CONFIG
    if not recipe.is_file():
        raise UserError(f"{folder} is no folder of rollouts (no {recipe.name}); write one with `srum-ds rollout`.")
    if out.resolve() == folder.resolve():
        raise UserError(f"--out {out} is the folder that is read: name another one.")
    refuse_others(overrides, RESCORABLE, KEPT)
    cfg, status = look_or_refuse(Start("rescore", recipe, overrides, out=out), launcher_args)
    if cfg is None:
        return status
    return run_worker(cfg, ["rescore", str(folder), str(out), *overrides], launcher_args, dry_run)
