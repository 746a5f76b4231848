"""Looks at where a run is put: ranks against prompts and devices, DeepSpeed's settings, room on the disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config import Config, check_world
from srum_ds.config.choices import OBJECTIVES
from srum_ds.config.deepspeed_json import read_ds_config
from srum_ds.models import family_of
from srum_ds.monitoring.run_folder import CHECKPOINTS
from srum_ds.preflight.findings import Finding, error, not_checked, ok, warning
from srum_ds.preflight.model import trained_elements

MASTER_BYTES = 4
"""Of a number in a checkpoint: fp32 masters, both moments of Adam, and each named copy."""
# A step's folder of a checkpoint, as the engine names it; its package takes torch.
_STEP = re.compile(r"step_\d{6,}")
_DEVICE = re.compile(r"nvidia\d+")
_SLACK = 1 << 20


def look_at_ranks(cfg: Config, ranks: int | None) -> Iterator[Finding]:
    """Whether a step's prompts come out even over the ranks, and whether each has a device. None: nobody knows yet."""
    if ranks is None:
        yield not_checked("ranks", "the launcher's own flags say how many there are: the ranks look at that themselves")
        return
    if cfg.rollout.prompts_per_step % cfg.rollout.micro_batch_prompts:
        # The settings by themselves do not fit, which is said of them.
        return
    check_world(cfg, ranks)
    own = cfg.rollout.prompts_per_step // ranks
    yield ok("ranks", f"{ranks}, each with {own} prompt(s) and {own * cfg.rollout.images_per_prompt} images a step")
    devices = visible_gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if devices and ranks > devices:
        yield error(
            "devices",
            f"{ranks} ranks, but {devices} GPU(s) on this machine: lower deepspeed.ranks, or set "
            "CUDA_VISIBLE_DEVICES to more of them.",
        )
    elif devices:
        yield ok("devices", f"{devices} GPU(s)")
    elif ranks > cores:
        yield warning(
            "devices", f"no GPU, and {ranks} ranks on {cores} core(s): they take turns; lower deepspeed.ranks"
        )
    else:
        yield ok("devices", f"no GPU: {ranks} rank(s) on {cores} core(s)")


def look_at_deepspeed(cfg: Config) -> Iterator[Finding]:
    """DeepSpeed's own settings."""
    path = Path(cfg.deepspeed.config)
    if not path.is_file():
        yield error(
            "deepspeed.config",
            f"deepspeed.config={cfg.deepspeed.config}: no such file. Give DeepSpeed's JSON settings, such as "
            "ds_configs/zero3.json.",
        )
        return
    stage = read_ds_config(path)["zero_optimization"]["stage"]
    yield ok("deepspeed.config", f"{path}: ZeRO-{stage}")


def look_at_room(cfg: Config) -> Iterator[Finding]:
    """Whether the disk of the run's folder has room for a checkpoint, and for as many as are kept."""
    run_dir = Path(cfg.run.dir)
    size = checkpoint_bytes(cfg)
    there = _there(run_dir)
    if there is None:
        return
    free = shutil.disk_usage(there).free
    if size is None:
        yield not_checked("disk", f"{_gb(free)} are free; how large a checkpoint is, the ranks find out")
        return
    kept = [path for path in (run_dir / CHECKPOINTS).glob("step_*") if _STEP.fullmatch(path.name)]
    # A new one is written whole before the oldest goes.
    wanted = (max(1, cfg.train.keep_checkpoints + 1 - len(kept))) * size
    if free < size + _SLACK:
        yield error(
            "disk",
            f"run.dir={run_dir}: a checkpoint takes {_gb(size)} and {_gb(free)} are free there: free some space, or "
            "choose a run.dir on another disk.",
        )
    elif free < wanted + _SLACK:
        yield warning(
            "disk",
            f"a checkpoint takes {_gb(size)}, so up to {_gb(wanted)} more with train.keep_checkpoints="
            f"{cfg.train.keep_checkpoints}, and {_gb(free)} are free: lower it, or free some space",
        )
    else:
        yield ok("disk", f"a checkpoint takes {_gb(size)}; {_gb(free)} are free")


def checkpoint_bytes(cfg: Config) -> int | None:
    """Bytes of a checkpoint: of the run's newest one, or by the headers of the model's tensors; None where unknown.

    Masters, moments and named copies are counted; whether an objective of one's own needs the policy that drew is not
    asked, since its code takes torch to import.
    """
    newest = max(
        (path for path in (Path(cfg.run.dir) / CHECKPOINTS).glob("step_*") if _STEP.fullmatch(path.name)), default=None
    )
    if newest is not None:
        return sum(path.stat().st_size for path in newest.iterdir() if path.is_file())
    try:
        family = family_of(cfg.model.path, cfg.model.kind)
    except UserError:
        return None
    elements = trained_elements(family, Path(cfg.model.path), cfg.model.trains)
    if elements is None:
        return None
    draws_old = cfg.rollout.weights == "old" and cfg.train.mode != "offline"
    copies = int(draws_old or cfg.objective.name in _WITH_OLD) + int(cfg.eval.weights == "ema")
    return elements * MASTER_BYTES * (3 + copies)


_WITH_OLD = tuple(name for name in ("nft", "group", "awm") if name in OBJECTIVES.builtin)
"""The objectives that take the prediction of the policy that drew; a test holds them to what these say themselves."""


def visible_gpus() -> int:
    """GPUs of this machine that a run may use, by the driver's files; 0 where there is none or the CPU is asked for."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    try:
        there = sum(bool(_DEVICE.fullmatch(name)) for name in os.listdir("/dev"))
    except OSError:
        return 0
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return there
    listed = []
    for name in (part.strip() for part in said.split(",")):
        # As the driver reads it: what stands behind a name that is none does not count.
        if name in ("", "-1") or not re.fullmatch(r"\d+|(GPU|MIG)-.+", name):
            break
        listed.append(name)
    return min(there, len(listed))


def _there(folder: Path) -> Path | None:
    """The folder, or the nearest one above it that is there."""
    return next((path for path in (folder, *folder.absolute().parents) if os.path.isdir(path)), None)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
