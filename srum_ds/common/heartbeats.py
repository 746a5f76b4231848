"""What each rank of a run says of itself, in a file: where it is, that it lives, and how it ended.

``heartbeats/rank_0.json`` and so on in the run's folder are written every second by ``monitoring.watchdog``; another
watchdog may read them too. Clocks of two machines are never compared.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from srum_ds.common.texts import parse_json

FOLDER = "heartbeats"


@dataclass(frozen=True)
class Heartbeat:
    """One rank's word.

    entered: how many phases of the step it has been in before. seconds: how long it has been in ``phase``. beats: grows
    by one with every writing. time: Unix time of this writing by the rank's own clock. status: its exit status; None
    while it runs. code: the user's own code that it is in, as the setting names it; empty where it is in none.
    """

    rank: int
    pid: int
    host: str
    phase: str
    step: int
    entered: int
    seconds: float
    beats: int
    time: float
    status: int | None = None
    code: str = ""

    @property
    def where(self) -> str:
        """Its phase and step, and the user's own code that it is in, for a message."""
        return f"in phase {self.phase} of step {self.step}{f', in {self.code}' if self.code else ''}"


def write(folder: Path, heartbeat: Heartbeat) -> None:
    """Replaces the rank's file. A folder that is gone stays gone: nothing is made where somebody took a run away."""
    temporary = folder / f".rank_{heartbeat.rank}.{heartbeat.pid}.tmp"
    with suppress(OSError):
        temporary.write_text(json.dumps(asdict(heartbeat)) + "\n")
        os.replace(temporary, folder / f"rank_{heartbeat.rank}.json")


def read(folder: Path) -> dict[int, Heartbeat]:
    """All ranks' last words; files that are no heartbeat are left out."""
    found: dict[int, Heartbeat] = {}
    for path in sorted(folder.glob("rank_*.json")):
        with suppress(OSError, ValueError, TypeError):
            beat = Heartbeat(**parse_json(path.read_text()))
            found[beat.rank] = beat
    return found


def is_gone(beat: Heartbeat) -> bool:
    """Whether the rank's process has ended: it said so, or is on this machine and no longer there."""
    if beat.status is not None:
        return True
    if beat.host != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(beat.pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


@dataclass(frozen=True)
class Cause:
    """Whom a job waits for, in words. lives: whether that rank still looks after itself. status: how it has ended."""

    text: str
    lives: bool
    status: int | None = None


def blame(own: int, before: Mapping[int, Heartbeat], now: Mapping[int, Heartbeat], gone: Sequence[int]) -> Cause | None:
    """Which rank the others wait for, as far as their words tell; None where they do not.

    own: the rank that asks. before, now: all words, some seconds apart. gone: ranks whose process has ended. First come
    those that are gone, then those that went silent in between, then those that are behind this one.
    """
    others = {rank: beat for rank, beat in now.items() if rank != own}
    for rank in sorted(set(gone) & set(others)):
        beat = others[rank]
        how = "" if beat.status is None else f" with status {beat.status}"
        who = f"rank {rank} (process {beat.pid} on {beat.host})"
        return Cause(f"{who} has ended{how} {beat.where}", lives=False, status=beat.status)
    for rank, beat in sorted(others.items()):
        if rank in before and before[rank].beats == beat.beats:
            who = f"rank {rank} (process {beat.pid} on {beat.host})"
            return Cause(f"{who} has stopped {beat.where}: it no longer gives a sign", lives=False)
    mine = now.get(own)
    behind = [beat for beat in others.values() if mine is not None and _place(beat) < _place(mine)]
    if behind:
        slowest = min(behind, key=_place)
        who = f"rank {slowest.rank} (process {slowest.pid} on {slowest.host})"
        return Cause(f"{who} has been {slowest.where} for {slowest.seconds:.0f} s", lives=True)
    return None


def _place(beat: Heartbeat) -> tuple[int, int]:
    return beat.step, beat.entered
