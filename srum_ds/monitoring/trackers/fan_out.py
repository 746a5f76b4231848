"""Hands a run's figures on to its trackers, each in a thread of its own, so that a slow one delays no step."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common import foreign
from srum_ds.common.errors import UserError, concealed
from srum_ds.config.choices import TRACKERS
from srum_ds.monitoring.trackers.protocol import Tracker, TrackerRun

_PATIENCE = 60.0
"""Seconds that the end of a run waits for a tracker that is behind."""
_METHODS = ("log", "image", "close")


class _Thread:
    """One tracker, called from a thread in the order of what happened."""

    def __init__(self, name: str, tracker: Tracker, tell: Callable[[str], None]) -> None:
        self.name = name
        self._tracker = tracker
        self._tell = tell
        self._told = False
        self._waiting: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, work: Callable[[Tracker], None]) -> None:
        """Has it done in its turn."""
        self._waiting.put(work)

    def close(self) -> None:
        """Waits until it is done with everything, for a while."""
        self.put(lambda tracker: tracker.close())
        self._waiting.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._tell(f"log.trackers={self.name}: is not done {_PATIENCE:.0f} s after the run; it is not waited for.")

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                work(self._tracker)
            except (Exception, SystemExit) as error:
                if not self._told:
                    self._told = True
                    what = concealed(f"{type(error).__name__}: {error}")
                    self._tell(
                        f"log.trackers={self.name}: {what}. The run goes on; metrics.jsonl has everything. Further "
                        "errors of this tracker are not told."
                    )


class Trackers:
    """All trackers of a run; without any, every method does nothing."""

    def __init__(self, opened: Sequence[tuple[str, Tracker]], tell: Callable[[str], None]) -> None:
        self._threads = [_Thread(name, tracker, tell) for name, tracker in opened]

    def log(self, step: int, figures: Mapping[str, Any], prefix: str = "") -> None:
        """Numbers among ``figures`` that are finite, their names behind ``prefix``."""
        if not self._threads:
            return
        known = {prefix + key: float(value) for key, value in figures.items() if key != "step" and _is_finite(value)}
        for thread in self._threads:
            thread.put(lambda tracker: tracker.log(step, known))

    def image(self, step: int, name: str, path: Path) -> None:
        """A picture in the run's folder."""
        for thread in self._threads:
            thread.put(lambda tracker: tracker.image(step, name, path))

    def close(self) -> None:
        """Ends all."""
        for thread in self._threads:
            thread.close()
        self._threads = []


def open_trackers(names: Sequence[str], run: TrackerRun, tell: Callable[[str], None]) -> Trackers:
    """Opens every tracker that ``log.trackers`` names.

    tell: says a line to the user. Raises UserError for one that is not there, whose package is not installed, or that
    cannot begin.
    """
    return Trackers([(name, _open(name, run)) for name in names], tell)


def _open(name: str, run: TrackerRun) -> Tracker:
    what = f"log.trackers={name}"
    found = TRACKERS.get(name)
    if not callable(found):
        raise UserError(f"{what}: is {type(found).__name__}, expected a class or function that takes a TrackerRun")
    tracker = foreign.run(what, lambda: found(run))
    missing = [method for method in _METHODS if not callable(getattr(tracker, method, None))]
    if missing:
        raise UserError(f"{what}: gave {foreign.shown(tracker)}, which has no {', no '.join(missing)}")
    opened: Tracker = tracker
    return opened


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
