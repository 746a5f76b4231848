"""Whether a run is still running, and how it ended, from what stands in its folder."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path

from srum_ds.common import heartbeats
from srum_ds.common.errors import STOPPED
from srum_ds.monitoring.run_folder import EXPORT, STOPPED_BY_WATCH

FRESH = 120.0
"""A rank that wrote no heartbeat for so many seconds is taken for gone; it writes one every second."""


class State(Enum):
    """Where a run stands."""

    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"
    BY_WATCH = "by watch"


def state_of(run_dir: Path, ending: bool = False) -> State:
    """The state of a run. ending: its process is the caller, and ends now.

    Running: a rank has said so within ``FRESH`` seconds and, where it is on this machine, its process is there.
    """
    # Whatever its design is called: an export is moved there when it is whole.
    if (run_dir / EXPORT).is_dir():
        return State.BY_WATCH if (run_dir / STOPPED_BY_WATCH).exists() else State.FINISHED
    beats = list(heartbeats.read(run_dir / heartbeats.FOLDER).values())
    if not ending and any(_lives(beat) for beat in beats):
        return State.RUNNING
    ends = {beat.status for beat in beats if beat.status not in (None, 0, STOPPED)}
    return State.FAILED if ends and not ending else State.STOPPED


def _lives(beat: heartbeats.Heartbeat) -> bool:
    return not heartbeats.is_gone(beat) and abs(time.time() - beat.time) < FRESH
