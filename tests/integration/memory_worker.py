"""Trains a recipe and writes the most bytes of tensors that this rank held, for test_planned_memory.py.

    deepspeed --num_gpus 2 tests/integration/memory_worker.py FOLDER RECIPE key=value ...

Every rank's figures go to FOLDER/held.json: bytes by phase of the last step, and the most of all. Neither a checkpoint
nor an export is written: plans are about steps.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.support.memory import TensorBytes


def watched(arguments: Sequence[str]) -> dict[str, Any]:
    """Trains; returns bytes alive when the run was open, by phase in its last step, and at most after it was open."""
    import srum_ds.train
    from srum_ds.common.clock import Clock
    from srum_ds.engine import Engine
    from srum_ds.job import Job

    found: dict[str, Any] = {"phases": {}}
    opened, timed = srum_ds.train.open_job, Clock.__call__
    with TensorBytes() as tensors:

        def open_job(*given: Any) -> Any:
            job = opened(*given)
            found["opened"] = tensors.alive
            tensors._highest = tensors.alive
            return job

        @contextmanager
        def phase(clock: Clock, name: str) -> Iterator[None]:
            so_far, tensors._highest = tensors._highest, tensors.alive
            with timed(clock, name):
                yield
            found["phases"][name] = tensors._highest
            tensors._highest = max(so_far, tensors._highest)

        setattr(srum_ds.train, "open_job", open_job)  # noqa: B010
        Engine.save = Job.export = lambda *given, **named: None  # type: ignore[assignment, method-assign]
        setattr(Clock, "__call__", phase)  # noqa: B010
        srum_ds.train.main(arguments)
        found["most"] = tensors._highest
    return found


def main(folder: Path, arguments: Sequence[str]) -> None:
    import torch.distributed as dist

    from srum_ds.engine import leave_distributed

    torch.set_num_threads(1)
    found = watched(arguments)
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, found)
    if dist.get_rank() == 0:
        (folder / "held.json").write_text(json.dumps(of_all, indent=1), encoding="utf-8")
    leave_distributed()


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(Path(given[0]), given[1:])
