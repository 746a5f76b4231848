"""Waits for a launcher: hands stops on to the ranks below it, and says how the job ended where the launcher cannot.

DeepSpeed's front end and its launcher on a node end at a signal, or lose a status, whatever the ranks do. What counts
is what the ranks said of themselves (``heartbeats``).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from srum_ds.common import heartbeats
from srum_ds.common.errors import STOPPED
from srum_ds.common.stopping import SAME_REQUEST, handle_stops

SUPERVISED = "SRUM_DS_SUPERVISED"
"""Set in the environment of a launcher that somebody waits for already."""
LOST = 1
"""Exit status where the launcher says 0 and nothing was finished."""

# As a shell says it, and as DeepSpeed's launcher does of a rank (-15 in a byte).
_ENDED_BY_TERM = (128 + signal.SIGTERM, 256 - signal.SIGTERM)


class Forwarder:
    """Hands the first request to stop on to the ranks; a later one ends everything.

    ranks, everything: who that is at the moment.
    """

    def __init__(
        self, ranks: Callable[[], Sequence[psutil.Process]], everything: Callable[[], Sequence[psutil.Process]]
    ) -> None:
        self.ranks = ranks
        self.everything = everything
        self.asked_at: float | None = None
        self.told: list[psutil.Process] = []

    def __call__(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            self.told = [*(self.ranks() or self.everything())]
            for process in self.told:
                with suppress(psutil.Error):
                    process.terminate()
        elif now - self.asked_at > SAME_REQUEST:
            for process in self.everything():
                with suppress(psutil.Error):
                    process.kill()


def say(text: str) -> None:
    """One paragraph on stderr."""
    print(f"srum-ds: {text}", file=sys.stderr, flush=True)


def wait_for(
    pid: int,
    poll: Callable[[], int | None],
    run_dir: Callable[[], Path | None],
    finished: Path = Path(),
    tell: Callable[[str], None] = say,
) -> int:
    """Waits for the launcher ``pid`` and for ranks that outlive it; returns the job's exit status.

    poll: the launcher's status once it has ended (negative after a signal), None before. run_dir: the run's folder,
    asked only where the launcher's status says too little; None where there is none. finished: what only a finished run
    has in it. tell: says a paragraph to the user. Handles ``STOP_SIGNALS`` meanwhile.
    """
    began = time.time()
    ranks: list[psutil.Process] = []
    forward = Forwarder(
        lambda: alive(ranks_below(pid)) or alive(ranks), lambda: [*alive(tree_below(pid)), *alive(ranks)]
    )
    before = handle_stops(forward)
    try:
        while (status := poll()) is None:
            # Kept, for whoever has lost its parent is found below nobody.
            ranks = ranks_below(pid) or ranks
            _sleep_until(lambda: poll() is not None, 1.0)
        outlived = bool(alive(ranks))
        if outlived:
            tell(f"the launcher has ended (status {status}) before its ranks; they finish their step and save.")
            for process in alive(ranks):
                with suppress(psutil.Error):
                    process.terminate()
        # Whoever was asked to stop may be saving.
        while alive(ranks) or alive(forward.told):
            time.sleep(0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    plain = status if status >= 0 else 128 - status
    if forward.asked_at is not None and plain in _ENDED_BY_TERM and not outlived:
        # Asked before a rank could listen: nothing has begun.
        return STOPPED
    if status > 1 and not outlived:
        return plain
    folder = run_dir()
    if folder is None:
        return LOST if plain == 0 and outlived else plain
    beats = [beat for beat in heartbeats.read(folder / heartbeats.FOLDER).values() if beat.time >= began]
    last = "".join(f"; rank {beat.rank} was last {beat.where}" for beat in beats if beat.status is None)
    return settled(plain, [beat.status for beat in beats], (folder / finished).exists(), folder, last, tell)


def settled(
    status: int,
    said: Sequence[int | None],
    is_finished: bool,
    run_dir: Path,
    last: str = "",
    tell: Callable[[str], None] = say,
) -> int:
    """The job's status from the launcher's, in [0, 255], and from what its ranks ``said`` when they ended, if they did.

    0 is left only where the run is finished. last: where the ranks were that said nothing, for the message.
    """
    if said and all(rank == STOPPED for rank in said):
        return STOPPED
    if status == 0 and not is_finished:
        tell(
            f"the launcher ended with status 0, but {run_dir} holds no finished model: its ranks were ended from "
            f"outside, or by code that a setting names{last}. The same command goes on from the last checkpoint."
        )
        return LOST
    return status


def tree_below(pid: int) -> list[psutil.Process]:
    """The process and all its descendants, these first."""
    try:
        top = psutil.Process(pid)
        return [*reversed(top.children(recursive=True)), top]
    except psutil.Error:
        return []


def ranks_below(pid: int) -> list[psutil.Process]:
    """The ranks among the descendants: those whose environment names a RANK, without their own children."""
    try:
        top = psutil.Process(pid)
        below = top.children(recursive=True)
    except psutil.Error:
        return []
    named = {process.pid for process in below if _has_rank(process)}
    return [process for process in below if process.pid in named and _parent(process) not in named]


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended."""
    return [process for process in processes if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _has_rank(process: psutil.Process) -> bool:
    try:
        return "RANK" in process.environ()
    except (psutil.Error, OSError):
        return False


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _sleep_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def poll_child(pid: int) -> Callable[[], int | None]:
    """A ``poll`` for a forked child."""
    status: list[int] = []

    def poll() -> int | None:
        if not status:
            found, code = os.waitpid(pid, os.WNOHANG)
            status.extend([os.waitstatus_to_exitcode(code)] if found else [])
        return status[0] if status else None

    return poll
