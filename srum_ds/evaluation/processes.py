"""Spreads drawing over processes, each with a device, one thread and one model; their number changes no picture.

``draw`` (an evaluation's images) and ``draw_folder`` (a benchmark's pictures) call it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from srum_ds.common.errors import UserError
from srum_ds.common.registry import import_file, user_files
from srum_ds.common.stopping import start_helper
from srum_ds.models import default_dtype, load_model
from srum_ds.models.protocol import UnifiedModel

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def drawing_processes(device: str, processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yields ``run(work, items)``, which gives the results of ``work(item)`` in the items' order.

    Fewer than two processes: the work is done here, with one thread on a CPU as in a process of its own. Else ``work``
    is a function of a module, items and results can be pickled, and processes stay until the block ends. Raises
    UserError where the system ends one of them.
    """
    if processes < 2:
        yield lambda work, items: _here(work, items, device)
        return
    # spawn: a forked torch can hang on locks that other threads held.
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for own in devices_of(device, processes):
        devices.put(own)
    with ProcessPoolExecutor(processes, context, _start_process, (user_files(), devices)) as pool:
        try:
            yield lambda work, items: _there(pool, work, items)
        except BaseException:
            # What has not begun is not begun: nobody waits for it.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _here(work: Callable[[Item], Result], items: Sequence[Item], device: str) -> Iterator[Result]:
    with _one_thread(bool(items) and device == "cpu"):
        yield from map(work, items)


def _there(pool: ProcessPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    try:
        yield from pool.map(work, items)
    except BrokenProcessPool as error:
        raise UserError(
            "a drawing process was ended by the system, probably for lack of memory: lower eval.batch, "
            "or use one process"
        ) from error


def default_processes(device: str) -> int:
    """How many processes draw: one a GPU, or one a core."""
    return len(os.sched_getaffinity(0)) if device == "cpu" else max(1, torch.cuda.device_count())


def devices_of(device: str, processes: int) -> list[str]:
    """The device of each of ``processes``: a GPU of its own, in turn, where ``device`` is "cuda", else all the same."""
    if device != "cuda":
        return [device] * processes
    return [f"cuda:{number % torch.cuda.device_count()}" for number in range(processes)]


# The device of a drawing process; None in the caller's own, which takes what the settings say.
_own_device: str | None = None


def _start_process(files: Sequence[Path], devices: Any) -> None:
    """Prepares a drawing process: its device, one thread, and the user's own code, which may make a readout."""
    global _own_device
    start_helper()
    _own_device = devices.get()
    for file in files:
        import_file(file)


@contextmanager
def _one_thread(active: bool) -> Iterator[None]:
    """One thread, as in a worker process, so that the number of processes changes no rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if active else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The model that drew last and what it was loaded from.
_held: dict[tuple[Any, ...], UnifiedModel] = {}


def model_of(folder: Path, kind: str, device: str) -> UnifiedModel:
    """The model of a folder on this process's device (``device`` where it has none of its own), kept between batches.

    Before another is loaded it goes: there is never room for two.
    """
    device = _own_device or device
    wanted = (folder, kind, device, _stamp(folder))
    if wanted not in _held:
        _held.clear()
        _held[wanted] = load_model(folder, kind, default_dtype(device), device)
    return _held[wanted]


def release_model() -> None:
    """Lets go of the model that ``model_of`` holds in this process."""
    _held.clear()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Sizes and times of a folder's files: weights replaced in place are loaded again."""
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
