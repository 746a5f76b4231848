"""DeepSpeed, imported once with its accelerator chosen, and the process group of a run."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import warnings
from datetime import timedelta
from pathlib import Path

# DeepSpeed picks its accelerator when it is imported, and warns where it has to guess.
import torch

from srum_ds.common.compiled_ops import ops_environment
from srum_ds.common.errors import UserError

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.update(ops_environment(os.environ))

import deepspeed  # noqa: E402
import torch.distributed as dist  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus  # noqa: E402
from deepspeed.utils import set_z3_leaf_modules  # noqa: E402

__all__ = [
    "ZeroParamStatus",
    "choose_device",
    "compute_device",
    "deepspeed",
    "leave_at_exit",
    "leave_distributed",
    "set_z3_leaf_modules",
    "start_distributed",
]


_PORTS = 5
"""How many free ports a group of one tries."""


def start_distributed(timeout_minutes: float = 30.0) -> None:
    """Joins the process group the launcher describes; without a launcher, a group of one.

    Before anything is loaded, this rank's device becomes the current one (``choose_device``).
    timeout_minutes: how long a collective waits for the slowest rank before the run fails.
    """
    choose_device()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has renamed: a line of warning for each.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # A group of one has no device bound to it (DeepSpeed), and its barriers take the current one, as they should.
    warnings.filterwarnings("ignore", r"barrier\(\): using the device under current context", UserWarning)
    if dist.is_initialized() and deepspeed.comm.is_initialized():
        return
    alone = "RANK" not in os.environ
    for attempt in range(_PORTS, 0, -1):
        if alone:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            deepspeed.init_distributed(timeout=timedelta(minutes=timeout_minutes), verbose=False)
            break
        except dist.DistNetworkError as error:
            # Between the looking and the listening another process took the port.
            if not alone or attempt == 1 or "EADDRINUSE" not in str(error):
                raise
    if get_accelerator().device_name() == "cpu":
        _unlink_shared_buffer()
    if alone:
        # What this process starts later is no rank of it. DeepSpeed's engine still wants LOCAL_RANK.
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]


def choose_device() -> None:
    """Makes the device of number ``LOCAL_RANK`` the current one of this process; nothing without an accelerator.

    Where a process sees one device only (``srun --gpus-per-task=1``), it is that one, and ``LOCAL_RANK`` becomes 0:
    DeepSpeed takes the device of that number when ranks meet and when an engine is made. Raises UserError for a rank
    that has no device of its own.
    """
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    count = accelerator.device_count()
    if count > 1 and local >= count:
        raise UserError(
            f"LOCAL_RANK={local}, but this node has {count} devices: start one rank a device "
            "(deepspeed --num_gpus, or --ntasks-per-node under Slurm)."
        )
    if count == 1 and local:
        local = 0
        os.environ["LOCAL_RANK"] = "0"
    accelerator.set_device(local)


def _unlink_shared_buffer() -> None:
    """Takes this rank's buffer of DeepSpeed's CPU all-reduce (69 MB of memory) off the file system.

    All ranks of the node have mapped it by now and keep it until they end, however they end; under its name
    it would outlive every run (DeepSpeed 0.19 never unlinks it) and meet the next one on the same port.
    """
    dist.barrier()
    where = f"{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{dist.get_rank()}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{where}").unlink(missing_ok=True)


def compute_device() -> torch.device:
    """The device this rank computes on, once it has joined the group."""
    return torch.device(get_accelerator().current_device_name())


def accelerator_headroom() -> int | None:
    """Bytes that this rank's GPU could still give out, cached ones included; None where there is none."""
    if get_accelerator().device_name() != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def leave_at_exit() -> None:
    """Has the process group, where there is one, destroyed when the interpreter ends; see ``leave_distributed``.

    For programs that go on after a run, and may run again in the same group: nobody else knows when they end.
    """
    atexit.unregister(_destroy)
    atexit.register(_destroy)


def _destroy() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def leave_distributed() -> None:
    """Leaves the process group together with all other ranks; nothing where there is none.

    The last thing of a rank's process: torch's threads, when the interpreter ends under them, abort some
    processes after all their work is done (3 of 25 launches of two ranks, torch 2.13), and the launcher
    then calls the run failed.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
