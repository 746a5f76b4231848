"""How a process is asked to stop: the signals, the flag that a rank looks at after its step, and launchers that went.

Whichever process of a job gets one of ``STOP_SIGNALS``, the ranks finish their step, save and end with status 75.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import psutil

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# In the command lines of what starts ranks. A shell is none of them: it may end, and its job goes on.
LAUNCHERS = ("deepspeed", "srum-ds", "srum_ds", "torchrun", "torch.distributed", "mpirun", "mpiexec")
# A second signal within so many seconds is the same request: Ctrl-C reaches all processes of a terminal.
SAME_REQUEST = 2.0
LOG_FILE = "SRUM_DS_LOG"
"""Names the run's log to ranks whose printing goes through a pipe of the process that started them."""
Link = tuple[int, int]
"""A process and its parent."""


def handle_stops(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Has ``handler`` called for each of ``STOP_SIGNALS``; returns what was there before.

    A signal that this process was started to ignore stays ignored (`nohup`, jobs in a shell's background). Outside the
    main thread nobody can handle signals: nothing then.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return before
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    return before


class StopSignal:
    """Remembers that this rank was asked to stop, so that all ranks can finish the step, save, and stop together.

    interrupts: whether a later Ctrl-C raises KeyboardInterrupt at once, as in a notebook, where no launcher ends ranks.
    """

    interrupts = False

    def __init__(self) -> None:
        self.asked = False
        handle_stops(self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and self.interrupts and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def launchers_above(parents: Callable[[int], tuple[int, str] | None], pid: int) -> list[Link]:
    """The launchers that ``pid`` descends from without a gap, nearest first, each as (child, parent).

    parents: gives a process's parent and that parent's command line; None where there is none.
    """
    links: list[Link] = []
    while (above := parents(pid)) is not None and any(name in above[1] for name in LAUNCHERS):
        links.append((pid, above[0]))
        pid = above[0]
    return links


def parent_of(pid: int) -> tuple[int, str] | None:
    """The parent of a process, and its command line; None where it is gone, or the system's first."""
    try:
        parent = psutil.Process(pid).ppid()
        return (parent, " ".join(psutil.Process(parent).cmdline())) if parent > 1 else None
    except psutil.Error:
        return None


def still_stand(links: Sequence[Link]) -> bool:
    """Whether each process still has the parent that it had: one whose parent ended is handed to another."""
    try:
        return all(psutil.Process(child).ppid() == parent for child, parent in links)
    except psutil.Error:
        return False


def stop_without_launcher(interval: float = 1.0) -> None:
    """Has this rank stop as by SIGTERM once a launcher above it is gone, be it killed; looks every ``interval`` s.

    Nothing where no launcher has started this process.
    """
    links = launchers_above(parent_of, os.getpid())
    if not links:
        return

    def look() -> None:
        while still_stand(links):
            time.sleep(interval)
        _print_into_log()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="launcher", daemon=True).start()


def _print_into_log() -> None:
    """Has both streams go on into the run's log where nobody reads their pipes any more: a print would fail."""
    log = os.environ.get(LOG_FILE, "")
    with suppress(OSError):
        if log:
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.close(descriptor)


def end_with_parent(interval: float = 1.0) -> None:
    """Ends this helper process once the process that started it is gone; looks every ``interval`` seconds."""
    starter = multiprocessing.parent_process()
    # While this process imported what it needs, its parent may have ended, and another one have taken its place.
    parent = os.getppid() if starter is None else starter.pid

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os._exit(1)

    threading.Thread(target=look, name="parent", daemon=True).start()


def start_helper(threads: int = 1) -> None:
    """Prepares a process of a pool: torch's threads, and an end with the process that asked for it."""
    import torch

    end_with_parent()
    torch.set_num_threads(threads)
