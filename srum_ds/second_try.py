"""A training step whose loss or gradient is not finite: run again once, then kept for a replay, and skipped or the end.

Engines take no step from a gradient that is not finite, on any rank: weights and moments are as before, so that the
same passes over the same batch tell hardware that erred once from a bug. Every rank decides by the same numbers.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.common import ranks
from srum_ds.common.errors import UserError
from srum_ds.common.phases import PHASES
from srum_ds.config.loading import plain_config
from srum_ds.job import Job
from srum_ds.objectives.apply import Batch
from srum_ds.rollouts.kept_batches import keep_batches


@dataclass(frozen=True)
class Taken:
    """A step that was taken, or not: this rank's sum of losses, the norm of the gradient (NaN: skipped), retried."""

    total: Tensor
    grad_norm: float
    retried: bool = False


@dataclass(frozen=True)
class _Try:
    """How a rank fared: whether its loss was finite, and what computed it."""

    finite: bool
    where: str


def taken(job: Job, step: int, batches: Sequence[Batch], count: float, passes: Callable[[], Tensor]) -> Taken:
    """One step of the optimizer; all ranks call it.

    step: from 0, as its randomness is numbered. batches: this rank's. count: the tokens that count on all ranks.
    passes: adds their gradient up and returns this rank's sum of losses; called a second time where the first gradient
    was not finite. Raises UserError, on every rank, where the second is not either and ``train.on_bad_step=stop``.
    """
    total = passes()
    grad_norm = job.engine.step()
    if math.isfinite(grad_norm):
        return Taken(total, grad_norm)
    first = _tries(job, total)
    job.engine.take_back()
    # As long as the first time.
    PHASES.enter("train")
    total = passes()
    grad_norm = job.engine.step()
    what = "a loss is" if not all(one.finite for one in first) else "the gradient is"
    if math.isfinite(grad_norm):
        job.monitor.message(
            f"step {step + 1}: {what} not finite, but run again from the same batch and the same weights everything "
            f"is: no bug but the hardware erred once, {_blamed(first)}. The run goes on with the second result "
            "(`retried` in metrics.jsonl); where this comes again, have that device tested."
        )
        return Taken(total, grad_norm, True)
    second = _tries(job, total)
    same = [one.finite for one in first] == [one.finite for one in second]
    told = (
        "and the same when it was run again from the same batch and the same weights: no accident of the hardware but "
        "a bug, or numbers too large for this precision"
        if same
        else "and when it was run again too, but otherwise, from the same batch and the same weights: suspect the "
        f"hardware, {_blamed(first)}, then {_blamed(second)}"
    )
    text = f"step {step + 1}: {what} not finite, {told}. {_kept(job, step, batches, count, second)}"
    if job.cfg.train.on_bad_step == "stop":
        raise UserError(
            f"{text} The run ends here (train.on_bad_step=stop). The same command goes on from this step; with "
            "train.on_bad_step=skip it leaves the step out, and with a lower train.lr or train.precision=fp32 begin "
            "another run (another run.dir)."
        )
    job.monitor.message(f"{text} The step is left out: no weight has changed (train.on_bad_step=skip).")
    return Taken(total, grad_norm, True)


def _tries(job: Job, total: Tensor) -> list[_Try]:
    """How each rank fared."""
    device = job.engine.device
    name = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    own = _Try(math.isfinite(float(total)), f"{device}{name} on {socket.gethostname()}")
    return ranks.run_on_all_ranks(lambda: own)


def _blamed(tries: Sequence[_Try]) -> str:
    """Which ranks' losses were not finite, and where they computed."""
    found = [f"rank {rank} ({one.where})" for rank, one in enumerate(tries) if not one.finite]
    if not found and len(tries) == 1:
        found = [f"rank 0 ({tries[0].where})"]
    return " and ".join(found) or f"one of all {len(tries)} ranks (their losses were finite, the gradient was not)"


def _kept(job: Job, step: int, batches: Sequence[Batch], count: float, tries: Sequence[_Try]) -> str:
    """Keeps every rank's batch, and a checkpoint of the weights before the step; says where, or why not."""
    PHASES.enter("save")
    checkpoint, problem = job.checkpoint_before(step)
    facts = {
        "run": str(job.run_dir.resolve()),
        "run_seed": job.cfg.run.seed,
        "world_size": job.engine.world_size,
        "count": count,
        "checkpoint": checkpoint,
        "settings": job.binding,
        "config": plain_config(job.cfg),
        "where": [one.where for one in tries],
        "finite": [one.finite for one in tries],
    }

    def keep() -> str:
        try:
            return str(keep_batches(job.crash_folder, step, job.engine.rank, batches, facts))
        except (OSError, UserError) as error:
            return f"(not written: {error})"

    paths = ranks.run_on_all_ranks(keep)
    chosen = next((path for path, one in zip(paths, tries, strict=True) if not one.finite), paths[0])
    return f"`srum-ds replay {chosen}` says which tensor is the first that is not finite.{problem}"
