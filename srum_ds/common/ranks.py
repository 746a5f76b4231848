"""Runs a function on all ranks of a job; if it fails on one, raises on all. For work outside an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from srum_ds.common.errors import UserError


def rank() -> int:
    """This process's number in the job; 0 where there is no process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes of the job; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def run_on_all_ranks(work: Callable[[], Any], rank_zero: bool = False) -> list[Any]:
    """Runs ``work`` on all ranks (or rank 0 alone) and returns what each rank's returned, on every rank.

    What ``work`` returns must be small: it is sent to all. Raises UserError on every rank where any
    rank's work raised a UserError or an OSError, so that no rank waits for one that has given up.
    """
    result: Any = None
    problem = ""
    if rank() == 0 or not rank_zero:
        try:
            result = work()
        except (UserError, OSError) as error:
            problem = str(error) or repr(error)
    outcomes = [(result, problem)]
    if dist.is_initialized():
        outcomes *= world_size()
        dist.all_gather_object(outcomes, (result, problem))
    problems = [text for _, text in outcomes if text]
    if problems:
        raise UserError(problems[0])
    return [value for value, _ in outcomes]
